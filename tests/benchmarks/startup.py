"""Time of cores that commands spend on imports before they work, and the libraries that they load.

    python -m tests.benchmarks.startup [--short]

Each figure is of a fresh process. Commands that need no input run as a whole, and so does `fit-head` of 244
drawn rows of 1,280 features; of the others the module that does their work is imported, so what they import
later, inside functions, is not counted. The peer imports what the usual loop needs: torch, torchvision, timm.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bottleneck.samples import Target
from tests.benchmarks.measurement import FEWER, REPEATS, Row, main
from tests.helpers.caches import write_cache

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
COMMANDS = (["--version"], ["--help"], ["fit-head", "--help"], ["backbones", "lite"])
MODULES = {
    "extract": "bottleneck.extraction.extract",
    "fit-head": "bottleneck.fitting.fit_heads",
    "evaluate": "bottleneck.models.evaluate",
    "predict": "bottleneck.models.predict",
    "finetune": "bottleneck.training.finetune",
}
WANTED = {"extract": 1.5, "fit-head": 1.0, "evaluate": 1.0, "predict": 1.0}  # seconds
TELL = f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"


def rows(short: bool) -> Iterator[Row]:
    """Processor seconds of each start; the peer's are repeated in each row."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _rows(short, Path(folder))


def _rows(short: bool, folder: Path) -> Iterator[Row]:
    codes = np.arange(244) % 2
    X = np.random.default_rng(0).standard_normal((244, 1280)).astype(np.float32) + 0.1 * codes[:, None]
    cache = write_cache(folder / "drawn.h5", X, [Target("label", "class", codes, ("a", "b"))])
    whole = ["fit-head", str(cache), "-o", str(folder / "heads"), "--json"]
    started: dict[str, str] = {}
    for arguments in (*COMMANDS, whole):
        code = f"import sys; sys.argv[1:] = {arguments!r}\nfrom bottleneck.cli.main import main\n"
        name = "fit-head, 244 rows of 1,280 features" if arguments is whole else " ".join(arguments)
        started[name] = f"{code}try: main()\nexcept SystemExit: pass\n{TELL}"
    for command, module in MODULES.items():
        started[command] = f"import sys, {module}\n{TELL}"
    started["the usual loop"] = f"import sys, torch, torchvision, timm\n{TELL}"
    seconds: dict[str, list[float]] = {}
    loaded: dict[str, str] = {}
    for _ in range(REPEATS if short else 7):
        for name, code in started.items():
            took, loaded[name] = _run(code)
            seconds.setdefault(name, []).append(took)
    theirs = tuple(seconds.pop("the usual loop"))
    for name, values in seconds.items():
        what = f"{name}, imports" if name in MODULES else f"bottleneck {name}"
        wanted = f"wanted: at most {WANTED[name]:g} s; " if name in WANTED else ""
        conditions = f"{wanted}loads {loaded[name] or 'none of the large libraries'}"
        yield Row(
            what,
            "processor s",
            tuple(values),
            theirs,
            "imports of the usual loop",
            FEWER,
            conditions=conditions,
        )


def _run(code: str) -> tuple[float, str]:
    """Run Python code in a process of its own; return its processor seconds and the libraries it names."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, run.stdout.rpartition("LOADED")[2].strip()


if __name__ == "__main__":
    main(rows, __doc__)
