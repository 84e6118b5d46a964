"""Run the measurements of this folder, each beside its peer, and write them into docs/measured.md.

    python -m tests.benchmarks [--short] [--only NAME]… [--json F] [--against F]

Every module here with a function `rows(short)` takes part, in a process of its own. The short form runs those
of `SHORT`, in about 10 minutes on two cores that nothing else uses. A part that fails is a row with its
reason, the others go on, and the exit code is 1. Figures are kept per machine in docs/measured/, from which
the page is made.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks import page
from tests.benchmarks.machine import load, processor_seconds, this_machine, versions
from tests.benchmarks.measurement import Row
from tests.benchmarks.process import ROOT

FOLDER = Path(__file__).parent
# Parts of the short form in their order, and the seconds that each may take on two quiet cores with the peers
# that come with the package; fastai, img2vec_pytorch and Keras add about 60.
SHORT = {
    "startup": 90,
    "extraction": 115,
    "heads": 100,
    "finetuning": 55,
    "scale": 55,
    "faults": 10,
    "accuracy": 100,
    "gpu": 5,
}
LIMIT = 6 * 3600  # seconds after which a part is ended


def parts() -> list[str]:
    """Names of the modules that have a function `rows`, those of the short form first."""
    found = []
    for path in sorted(FOLDER.glob("*.py")):
        names = [
            node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)
        ]
        found += [path.stem] if "rows" in names else []
    return sorted(found, key=lambda name: (list(SHORT).index(name) if name in SHORT else len(SHORT), name))


def run_part(name: str, short: bool, command: tuple[str, ...] = ()) -> dict:
    """Run a part in a process of its own: its rows, when and how long it ran, under which load.

    command : what is run instead of the module's own command.
    """
    before, started, cores = load(), time.perf_counter(), processor_seconds()
    reason = ""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.json")
        words = [*(command or (sys.executable, "-m", f"tests.benchmarks.{name}"))]
        words += [*(["--short"] if short else []), "--json", str(file)]
        try:
            done = subprocess.run(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=LIMIT)
            lines = done.stderr.strip().splitlines()
            reason = (lines or [f"exit code {done.returncode}"])[-1] if done.returncode else ""
        except subprocess.TimeoutExpired:
            reason = f"ended after {LIMIT} s"
        rows = [Row.from_json(row) for row in json.loads(file.read_text("utf-8"))] if file.exists() else []
    if (reason or not rows) and not any(row.failed for row in rows):
        rows.append(Row("the rest of this part", reason=reason or "it gave no row", failed=True))
    return {
        "form": "short" if short else "long",
        "date": datetime.now(UTC).date().isoformat(),
        "load": [round(before, 1), round(load(), 1)],
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(processor_seconds() - cores, 1),
        "versions": versions(),
        "rows": [row.to_json() for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="smaller sizes, about 10 minutes")
    parser.add_argument("--only", action="append", choices=parts(), metavar="NAME", help=", ".join(parts()))
    parser.add_argument("--json", type=Path, help="file for the rows of this run")
    parser.add_argument("--against", type=Path, help="such a file: name ratios outside of its spread")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of measured.md")
    options = parser.parse_args()
    chosen = options.only or [name for name in parts() if name in SHORT or not options.short]
    left_out = [name for name in parts() if name not in chosen]
    if left_out:
        print(f"Left out: {', '.join(left_out)}", file=sys.stderr)
    record = {"machine": this_machine().to_json(), "parts": {}}
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as graphs:
        os.environ["BOTTLENECK_CACHE"] = graphs
        for name in chosen:
            print(f"\n== {name}", flush=True)
            found = run_part(name, options.short)
            record["parts"][name] = found
            budget = f", budget {SHORT[name]} s" if options.short and name in SHORT else ""
            print(
                f"{found['seconds']} s, {found['processor_seconds']} s of cores{budget}; load {found['load']}"
            )
            page.keep(options.docs, this_machine(), name, found)
            page.write(options.docs)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1), "utf-8")
    if options.against:
        for line in page.outside(json.loads(options.against.read_text("utf-8")), record):
            print(line)
    failed = [name for name, found in record["parts"].items() if any(row["failed"] for row in found["rows"])]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
