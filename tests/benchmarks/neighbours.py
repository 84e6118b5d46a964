"""What does an image cost beside two busy programs: extraction, a step of `finetune`, the solver of heads?

    python -m tests.benchmarks.neighbours [--short]

The process pins itself and all that it starts to two cores. Processor time of each work alone, then beside
two processes that spin on the same cores; both take turns. Threads that wait by spinning would show here.
Other load on these cores makes the quiet side not quiet: see the load that stands beside the figures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.heads import made
from tests.benchmarks.images import write_photographs
from tests.benchmarks.measurement import REPEATS, Row, main
from tests.benchmarks.process import run_child

LITE = "efficientnet_lite0"
NEIGHBOURS = 2
WANTED = 1.3  # times the quiet processor time
# A neighbour ends with its parent, also when that is killed.
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"


def rows(short: bool) -> Iterator[Row]:
    """Extraction, fine-tuning and the solver, quiet and beside neighbours."""
    if not hasattr(os, "sched_setaffinity"):
        yield Row("beside busy neighbours", reason="this system cannot pin a process to cores")
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])  # children inherit it
    try:
        with tempfile.TemporaryDirectory(prefix="bottleneck-neighbours-") as scratch:
            yield from beside_neighbours(Path(scratch), short)
    finally:
        os.sched_setaffinity(0, before)


def beside_neighbours(scratch: Path, short: bool) -> Iterator[Row]:
    """Each work `REPEATS` times, alone and beside neighbours in turn."""
    images, n = (512, 800) if short else (1024, 10_000)
    folder = write_photographs(scratch / "photographs", images)
    run_child("finetuning", "prepare", folder=folder, backbone=LITE, work=scratch / "tuned")
    common = {"folder": folder, "backbone": LITE, "limit": images, "precision": "fp32", "parts": False}
    features = made(scratch, n, 10)

    def work(name: str, turn: int) -> dict:
        if name == "extract":
            return run_child("extraction", "ours", **common).found
        if name == "finetune":
            arguments = {"work": scratch / "tuned", "precision": "fp32", "seed": turn}
            return run_child("finetuning", "ours", **arguments).found
        return run_child("heads", "ours", features=features).found

    units = {"extract": "processor ms an image", "finetune": "processor ms an image and epoch"}
    for name in ("extract", "finetune", "fit-head, 13 C × 5 folds"):
        quiet, busy = [], []
        for turn in range(REPEATS):
            quiet.append(_milliseconds(work(name, 2 * turn)))
            with neighbours():
                busy.append(_milliseconds(work(name, 2 * turn + 1)))
        unit = units.get(name, "processor ms a row")
        sides = (tuple(busy), tuple(quiet))
        conditions = f"{NEIGHBOURS} spinning processes on 2 cores"
        yield Row(
            f"{name} beside neighbours", unit, *sides, "without them", at_most=WANTED, conditions=conditions
        )


def _milliseconds(found: dict) -> float:
    return 1000 * found["processor_seconds"] / found["images"]


@contextmanager
def neighbours() -> Iterator[None]:
    """Processes that use all time of the cores that they get."""
    started = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(NEIGHBOURS)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main(rows, __doc__)
