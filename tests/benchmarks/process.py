"""Run functions in processes of their own: the result, the time of cores and the peak memory come out.

    run_child("extraction", "ours", folder=…) calls tests.benchmarks.extraction.ours(folder=…)

Paths become text. Contenders of one measurement do not share libraries, threads or memory that way. Those
that are measured in several rounds keep their process from round to round (`take_turns`), so that each
imports its libraries once.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer
from types import TracebackType

from tests.benchmarks.machine import peak_megabytes, processor_seconds
from tests.benchmarks.measurement import REPEATS

ROOT = Path(__file__).parents[2]
LIMIT = 3600  # seconds
TO_END = 60  # seconds that a process has to end by itself


@dataclass(frozen=True)
class Child:
    """What the function returned; time of cores with imports and children; peak memory of the process.

    The last two are of the process so far, where it was called before.
    """

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
    with Contender(module, function) as contender:
        return contender.call(arguments, timeout)


def take_turns(
    contenders: Mapping[str, tuple[str, str, dict]], rounds: int = REPEATS, numbered: str = ""
) -> dict[str, list[dict]]:
    """Call each contender (module, function, arguments) once a round; return what it gave, by its name.

    numbered : an argument that gets the number of the round.
    """
    found: dict[str, list[dict]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(Contender(module, function))
            for name, (module, function, _) in contenders.items()
        }
        for number in range(rounds):
            for name, (_, _, arguments) in contenders.items():
                given = {**arguments, numbered: number} if numbered else arguments
                found[name].append(started[name].call(given).found)
    return found


class Contender:
    """A process that calls one function as often as it is asked to."""

    def __init__(self, module: str, function: str) -> None:
        self._name = f"{module}.{function}"
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.process", module, function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
        )

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with self._process, self._errors:
            with suppress(BrokenPipeError):
                self._process.stdin.close()  # which ends the process
            try:
                self._process.wait(TO_END if error is None else 0)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def call(self, arguments: Mapping[str, object], timeout: float = LIMIT) -> Child:
        """Call the function once; errors as those of `run_child`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = Event()
        timer = Timer(timeout, lambda: (late.set(), self._process.kill()))
        timer.start()
        try:
            with suppress(BrokenPipeError):  # it has ended: the answer is empty
                print(json.dumps(arguments, default=str), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        finally:
            timer.cancel()
        if answer:
            return Child(**json.loads(answer))
        code = self._process.wait()
        if late.is_set():
            raise subprocess.TimeoutExpired(self._name, timeout)
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:]
        raise RuntimeError(": ".join([f"{self._name} ended with {code}", *last]))


def main() -> None:
    module, function = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    if module != "peers":  # peers have the defaults of their libraries
        from bottleneck.threads import wait_without_spinning

        wait_without_spinning()  # as commands do
    called = getattr(importlib.import_module(f"tests.benchmarks.{module}"), function)
    for line in sys.stdin:
        found = called(**json.loads(line))
        used = {"processor_seconds": processor_seconds(), "megabytes": peak_megabytes()}
        print(json.dumps({"found": found, **used}), file=answers, flush=True)
        _leave_memory()


def _leave_memory() -> None:
    """Free what the last call holds, also on a GPU, which contenders share."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
