"""Time that commands take before they work, by the cores and by the clock, and the libraries that they load.

    python -m tests.benchmarks.startup [--short]

Each figure is of a fresh process. A command is ready when the engine gets the first image, or the network its
first batch to learn from; what it takes until then has the start of Python, all imports, and reading and
decoding the first images. The network's graph and its description are stored by an earlier run. The imports
of a command are those that it makes before it works (`tests.helpers.commands`). The peer imports what the
usual loop needs: torch, torchvision, timm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bottleneck.cli.main import COMMANDS
from bottleneck.samples import Target
from tests.benchmarks.images import write_photographs
from tests.benchmarks.measurement import FEWER, REPEATS, Row, main
from tests.helpers.caches import write_cache
from tests.helpers.commands import command_modules

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "sklearn",
    "scipy",
    "onnxruntime",
    "openvino",
    "pandas",
    "matplotlib",
    "h5py",
)
LIGHT = (["--version"], ["--help"], ["fit-head", "--help"], ["backbones", "lite"])
WANTED = {"extract": 1.5, "fit-head": 1.0, "evaluate": 1.0, "predict": 1.0}  # seconds
# Which call says that a command is ready: module, class and method.
ENGINE = ("bottleneck.extraction.pipeline", "Trunk", "_compute")
STEP = ("bottleneck.training.loop", "Training", "update")

TELL = f"""
import atexit, json, os, sys, time
def tell():
    if not told:
        told.append(True)
        loaded = [name for name in {HEAVY!r} if name in sys.modules]
        print("FOUND", json.dumps([sum(os.times()[:4]), time.time(), loaded]), file=sys.stderr, flush=True)
told = []
atexit.register(tell)
"""


@dataclass(frozen=True)
class Start:
    """Seconds of the cores and of the clock until a process was ready, or ended, and what it had loaded."""

    processor: float
    clock: float
    loaded: str


def rows(short: bool) -> Iterator[Row]:
    """Seconds of each start. Those of which some are wanted have no peer, and are judged themselves."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _imports(short)
        yield from _commands(short, Path(folder))


def _imports(short: bool) -> Iterator[Row]:
    """Yield rows of the commands' imports; the short form has those with a wanted time."""
    usual = _code("import torch, torchvision, timm")
    theirs = tuple(_start(usual).processor for _ in range(REPEATS))
    for command in WANTED if short else COMMANDS:
        code = _code(f"import {', '.join(command_modules(command))}")
        found = [_start(code) for _ in range(REPEATS)]
        yield _row(f"{command}, imports", [each.processor for each in found], found, command, theirs)


def _commands(short: bool, folder: Path) -> Iterator[Row]:
    """Yield rows of whole commands, and of those that run a network until they are ready."""
    rounds = REPEATS if short else 7
    theirs = tuple(_start(_code("import torch, torchvision, timm")).processor for _ in range(REPEATS))
    codes = np.arange(244) % 2
    X = np.random.default_rng(0).standard_normal((244, 1280)).astype(np.float32) + 0.1 * codes[:, None]
    drawn = write_cache(folder / "drawn.h5", X, [Target("label", "class", codes, ("a", "b"))])
    for arguments in LIGHT:
        found = [_start(_command(arguments)) for _ in range(rounds)]
        yield _row(f"bottleneck {' '.join(arguments)}", [each.processor for each in found], found, "", theirs)
    heads = ["fit-head", str(drawn), "-o", str(folder / "heads")]
    found = [_start(_command(heads)) for _ in range(rounds)]
    what = "bottleneck fit-head, 244 rows of 1,280 features"
    yield _row(what, [each.processor for each in found], found, "fit-head")
    (head,) = (folder / "heads").glob("*.safetensors")
    found = [_start(_command(["evaluate", str(head), str(drawn)])) for _ in range(rounds)]
    what = "bottleneck evaluate of a head, 244 rows of 1,280 features"
    yield _row(what, [each.processor for each in found], found, "evaluate")

    earlier, images = write_photographs(folder / "earlier", 24), write_photographs(folder / "images", 8)
    cache, fitted = str(folder / "earlier.h5"), folder / "fitted"
    nodes = ["--node", "bottleneck", "--node", "blocks.5"]  # the second is what fine-tuning one block needs
    _start(_command(["extract", str(earlier), "-o", cache, "--val-fraction", "0.25"]))  # stores the graph
    _start(_command(["extract", str(earlier), "-o", cache, *nodes]))
    _start(_command(["fit-head", cache, "-o", str(fitted), "--node", "bottleneck"]))
    (head,) = fitted.glob("*.safetensors")
    new: Callable[[int], list[str]]
    for what, command, new, ready in (
        (
            "extract of 8 photographs, graph stored, until the engine has the first",
            "extract",
            lambda number: ["extract", str(images), "-o", str(folder / f"new{number}.h5")],
            ENGINE,
        ),
        (
            "predict of a head on 8 photographs, graph stored, until the engine has the first",
            "predict",
            lambda number: ["predict", str(head), str(images)],
            ENGINE,
        ),
        (
            "finetune of one block, map cached, until the first step",
            "finetune",
            lambda number: [
                *("finetune", cache, "--head", str(head), "--epochs", "1"),
                *("-o", str(folder / f"tuned{number}.safetensors")),
            ],
            STEP,
        ),
    ):
        found = [_start(_command(new(number), ready)) for number in range(rounds)]
        yield _row(what, [each.processor for each in found], found, command)
        yield _row(what, [each.clock for each in found], found, command, unit="s by the clock")


def _row(
    what: str,
    ours: list[float],
    found: list[Start],
    command: str,
    theirs: tuple[float, ...] = (),
    unit: str = "processor s",
) -> Row:
    """Return the row of a start, judged by the seconds wanted of its command, else beside the usual loop."""
    wanted = WANTED.get(command)
    conditions = f"loads {found[-1].loaded or 'none of the large libraries'}"
    if wanted is not None or not theirs:
        return Row(what, unit, tuple(ours), at_most=wanted, conditions=conditions)
    return Row(what, unit, tuple(ours), theirs, "imports of the usual loop", FEWER, conditions=conditions)


def _code(code: str) -> str:
    return f"{TELL}\n{code}"


def _command(arguments: list[str], ready: tuple[str, str, str] | None = None) -> str:
    """Return code that runs a command; it tells its time when `ready` is called first, else at its end."""
    watch = ""
    if ready is not None:
        module, owner, method = ready
        watch = f"""
import {module}
owner = {module}.{owner}
original = owner.{method}
def watched(*arguments, **options):
    tell()
    return original(*arguments, **options)
owner.{method} = watched
"""
    return f"""{TELL}
sys.argv = {["bottleneck", *arguments]!r}
from bottleneck.cli.main import main
{watch}
main()
"""


def _start(code: str) -> Start:
    """Run Python code in a process of its own. Raises RuntimeError with its last line where that fails."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # as the command sets it before its imports
    environment["PYTHONDONTWRITEBYTECODE"] = ""  # pip compiles modules; here the first of several runs does
    began = time.time()
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = run.stderr.strip().splitlines()
    if run.returncode:
        raise RuntimeError(next((line for line in reversed(lines) if "FOUND" not in line), ""))
    processor, at, loaded = json.loads(next(line for line in lines if line.startswith("FOUND"))[6:])
    return Start(processor, at - began, " ".join(loaded))


if __name__ == "__main__":
    main(rows, __doc__)
