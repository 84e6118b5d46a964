"""Processor time that commands spend on imports before they work, and the libraries that they load.

    python -m tests.benchmarks.startup

Each line is the median of 5 fresh processes. Whole commands are those that need no input; of the others the
module that does their work is imported, so what they import later, inside functions, is not counted.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

from tests.benchmarks.machine import print_machine

REPEATS = 5
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
TELL = f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"


def main() -> None:
    """Print a table: what was started, processor seconds, heavy libraries that were loaded."""
    print_machine()
    print(f"{'started':24}{'seconds':>8}  loaded")
    for arguments in COMMANDS:
        code = f"import sys; sys.argv[1:] = {arguments!r}\nfrom bottleneck.cli.main import main\n"
        _row(" ".join(arguments), f"{code}try: main()\nexcept SystemExit: pass\n{TELL}")
    for command, module in MODULES.items():
        _row(f"{command} (imports)", f"import sys, {module}\n{TELL}")


def _row(name: str, code: str) -> None:
    runs = [_run(code) for _ in range(REPEATS)]
    seconds = statistics.median(seconds for seconds, _ in runs)
    print(f"{name:24}{seconds:8.2f}  {runs[0][1] or '-'}", flush=True)


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
    main()
