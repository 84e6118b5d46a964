"""What does `extract --ray` cost beyond its start, beside one process?

    python -m tests.benchmarks.ray [--short]

Ray is started on this machine for each run, with one worker on all cores. Each contender extracts a quarter
of the photographs and all of them, each time in a process of its own, and the difference counts: starting
costs both the same. Time of cores is that of all processes, Ray's own included, sampled from outside.
Contenders take turns. Ray gives its workers a niceness of 15; one contender has 0.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil

from tests.benchmarks.images import write_photographs
from tests.benchmarks.machine import load
from tests.benchmarks.measurement import FEWER, NOT_INSTALLED, REPEATS, Row, main
from tests.benchmarks.process import run_child

MARK = "BOTTLENECK_BENCHMARK_MARK"
SAMPLED = 0.1  # seconds between looks at the processes
FORKED = 2.0  # seconds after which a process surely runs its own program, with its own environment
WANTED = 1 / 1.1  # of one process: at most 10 % more time
ALONE, RAY, EAGER = "one process", "--ray", "--ray, niceness 0"
ENVIRONMENTS = {ALONE: {}, RAY: {}, EAGER: {"RAY_worker_niceness": "0"}}


def rows(short: bool) -> Iterator[Row]:
    """Time of cores and rate, on Ray and beside it."""
    what = "extract --ray beyond its start"
    if find_spec("ray") is None:
        yield Row(what, reason=NOT_INSTALLED)
        return
    count = 400 if short else 2000
    before = load()
    with tempfile.TemporaryDirectory(prefix="bottleneck-ray-") as scratch:
        folder = write_photographs(Path(scratch, "photographs"), count)
        costs, rates = measured(folder, count)
    conditions = f"{count} photographs, {count // 4} taken off; load {before:.1f} to {load():.1f}"
    for name in (RAY, EAGER):
        told = f"extract {name}, beyond its start"
        yield Row(
            f"{told}, of cores",
            "processor ms an image",
            costs[name],
            costs[ALONE],
            ALONE,
            FEWER,
            WANTED,
            conditions=conditions,
        )
        yield Row(
            f"{told}, by the clock",
            "images/s",
            rates[name],
            rates[ALONE],
            ALONE,
            at_least=WANTED,
            conditions=conditions,
        )


def measured(folder: Path, count: int) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """Return processor milliseconds an image, and images a second, of each contender in each round."""
    few, costs, rates = count // 4, dict.fromkeys(ENVIRONMENTS, ()), dict.fromkeys(ENVIRONMENTS, ())
    run(ALONE, folder, few)  # builds the engine
    for _ in range(REPEATS):
        for name in ENVIRONMENTS:
            (cores, clock), (all_cores, all_clock) = (run(name, folder, limit) for limit in (few, count))
            costs[name] += (1000 * (all_cores - cores) / (count - few),)
            rates[name] += ((count - few) / (all_clock - clock),)
    return costs, rates


def run(name: str, folder: Path, limit: int) -> tuple[float, float]:
    """Return the processor seconds of all processes of one extraction, and its seconds without start-up."""
    with (
        tempfile.TemporaryDirectory() as place,
        environment(RAY_TMPDIR=place, **ENVIRONMENTS[name]),
        sampled() as spent,
    ):
        found = run_child("ray", "extraction", folder=folder, limit=limit, on_ray=name != ALONE).found
    return sum(spent.values()), found["seconds"]


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment for the block; RAY_ADDRESS is taken away."""
    before = dict(os.environ)
    os.environ.update(variables)
    os.environ.pop("RAY_ADDRESS", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def sampled() -> Iterator[dict[int, float]]:
    """Yield the processor seconds, by process, of those that are started in the block."""
    mark, spent, others = uuid.uuid4().hex, dict[int, float](), set(psutil.pids())
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLED):
            for pid in set(psutil.pids()) - others:
                try:
                    process = psutil.Process(pid)
                    if pid not in spent and process.environ().get(MARK) != mark:
                        if time.time() - process.create_time() > FORKED:
                            others.add(pid)
                        continue
                    times = process.cpu_times()
                    spent[pid] = times.user + times.system
                except psutil.Error:
                    continue

    with environment(**{MARK: mark}):
        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield spent
        finally:
            ended.set()
            thread.join()


# ---- in a process of its own


def extraction(folder: str, limit: int, on_ray: bool) -> dict:
    """One extraction: its seconds without start-up."""
    from bottleneck import extract

    with tempfile.TemporaryDirectory() as caches:
        result = extract(folder, f"{caches}/c.h5", limit=limit, ray="auto" if on_ray else None)
    used = {note.code for note in result.notes} >= {"ray-local", "ray-workers"}
    assert (result.computed, result.failed, used) == (limit, 0, on_ray)
    return {"seconds": result.seconds}


if __name__ == "__main__":
    main(rows, __doc__)
