"""Everything that a GPU does here, judged by whoever has one: a verdict for each row, and a JSON to send in.

    python -m tests.benchmarks.gpu [--json F] [--cpu]

All tests that are marked `cuda`; agreement of float32, bfloat16 and float16 with float32 on the CPU; two runs
equal to the bit; memory that does not grow with the images; passes halved where memory is too small; speed
beside the usual loop and beside decoding and engine alone; decoding on the device; `finetune` and `scratch`
in bfloat16; `fit-head` on the device. A check that fails is a row with its reason, and the others go on.
`--cpu` runs the same logic on the CPU, at a small size: it shows that the checks work, not that a GPU does.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from tests.benchmarks import extraction
from tests.benchmarks.images import digits, write_photographs, write_set
from tests.benchmarks.machine import this_machine
from tests.benchmarks.measurement import FEWER, LESS, Result, Row, collect, one_line, print_verdicts
from tests.benchmarks.process import ROOT, run_child

LITE = "efficientnet_lite0"
BOUNDS = {
    "fp32": 1e-4,
    "bf16": 3e-2,
    "fp16": 5e-3,
}  # relative difference of a row, as `engines.reference` has
GROWTH = 1.1  # of memory, over four times as many images
READ_AHEAD = 200  # images up to which memory grows, since more of them are on their way
EXACT = 1e-4  # relative, of the objective
LOST = -1.0  # points of accuracy that training in bfloat16 may lose
LEVELS = 2  # grey levels by which pixels may differ and still be called equal
MARK = re.compile(r"^@pytest\.mark\.cuda|^pytestmark = .*\bcuda\b", re.MULTILINE)


@dataclass(frozen=True)
class Plan:
    """What is checked where: device, photographs, samples to learn from, epochs, rows of heads."""

    device: str
    folder: Path
    images: int
    samples: int
    epochs: int
    heads: int

    @property
    def on(self) -> dict:
        return {"folder": self.folder / "photographs", "device": self.device, "limit": self.images}


def marked_tests(plan: Plan) -> Iterator[Row]:
    """Tests that are marked `cuda`."""
    files = [
        path for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK.search(path.read_text("utf-8"))
    ]
    report = plan.folder / "tests.xml"
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "cuda",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    subprocess.run([*words, *map(str, files)], cwd=ROOT, capture_output=True)
    suite = ElementTree.parse(report).find("testsuite")
    tests, skipped = int(suite.get("tests")), int(suite.get("skipped"))
    failures = int(suite.get("failures")) + int(suite.get("errors"))
    told = f"{tests - skipped - failures} passed, {skipped} skipped, in {len(files)} files"
    if tests == skipped:
        yield Row(
            "tests marked cuda",
            "failures",
            reason="all were skipped, since there is no CUDA device",
            conditions=told,
        )
    else:
        yield Row("tests marked cuda", "failures", (failures,), at_most=0.0, conditions=told)


def agreement(plan: Plan, precision: str) -> Iterator[Row]:
    """Rows of the engine beside eager float32 on the CPU."""
    found = run_child("gpu_checks", "agreement", **plan.on, precision=precision).found
    what = f"{precision}: largest relative difference of a row from float32 on the CPU"
    told = f"{found['images']} photographs, {found['engine']}; least cosine {found['cosine']:.6f}"
    if found["refused"]:
        yield Row(what, "relative", reason=found["refused"], conditions=told)
        return
    yield Row(what, "relative", (found["difference"],), at_most=BOUNDS[precision], conditions=told)


def repeated(plan: Plan, precision: str) -> Iterator[Row]:
    """Two runs of `extract` beside each other."""
    found = run_child("gpu_checks", "twice", **plan.on, precision=precision).found
    what = f"{precision}: rows that differ between two runs of extract"
    if "refused" in found:
        yield Row(what, "rows", reason=found["refused"])
        return
    yield Row(what, "rows", (found["differ"],), at_most=0.0, conditions=f"of {found['rows']}, every bit")


def memory(plan: Plan) -> Iterator[Row]:
    """Peak memory at a quarter of the images and at all of them, both more than are read ahead."""
    on = plan.on
    if plan.images < 4 * READ_AHEAD:
        folder = write_photographs(plan.folder / "more photographs", 4 * READ_AHEAD)
        on |= {"folder": folder, "limit": 4 * READ_AHEAD}
    found = run_child("gpu_checks", "memory", **on).found
    sides = ((found["many"],), (found["few"],))
    what = f"memory of the {found['of']}, {on['limit']} photographs"
    yield Row(what, "MB", *sides, f"{on['limit'] // 4} photographs", at_most=GROWTH)


def out_of_memory(plan: Plan) -> Iterator[Row]:
    """A pass that is too large for the memory is halved, told, and gives the same rows."""
    found = run_child("gpu_checks", "out_of_memory", **plan.on).found
    told = f"{found['how']}; note: {found['note']}"
    what = "too little memory: images in a pass afterwards"
    yield Row(
        what, "images", (found["images"],), at_most=found["of"] / 2, conditions=f"of {found['of']}; {told}"
    )
    what = "too little memory: largest relative difference of a row"
    yield Row(what, "relative", (found["difference"],), at_most=BOUNDS["fp32"])


def speed(plan: Plan) -> Iterator[Row]:
    """`extract` beside the usual loop on the same device, and beside the slower of its parts."""
    precisions = {"fp32": None, "fp16": None, "bf16": None} if plan.device != "cpu" else {"fp32": None}
    photographs = plan.folder / "photographs"
    yield from extraction.compare(photographs, LITE, plan.images, precisions, plan.device)


def decoding(plan: Plan) -> Iterator[Row]:
    """JPEGs on the device (nvJPEG through torchvision) beside the host, where the pixels agree."""
    found = run_child("gpu_checks", "decoding", **plan.on).found
    told = (
        f"{100 * found['equal']:.2f} % of pixel values are equal, the others differ by up to {found['most']}"
    )
    what = "JPEGs decoded on the device, without resizing"
    if found["most"] > LEVELS:
        yield Row(what, "images/s", reason="the pixels differ too much for a race", conditions=told)
        return
    yield Row(what, "images/s", tuple(found["device"]), tuple(found["host"]), "on the host", conditions=told)


def training(plan: Plan) -> Iterator[Row]:
    """`finetune` and `scratch` in bfloat16 beside float32."""
    folder = plan.folder / "digits"
    for command in ("finetune", "scratch"):
        found = {}
        for precision in ("fp32", "bf16"):
            options = {"folder": folder, "device": plan.device, "epochs": plan.epochs, "precision": precision}
            found[precision] = run_child("gpu_checks", command, **options).found
        half, whole = found["bf16"], found["fp32"]
        if "refused" in half:
            yield Row(f"{command} in bf16", "images/s", reason=half["refused"])
            continue
        told = f"{plan.samples} digits, {plan.epochs} epochs"
        sides = ((half["images_per_second"],), (whole["images_per_second"],))
        yield Row(f"{command} in bf16", "images/s", *sides, "in fp32", conditions=told)
        sides = ((half["accuracy"],), (whole["accuracy"],))
        yield Row(f"{command} in bf16", "% of test", *sides, "in fp32", LESS, at_least=LOST, conditions=told)


def heads(plan: Plan) -> Iterator[Row]:
    """A sweep of heads on the device beside the CPU."""
    found = run_child("gpu_checks", "heads", device=plan.device, n=plan.heads).found
    what = f"fit-head, 13 C × 5 folds, n = {plan.heads:,}"
    yield Row(what, "s by the clock", (found["device"],), (found["cpu"],), "on the CPU", FEWER)
    what = f"{what}: largest objective above the CPU's"
    yield Row(what, "relative", (found["gap"],), at_most=EXACT, conditions=f"C: {found['C']}")


CHECKS: tuple[Callable[[Plan], Iterator[Row]], ...] = (
    marked_tests,
    *(partial(check, precision=precision) for check in (agreement, repeated) for precision in BOUNDS),
    *(memory, out_of_memory, speed, decoding, training, heads),
)


def checked(plan: Plan) -> Iterator[Row]:
    """Rows of all checks; one that fails is a row with its reason, and the others go on."""
    write_photographs(plan.folder / "photographs", plan.images)
    random = np.random.default_rng(0)
    write_set(plan.folder / "digits", digits(8, random), plan.samples, plan.samples // 2)
    for check in CHECKS:
        try:
            yield from check(plan)
        except Exception as error:
            yield Row(_name(check), reason=one_line(error), failed=True)


def _name(check: Callable) -> str:
    options = ", ".join(getattr(check, "keywords", {}).values())
    return " in ".join(filter(None, (getattr(check, "func", check).__name__.replace("_", " "), options)))


def rows(short: bool) -> Iterator[Row]:
    """The checks on this machine's GPU, if it has one."""
    if not this_machine().gpu:
        yield Row("all that a GPU does", reason="no CUDA device here")
        return
    sizes = (256, 200, 2, 2000) if short else (2048, 1000, 10, 50_000)
    with tempfile.TemporaryDirectory(prefix="bottleneck-gpu-") as folder:
        yield from checked(Plan("cuda", Path(folder), *sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for the rows, to send in")
    parser.add_argument("--short", action="store_true", help="smaller sizes")
    parser.add_argument("--cpu", action="store_true", help="the same logic on the CPU, at a small size")
    options = parser.parse_args()
    if not (this_machine().gpu or options.cpu):
        print("There is no CUDA device here: nothing is measured. --cpu runs the same checks on the CPU.")
    print(this_machine().title, flush=True)
    with tempfile.TemporaryDirectory(prefix="bottleneck-gpu-") as folder:
        os.environ.setdefault("BOTTLENECK_CACHE", f"{folder}/graphs")
        plan = Plan("cpu", Path(folder), images=48, samples=60, epochs=1, heads=300)
        result = Result(options.json)
        good = collect(checked(plan) if options.cpu else rows(options.short), result)
    print_verdicts(result.rows)
    sys.exit(0 if good and not any(row.verdict == "missed" for row in result.rows) else 1)


if __name__ == "__main__":
    main()
