"""Run a target in a child process with limits of memory and time, and tell what became of each input.

Good is a result, or one of our own errors. Anything else is a finding: another exception, a crash, more
processor time than SECONDS, more memory than MEMORY. Its input is saved as a reproducer.

Run as `python -m tests.fuzz.harness TARGET SEED INPUTS SECONDS FOLDER WORK`, this module is the child.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given
from hypothesis.strategies import SearchStrategy

MEMORY = 2 << 30  # bytes of address space beyond those of the warm process
SECONDS = 20.0  # processor time of one input
STILL = 240.0  # seconds without a new input after which the child counts as hanging
BATCH = 200  # inputs that hypothesis draws at a time
KEPT = 20  # reproducers of one kind of finding


@dataclass
class Tally:
    """What became of the inputs. findings : kind → number."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # processor seconds

    def add(self, line: dict[str, Any]) -> None:
        """Take over what a child counted."""
        self.inputs += line["inputs"]
        self.outcomes.update(line["outcomes"])
        self.findings.update(line["findings"])
        self.slowest = max(self.slowest, line["slowest"])


class Overtime(BaseException):
    """An input took too much processor time."""


def fuzz(target: str, folder: Path, *, minutes: float = 0, inputs: int = 0, seed: int = 0) -> Tally:
    """Fuzz `target` for so many minutes, or with so many inputs; save reproducers in `folder`."""
    tally, until = Tally(), time.monotonic() + 60 * minutes
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        seconds = until - time.monotonic() if minutes else 0
        left = inputs - tally.inputs if inputs else 0
        if (minutes and seconds <= 1) or (inputs and left <= 0):
            return tally
        _one_child(target, folder, seed, left, seconds, tally)
        seed += 1


def _one_child(target: str, folder: Path, seed: int, inputs: int, seconds: float, tally: Tally) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as work,
        open(f"{work}/errors", "w+b") as errors,
        open(f"{work}/counts", "w+b") as counts,
    ):
        command = [sys.executable, "-m", "tests.fuzz.harness", target]
        command += [*map(str, (seed, inputs, seconds)), str(folder.absolute()), work]
        limits = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "BOTTLENECK_CACHE": f"{work}/graphs"}
        child = subprocess.Popen(command, stdout=counts, stderr=errors, env=os.environ | limits)
        last, moved = -1.0, time.monotonic()
        while child.poll() is None:
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                now = os.stat(f"{work}/current").st_mtime_ns
                last, moved = now, (moved if now == last else time.monotonic())
            if time.monotonic() - moved > STILL:
                child.kill()
        counts.seek(0)
        for line in counts:
            tally.add(json.loads(line))
        if child.returncode and not os.path.exists(f"{work}/current"):
            errors.seek(0)
            raise RuntimeError(errors.read().decode(errors="replace"))
        if child.returncode:
            errors.seek(0)
            text = errors.read().decode(errors="replace")
            how = f"signal {-child.returncode}" if child.returncode < 0 else text.strip().rpartition("\n")[2]
            tally.inputs += 1
            tally.findings[f"the process ended: {how}"] += 1
            with contextlib.suppress(OSError):
                _keep(folder, target, "crash", Path(f"{work}/current").read_bytes(), text)


def _keep(folder: Path, target: str, kind: str, data: bytes, text: str) -> None:
    """Save a reproducer and what it raised."""
    name = f"{target}-{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
    (folder / name).write_bytes(data)
    (folder / f"{name}.txt").write_text(text)


def child(name: str, seed: int, inputs: int, seconds: float, folder: Path, work: Path) -> None:
    """Try inputs until their number or the time is reached, and print the counts of each batch as JSON."""
    from bottleneck.errors import first_line
    from tests.fuzz.targets import TARGETS

    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no count
    (work / "files").mkdir()
    os.chdir(work)
    target = TARGETS[name](work / "files")
    for data in target.seeds():
        assert target.outcome(data) == "result", "a seed is refused"
    _bound_memory()
    signal.signal(signal.SIGPROF, _overtime)
    until = time.monotonic() + (seconds or 1e9)
    known: Counter[str] = Counter()
    left = inputs or sys.maxsize

    def attempt(data: bytes, batch: Tally) -> None:
        (work / "current").write_bytes(data)
        started = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            batch.outcomes[target.outcome(data)] += 1
        except BaseException as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            frames = traceback.extract_tb(error.__traceback__)
            at = next((f for f in reversed(frames) if "bottleneck/" in f.filename), frames[-1])
            kind = f"{type(error).__name__} in {Path(at.filename).name}:{at.lineno}: {first_line(error)[:80]}"
            batch.findings[kind] += 1
            known[kind] += 1
            if known[kind] <= KEPT:
                _keep(folder, name, type(error).__name__, data, traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        batch.inputs += 1
        batch.slowest = max(batch.slowest, time.process_time() - started)

    while left > 0 and time.monotonic() < until:
        batch = Tally()
        for data in _drawn(target.inputs(), seed, min(BATCH, left)):
            if time.monotonic() < until:
                attempt(data, batch)
        left -= max(1, batch.inputs)
        seed = seed + 1_000_003
        print(json.dumps(vars(batch)), file=out, flush=True)


def _drawn(inputs: SearchStrategy[bytes], seed: int, count: int) -> list[bytes]:
    """Return about `count` inputs; equal seeds give equal inputs."""
    found: list[bytes] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def draw(data: bytes) -> None:
        found.append(data)

    draw()
    return found


def _overtime(*_: object) -> None:
    raise Overtime(f"more than {SECONDS:g} s of processor time")


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    target_name, first, most, longest, kept, place = sys.argv[1:]
    child(target_name, int(first), int(most), float(longest), Path(kept), Path(place))
