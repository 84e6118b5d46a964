"use strict";
(() => {
  const data = JSON.parse(document.getElementById("numbers").textContent);
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const whole = (n) => n.toLocaleString("en");

  // ---- theme: the system's until the reader chooses
  const theme = $("theme");
  const remembered = () => { try { return localStorage.getItem("bottleneck-theme"); } catch { return null; } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = (dark, keep) => {
    root.dataset.theme = dark ? "dark" : "light";
    theme.setAttribute("aria-pressed", String(dark));
    if (keep) try { localStorage.setItem("bottleneck-theme", root.dataset.theme); } catch { /* not kept */ }
    draw();
  };
  let draw = () => {};
  setTheme(remembered() ? remembered() === "dark" : system.matches, false);
  system.addEventListener("change", (event) => { if (!remembered()) setTheme(event.matches, false); });
  theme.addEventListener("click", () => setTheme(root.dataset.theme !== "dark", true));

  // ---- thumbnails: places in one sprite
  const { columns, rows, side, place } = data.sprite;
  const show = (element, number) => {
    const at = place[number];
    element.dataset.image = number;
    element.classList.toggle("none", at === undefined);
    element.classList.toggle("has", at !== undefined);
    if (at === undefined) return;
    element.style.backgroundSize = `${columns * side}px ${rows * side}px`;
    element.style.backgroundPosition = `${-(at % columns) * side}px ${-Math.floor(at / columns) * side}px`;
  };
  all(".thumb[data-image]").forEach((element) => show(element, Number(element.dataset.image)));

  // ---- tables
  all("table.sortable").forEach((table) => {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = head.querySelector("button.sort");
      if (!button) return;
      button.addEventListener("click", () => {
        const body = table.tBodies[0], lines = [...body.rows];
        const value = (row) => {
          const cell = row.cells[column];
          return cell.dataset.v === undefined ? cell.textContent : cell.dataset.v === "" ? -Infinity : Number(cell.dataset.v);
        };
        const numeric = typeof value(lines[0]) === "number";
        const before = head.getAttribute("aria-sort");
        const up = before === "none" ? !numeric : before === "descending";
        const order = (a, b) => (numeric ? value(a) - value(b) : String(value(a)).localeCompare(String(value(b)), undefined, { numeric: true }));
        lines.sort((a, b) => (up ? order(a, b) : order(b, a)));
        heads.forEach((each) => each.hasAttribute("aria-sort") && each.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        lines.forEach((row, at) => { row.classList.toggle("more", at >= Number(table.dataset.shown)); body.append(row); });
      });
    });
  });
  all("button.all").forEach((button) => button.addEventListener("click", () => {
    const more = button.dataset.text || button.textContent;
    button.dataset.text = more;
    const open = $(button.dataset.of).classList.toggle("open");
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "Show fewer" : more;
  }));

  // ---- commands
  all(".copy-it").forEach((button) => button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }));

  // ---- cells of the confusion matrix
  const confusion = data.report.model && data.report.model.confusion;
  const openCell = (name) => {
    const [t, p] = name.split(",").map(Number);
    const count = confusion.counts[t][p], images = data.cells[name] || [];
    const what = t === p ? `${confusion.classes[t]}, found` : `${confusion.classes[t]} predicted ${confusion.classes[p]}`;
    $("cell-title").textContent = what;
    $("cell-text").textContent = images.length
      ? `${whole(images.length)} of ${whole(count)} images, the surest first.`
      : `${whole(count)} images. This page has none of them: name the cache as well, or allow more with --max-size.`;
    $("cell-images").replaceChildren(...images.map((number) => {
      const figure = document.createElement("figure"), thumb = document.createElement("span"), name = document.createElement("bdi");
      thumb.className = "thumb";
      thumb.setAttribute("role", "img");
      thumb.setAttribute("aria-label", data.images[number]);
      name.className = "file";
      name.textContent = data.images[number];
      show(thumb, number);
      figure.append(thumb, name);
      return figure;
    }));
    $("cell").showModal();
  };
  document.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-cell]");
    if (cell) openCell(cell.dataset.cell);
    if (event.target === $("cell")) $("cell").close();
  });
  $("cell-close").addEventListener("click", () => $("cell").close());

  // ---- sections in view
  const links = all("nav a");
  if ("IntersectionObserver" in window) {
    const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (entry.isIntersecting) links.forEach((link) => link.classList.toggle("here", link.hash === `#${entry.target.id}`));
    }), { rootMargin: "-20% 0px -70% 0px" });
    all("main > section").forEach((section) => seen.observe(section));
  }

  // ---- map
  const map = data.report.map && data.report.map.map, canvas = $("map-canvas");
  if (!map || !canvas) return;
  const context = canvas.getContext("2d"), tip = $("map-tip");
  const methods = Object.keys(map.positions), n = map.class.length;
  const hues = ["#1d5fa8", "#d9730d", "#2b8a57", "#9b45a0", "#b39100", "#c8335d", "#1f95a1", "#7a7f87", "#6b4423", "#4a3aa7"];
  const colour = (k) => k < 0 ? "#8a8f97" : map.classes.length <= hues.length ? hues[k] : `hsl(${(k * 137.508) % 360} 62% ${[46, 58, 38][k % 3]}%)`;
  const wrong = map.predicted.map((p, i) => p >= 0 && map.class[i] >= 0 && p !== map.class[i]);
  const control = (id) => $(id);
  let view = { x: 0, y: 0, zoom: 1 }, visible = [], at = -1, hot = -1;
  const reset = () => { view = { x: 0, y: 0, zoom: 1 }; };

  const choose = () => {
    const klass = control("map-class") ? control("map-class").value : "";
    const splits = new Set(all(".map-split").filter((box) => box.checked).map((box) => box.value));
    const only = control("map-wrong") && control("map-wrong").checked;
    visible = [];
    for (let i = 0; i < n; i++)
      if ((klass === "" || map.class[i] === Number(klass)) && splits.has(map.split[i]) && (!only || wrong[i])) visible.push(i);
    visible.sort((a, b) => wrong[a] - wrong[b]);
    const mistakes = visible.filter((i) => wrong[i]).length;
    $("map-count").textContent = `${whole(visible.length)} of ${whole(n)} samples shown` + (map.predicted.some((p) => p >= 0) ? `, ${whole(mistakes)} of them mistakes.` : ".");
    at = hot = -1;
    hide();
    draw();
  };
  const size = () => {
    const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
    if (canvas.width !== Math.round(box.width * ratio) || canvas.height !== Math.round(box.height * ratio)) {
      canvas.width = Math.round(box.width * ratio);
      canvas.height = Math.round(box.height * ratio);
    }
    return { width: box.width, height: box.height, ratio };
  };
  const place2 = (i, box) => {
    const [x, y] = map.positions[control("map-method").value][i], fit = Math.min(box.width, box.height) - 36;
    return [
      box.width / 2 + ((x - 0.5) * fit + view.x) * view.zoom,
      box.height / 2 + ((0.5 - y) * fit + view.y) * view.zoom,
    ];
  };
  const shape = (k, x, y, r) => {
    context.beginPath();
    if (k % 4 === 1) context.rect(x - r * 0.88, y - r * 0.88, 1.76 * r, 1.76 * r);
    else if (k % 4 === 2) { context.moveTo(x, y - 1.2 * r); context.lineTo(x + 1.1 * r, y + 0.9 * r); context.lineTo(x - 1.1 * r, y + 0.9 * r); context.closePath(); }
    else if (k % 4 === 3) { context.moveTo(x, y - 1.25 * r); context.lineTo(x + 1.25 * r, y); context.lineTo(x, y + 1.25 * r); context.lineTo(x - 1.25 * r, y); context.closePath(); }
    else context.arc(x, y, r, 0, 7);
  };
  draw = () => {
    const box = size();
    if (!box.width) return;
    const ink = getComputedStyle(root).getPropertyValue("--ink");
    const r = Math.max(2.2, Math.min(5, 60 / Math.sqrt(n))) * Math.min(2, Math.sqrt(view.zoom));
    context.setTransform(box.ratio, 0, 0, box.ratio, 0, 0);
    context.clearRect(0, 0, box.width, box.height);
    for (const i of visible) {
      const [x, y] = place2(i, box);
      if (x < -9 || y < -9 || x > box.width + 9 || y > box.height + 9) continue;
      context.globalAlpha = wrong[i] ? 1 : 0.78;
      context.fillStyle = colour(map.class[i]);
      shape(map.class[i], x, y, r);
      context.fill();
      if (wrong[i]) {
        context.beginPath();
        context.arc(x, y, r + 2.6, 0, 7);
        context.lineWidth = 1.6;
        context.strokeStyle = ink;
        context.stroke();
      }
    }
    context.globalAlpha = 1;
    if (hot >= 0) {
      const [x, y] = place2(hot, box);
      context.beginPath();
      context.arc(x, y, r + 6, 0, 7);
      context.lineWidth = 2.2;
      context.strokeStyle = ink;
      context.stroke();
    }
  };
  const hide = () => { tip.hidden = true; };
  const reveal = (i) => {
    const box = size(), [x, y] = place2(i, box);
    hot = i;
    const name = (k) => (k < 0 ? "no label" : map.classes[k]);
    $("tip-class").textContent = map.classes.length ? name(map.class[i]) : map.split[i];
    $("tip-more").textContent = [map.split[i], map.predicted[i] >= 0 ? `predicted ${name(map.predicted[i])}` : ""].filter(Boolean).join(", ");
    $("tip-name").textContent = data.images[map.image[i]];
    show(tip.querySelector(".thumb"), map.image[i]);
    tip.hidden = false;
    tip.style.left = `${Math.max(6, Math.min(x + 14, box.width - tip.offsetWidth - 6))}px`;
    tip.style.top = `${Math.max(6, y + 14 + tip.offsetHeight > box.height ? y - tip.offsetHeight - 14 : y + 14)}px`;
    draw();
  };
  const nearest = (px, py) => {
    const box = size();
    let best = -1, least = 14 * 14;
    for (const i of visible) {
      const [x, y] = place2(i, box), d = (x - px) ** 2 + (y - py) ** 2;
      if (d <= least) { least = d; best = i; }
    }
    return best;
  };
  const zoom = (factor, px, py) => {
    const box = size(), after = Math.max(1, Math.min(40, view.zoom * factor));
    const dx = (px === undefined ? 0 : px - box.width / 2), dy = (py === undefined ? 0 : py - box.height / 2);
    view.x += dx / after - dx / view.zoom;
    view.y += dy / after - dy / view.zoom;
    view.zoom = after;
    if (after === 1) reset();
    hide();
    hot = -1;
    draw();
  };
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => { drag = { x: event.offsetX, y: event.offsetY, moved: false }; });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && event.buttons && view.zoom > 1) {
      view.x += (event.offsetX - drag.x) / view.zoom;
      view.y += (event.offsetY - drag.y) / view.zoom;
      drag = { x: event.offsetX, y: event.offsetY, moved: true };
      hide();
      draw();
      return;
    }
    const i = nearest(event.offsetX, event.offsetY);
    if (i >= 0) { if (i !== hot || tip.hidden) reveal(i); } else if (hot >= 0) { hot = -1; hide(); draw(); }
  });
  canvas.addEventListener("pointerup", (event) => {
    const i = drag && !drag.moved ? nearest(event.offsetX, event.offsetY) : -1;
    drag = null;
    if (i >= 0) reveal(i);
  });
  canvas.addEventListener("pointerleave", () => { drag = null; hot = -1; hide(); draw(); });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(2, event.offsetX, event.offsetY));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && visible.length) {
      at = (at + step + visible.length) % visible.length;
      const i = visible[visible.length - 1 - at]; // mistakes first
      reveal(i);
      $("map-count").textContent = `${$("tip-class").textContent}, ${$("tip-more").textContent}: ${$("tip-name").textContent}`;
    } else if (event.key === "+" || event.key === "=") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else if (event.key === "0" || event.key === "Escape") { reset(); hide(); hot = -1; draw(); }
    else return;
    event.preventDefault();
  });
  $("map-in").addEventListener("click", () => zoom(1.5));
  $("map-out").addEventListener("click", () => zoom(1 / 1.5));
  $("map-reset").addEventListener("click", () => { reset(); hide(); hot = -1; draw(); });
  all("#map-method, #map-class, .map-split, #map-wrong").forEach((each) => each.addEventListener("change", choose));
  if (map.classes.length && map.classes.length <= 24) {
    $("map-legend").replaceChildren(...map.classes.map((name, k) => {
      const line = document.createElement("li"), text = document.createElement("bdi"), mark = document.createElement("canvas");
      mark.width = mark.height = 28;
      mark.className = "dot-mark";
      mark.setAttribute("aria-hidden", "true");
      text.textContent = name;
      line.append(mark, text);
      const pen = mark.getContext("2d");
      pen.fillStyle = colour(k);
      pen.beginPath();
      if (k % 4 === 1) pen.rect(6, 6, 16, 16);
      else if (k % 4 === 2) { pen.moveTo(14, 4); pen.lineTo(24, 23); pen.lineTo(4, 23); }
      else if (k % 4 === 3) { pen.moveTo(14, 3); pen.lineTo(25, 14); pen.lineTo(14, 25); pen.lineTo(3, 14); }
      else pen.arc(14, 14, 9, 0, 7);
      pen.fill();
      return line;
    }));
  }
  addEventListener("resize", () => { hide(); draw(); });
  addEventListener("beforeprint", () => { root.dataset.printing = "yes"; draw(); });
  choose();
})();
