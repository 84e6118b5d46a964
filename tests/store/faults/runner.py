"""What the fault scripts share: their command line, and a child that can die without harm."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def main(run: Callable[[Path, int, int], dict], short: int, long: int) -> None:
    """Run `run(folder, rounds, seed)` as a script and print its figures; fail where any is a defect."""
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--long", action="store_true", help=f"{long} rounds instead of {short}")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # also under nohup, whose children ignore some
        signal.signal(number, signal.SIG_DFL)
    started = time.perf_counter()
    with scratch() as folder:
        figures = run(folder, long if arguments.long else short, arguments.seed)
    for name, value in figures.items():
        print(f"{name:40} {value}")
    print(f"{'seconds':40} {time.perf_counter() - started:.1f}")
    defects = {name: value for name, value in figures.items() if name.startswith("defect") and value}
    raise SystemExit(f"{defects}" if defects else 0)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes when done."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def in_child(action: Callable[[], object], seconds: float = 30.0) -> str:
    """Run `action` in a fork: "true", "false" by its result, else "error", "crash" or "hang"."""
    child = os.fork()
    if child == 0:
        signal.alarm(0)
        try:
            code = 0 if action() else 1
        except BaseException:
            code = 2
        os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {0: "true", 1: "false", 2: "error"}.get(code, "crash")
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang"
