"""Run a function in a process of its own: its result, its time of cores and its peak memory come out.

    run_child("extraction", "ours", folder=…) calls tests.benchmarks.extraction.ours(folder=…)

Paths become text. Contenders of one measurement do not share libraries, threads or memory that way.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.machine import peak_megabytes, processor_seconds

ROOT = Path(__file__).parents[2]
LIMIT = 3600  # seconds


@dataclass(frozen=True)
class Child:
    """What the function returned; time of cores with imports and children; peak memory of the process."""

    found: dict
    processor_seconds: float
    megabytes: float


def run_child(module: str, function: str, timeout: float = LIMIT, **arguments: object) -> Child:
    """Call `tests.benchmarks.MODULE.FUNCTION(**arguments)`, which returns what JSON can hold.

    Raises
    ------
    RuntimeError
        The process failed; the message is the last line that it wrote.
    subprocess.TimeoutExpired
        It took more than `timeout` seconds and was ended.
    """
    words = [sys.executable, "-m", "tests.benchmarks.process", module, function]
    done = subprocess.run(
        [*words, json.dumps(arguments, default=str)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{module}.{function}: {lines[-1]}")
    return Child(**json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    module, function, arguments = sys.argv[1:]
    if module != "peers":  # peers have the defaults of their libraries
        from bottleneck.threads import wait_without_spinning

        wait_without_spinning()  # as commands do
    called = getattr(importlib.import_module(f"tests.benchmarks.{module}"), function)
    found = called(**json.loads(arguments))
    used = {"processor_seconds": processor_seconds(), "megabytes": peak_megabytes()}
    print(json.dumps({"found": found, **used}))


if __name__ == "__main__":
    main()
