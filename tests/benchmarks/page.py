"""Rows of all machines → docs/measured.md: a file of figures for each machine, tables made from them.

docs/measured/MACHINE.json    {"machine", "parts": {NAME: {FORM: what `__main__.run_part` returns}}}
docs/measured.md              what stands between `BEGIN` and `END` is written anew; the rest is kept
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.machine import Machine
from tests.benchmarks.measurement import Row

PAGE, FOLDER = "measured.md", "measured"
BEGIN = "<!-- python -m tests.benchmarks writes from here -->"
END = "<!-- to here -->"
HEAD = (
    "| measured | unit | ours | peer | | compared | wanted | conditions |\n|---|---|---|---|---|---|---|---|"
)
TITLES = {
    "accuracy": "Accuracy",
    "extraction": "Extraction",
    "faults": "Faults",
    "finetuning": "Fine-tuning",
    "gpu": "GPU",
    "heads": "Sweep of heads",
    "neighbours": "Beside busy neighbours",
    "scale": "Memory and second runs",
    "scaling": "Cost by number",
    "ray": "Extraction on Ray",
    "startup": "Start",
}


def keep(docs: Path, machine: Machine, part: str, found: dict) -> None:
    """Put a part's figures into the machine's file in place of its last ones of the same form."""
    file = docs / FOLDER / f"{machine.slug}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    record = json.loads(file.read_text("utf-8")) if file.exists() else {"parts": {}}
    record["machine"] = machine.to_json()
    record["parts"].setdefault(part, {})[found["form"]] = found
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")


def write(docs: Path) -> None:
    """Write the tables of all machines between the marks of the page.

    Raises
    ------
    ValueError
        The page does not have each mark once, in order: nothing is written.
    """
    path = docs / PAGE
    text = path.read_text("utf-8")
    before, mark, rest = text.partition(BEGIN)
    _, other, after = rest.partition(END)
    if not mark or not other or BEGIN in rest or END in before + after:
        raise ValueError(f"{path} must have the lines {BEGIN!r} and {END!r} once, in this order.")
    machines = [json.loads(file.read_text("utf-8")) for file in sorted((docs / FOLDER).glob("*.json"))]
    tables = "\n\n".join(section for record in machines for section in sections(record))
    path.write_text(f"{before}{BEGIN}\n\n{tables or 'Nothing yet.'}\n\n{END}{after}", "utf-8")


def sections(record: dict) -> Iterator[str]:
    """The heading of a machine, then a heading and a table for each part and form."""
    machine = Machine.from_json(record["machine"])
    gpu = f"; {machine.gpu}" if machine.gpu else "; no GPU"
    yield f"## {machine.processor}, {machine.cores} cores"
    yield (
        f"Vector units: {', '.join(machine.units) or 'not told by the system'}{gpu}. "
        f"All figures: [{machine.slug}.json]({FOLDER}/{machine.slug}.json)."
    )
    for part in sorted(record["parts"], key=lambda name: TITLES.get(name, name)):
        for form, found in sorted(record["parts"][part].items()):
            yield f"### {TITLES.get(part, part)} ({form} form)"
            yield conditions(part, found)
            rows = [line(Row.from_json(row)) for row in found["rows"]]
            yield "\n".join([HEAD, *rows])


def conditions(part: str, found: dict) -> str:
    """When, under which load and with which versions a part was measured."""
    used = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    loads = " to ".join(f"{each:g}" for each in found["load"])
    short = " --short" if found["form"] == "short" else ""
    return (
        f"`python -m tests.benchmarks{short} --only {part}`, {found['date']}: {found['seconds']:.0f} s by "
        f"the clock, {found['processor_seconds']:.0f} s of cores; load {loads}; {used}."
    )


def line(row: Row) -> str:
    """A row of the table."""
    ours, theirs, compared, wanted, notes = row.cells()
    sign = {"ours / peer": "×", "peer / ours": "×", "ours - peer": ""}[row.compared] if row.ratios else ""
    peer = f"{row.peer}: {theirs}" if row.theirs else "–"
    cells = (
        row.what,
        row.unit,
        ours,
        peer,
        row.compared if row.ratios else "",
        f"{compared} {sign}",
        wanted,
        notes,
    )
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def outside(earlier: dict, later: dict) -> Iterator[str]:
    """One line for each comparison of `later` whose median is outside of the spread that `earlier` states.

    What was measured once states none. Of three rounds and three more, chance alone puts 40 % outside.
    """
    if earlier["machine"] != later["machine"]:
        yield "The two files are of different machines: nothing is compared."
        return
    for part, found in later["parts"].items():
        before = {
            row["what"] + row["unit"] + row["peer"]: row
            for row in earlier["parts"].get(part, {}).get("rows", [])
        }
        for row in found["rows"]:
            other = before.get(row["what"] + row["unit"] + row["peer"], {})
            if "ratio" not in row or "ratio" not in other:
                continue
            low, high = other["spread"]
            if low < high and not low <= row["ratio"] <= high:
                yield f"{part}: {row['what']}: {row['ratio']:.3g}, before {low:.3g} … {high:.3g}"
