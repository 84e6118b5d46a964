"""The page of a report in a browser: what a reader clicks, hears and prints, and hostile names as text."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.progress import printable
from bottleneck.report.page.report import write_report
from bottleneck.samples import SampleTable
from bottleneck.store.spec import CacheSpec, NodeSpec
from bottleneck.store.writer import CacheWriter
from tests.helpers.browser import browser, visit
from tests.helpers.caches import PIXELS, class_target

AXE = "BOTTLENECK_AXE"  # environment variable: path of axe.min.js, which `.ci/run` fetches

HOSTILE = [
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg/onload=window.pwned=1>",
    "\"><img src=x onerror='window.pwned=1'>",
    "' onmouseover='window.pwned=1' x='",
    '" autofocus onfocus="window.pwned=1" x="',
    "javascript:window.pwned=1",
    "{{ 7*7 }}{% raw %}",
    "{{ ''.__class__ }}",
    "${window.pwned=1}",
    "`${window.pwned=1}`",
    "--><script>window.pwned=1</script><!--",
    "<!--<script>",
    "]]><script>window.pwned=1</script>",
    "</title><script>window.pwned=1</script>",
    "</style><script>window.pwned=1</script>",
    "<base href=https://example.com/>",
    "<meta http-equiv=refresh content=0;url=https://example.com>",
    "<link rel=stylesheet href=https://example.com/x.css>",
    "<iframe src=https://example.com></iframe>",
    "<a href='https://example.com'>click</a>",
    "&lt;b&gt;&amp;&#39;",
    "&#x3c;script&#x3e;",
    "\u202egnp.exe",
    "\u2066isolate\u2069\u200f\u200e",
    "a\u2028b\u2029c",
    "🐜🐝👨‍👩‍👧‍👦🏳️‍🌈",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠀀𠮷",
    "개미와 벌 한글 이름",
    "ا ل ن م ل",
    "नाम ชื่อ 名前",
    "Z̷̢̛a̴l̶g̵o̸ " + "̖̗̘̙" * 20,
    "x" * 300,
    "가" * 300,
    "a b  c",
    "back\\slash\\n",
    "quote\"double'single`tick",
    "semi;colon|pipe&and$dollar%percent",
    "__proto__",
    "constructor",
    "null",
    "NaN",
    "0",
    "-1",
    "*/alert(1)/*",
    "#fragment?query=1",
    "../../etc/passwd",
    "C:\\Windows\\system32",
    "\x7fdelete\x85next",
]


def cache_of(path, classes, keys, seed=0, separation=2.5, D=8):
    """A cache of random rows whose images have the given keys; each fourth is a test image."""
    random = np.random.default_rng(seed)
    n, K = len(keys), len(classes)
    y = np.arange(n) % K
    X = (random.normal(size=(n, D)) + separation * random.normal(size=(K, D))[y]).astype(np.float32)
    target = class_target(y, names=tuple(classes))
    split = np.array(["train", "train", "test", "train"] * (n // 4 + 1), object)[
        np.argsort(np.argsort(y, kind="stable"))
    ]
    table = SampleTable(np.array(keys, object), np.arange(n)[:, None], split, {"label": target})
    node = NodeSpec("bottleneck", "native", (D,), dtype="float32")
    spec = CacheSpec(backbone={"name": "drawn"}, preprocess=PIXELS)
    with CacheWriter(path, spec, [node], str(path.parent)) as writer:
        writer.plan(list(keys), [(1, 1)] * n)
        writer.add([(key, os.urandom(32), (1, 1)) for key in keys], {"bottleneck": X}, {})
        writer.finish(table)
    return path


@pytest.fixture(scope="module")
def chrome():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(made_cache, tmp_path_factory):
    """The report of a head that makes mistakes."""
    folder = tmp_path_factory.mktemp("page")
    head = fit_heads(made_cache, output=folder / "heads", C=1e-3).heads[0]["path"]
    write_report([head, made_cache], output=folder / "r.html")
    return folder / "r.html"


def test_a_reader_opens_cells_sorts_filters_hovers_and_switches(chrome, page, opened):
    read = opened(page)
    confusion = read.report["model"]["confusion"]
    with visit(chrome, page) as (tab, heard):
        tab.locator("table.confusion button").first.click()
        cell = tab.locator("table.confusion button").first.get_attribute("data-cell")
        shown = tab.locator("#cell-images .file").all_text_contents()
        assert shown == [read.images[k] for k in read.cells[cell]]
        assert len(shown) == confusion["counts"][0][int(cell[-1])]
        tab.keyboard.press("Escape")

        head = tab.locator("#classes-table th", has_text="recall")
        for order, step in (("descending", -1), ("ascending", 1)):
            head.locator("button").click()
            assert head.get_attribute("aria-sort") == order
            values = tab.locator("#classes-table tbody tr td:nth-child(3)").evaluate_all(
                "cells => cells.map(cell => Number(cell.dataset.v))"
            )
            assert values == sorted(values, reverse=step < 0)

        plane = read.report["map"]["map"]
        tab.select_option("#map-class", "1")
        assert tab.locator("#map-count").text_content().startswith(f"{plane['class'].count(1)} of ")
        tab.select_option("#map-class", "")
        tab.focus("#map-canvas")
        tab.keyboard.press("ArrowRight")
        assert tab.locator("#tip-name").text_content() in read.images
        tab.locator("#map-canvas").evaluate("canvas => canvas.scrollIntoView({block: 'center'})")
        box = tab.locator("#map-canvas").bounding_box()
        fit = min(box["width"], box["height"]) - 36
        x, y = plane["positions"][tab.input_value("#map-method")][0]
        tab.mouse.move(
            box["x"] + box["width"] / 2 + (x - 0.5) * fit, box["y"] + box["height"] / 2 + (0.5 - y) * fit
        )
        assert tab.locator("#map-tip").is_visible()
        assert (
            tab.locator("#map-tip .thumb")
            .evaluate("e => getComputedStyle(e).backgroundImage")
            .startswith("url")
        )

        before = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        tab.click("#theme")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != before
        assert tab.get_attribute("#theme", "aria-pressed") == "true"
        assert tab.pdf()[:5] == b"%PDF-"
    assert heard == []


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(chrome, page, width):
    with visit(chrome, page, width) as (tab, heard):
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert heard == []


def test_axe_finds_no_serious_violation(chrome, page):
    script = os.environ.get(AXE)
    if not script or not Path(script).is_file():
        pytest.skip(f"needs axe-core: {AXE} names its axe.min.js")
    for dark in (False, True):
        with visit(chrome, page, dark=dark) as (tab, _):
            tab.evaluate(Path(script).read_text("utf-8"))
            found = tab.evaluate("axe.run().then(result => result.violations)")
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert [(each["id"], [node["html"][:200] for node in each["nodes"][:3]]) for each in serious] == []


def test_hostile_names_are_text(chrome, tmp_path):
    """As class names and as file names: shown literally, or as escapes where they steer or reverse text; none
    executed, nothing requested.
    """
    shown = [printable(name) for name in HOSTILE]
    keys = [f"{name}/{number}.png" for number in range(8) for name in HOSTILE]
    cache = cache_of(tmp_path / "c.h5", HOSTILE, keys, separation=1.0)
    head = fit_heads(cache, output=tmp_path / "heads", C=0.01, cv=2).heads[0]["path"]
    write_report([head, cache], output=tmp_path / "r.html")
    assert len(HOSTILE) == 50
    lines = (tmp_path / "r.html").read_text(encoding="utf-8").split("\n")
    assert [line for line in lines if printable(line) != line] == []
    with visit(chrome, tmp_path / "r.html") as (tab, heard):
        rows = tab.locator("#classes-table tbody th").all_text_contents()
        assert sorted(rows) == sorted(shown)
        tab.locator("button.open").first.click()
        named = tab.locator("#cell-images .file").all_text_contents()
        assert named
        assert set(named) <= {printable(key) for key in keys}
        options = tab.locator("#map-class option").evaluate_all("all => all.map(each => each.textContent)")
        assert options[1:] == shown
        assert tab.evaluate("window.pwned") is None
        assert tab.locator("main script, main iframe, main link, main base, main meta").count() == 0
    assert heard == []


def test_a_hundred_classes_stay_readable(chrome, tmp_path):
    classes = [f"class {k:03d} of many" for k in range(100)]
    keys = [f"{k % 100}/{k}.png" for k in range(800)]
    cache = cache_of(tmp_path / "c.h5", classes, keys, separation=0.6)
    head = fit_heads(cache, output=tmp_path / "heads", C=0.01, cv=2).heads[0]["path"]
    write_report([head, cache], output=tmp_path / "r.html")
    with visit(chrome, tmp_path / "r.html") as (tab, heard):
        matrix = tab.locator("svg.matrix")
        names = matrix.locator("text")
        assert names.count() == 200
        boxes = [names.nth(2 * k).bounding_box() for k in range(100)]
        assert min(box["height"] for box in boxes) >= 10  # pixels, at which a name can be read
        assert all(a["y"] + a["height"] <= b["y"] + 3 for a, b in pairwise(boxes))
        matrix.locator("rect[data-cell]").first.click()
        assert tab.locator("#cell").is_visible()
    assert heard == []


def test_the_sprite_is_drawn(chrome, page, images, tmp_path):
    """A thumbnail on the screen has the colours of its file."""
    with visit(chrome, page) as (tab, _):
        thumb = tab.locator(".thumb.large").first
        name = thumb.get_attribute("aria-label")
        thumb.screenshot(path=tmp_path / "t.png")
    seen = np.asarray(Image.open(tmp_path / "t.png").convert("RGB"), float)[8:-8, 8:-8]
    file = np.asarray(Image.open(images / name).convert("RGB"), float)
    assert np.abs(seen.mean(axis=(0, 1)) - file.mean(axis=(0, 1))).max() < 12
