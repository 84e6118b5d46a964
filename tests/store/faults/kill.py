"""kill −9 at random moments, then resume: no committed row is lost or computed twice, nothing is left over.

    python -m tests.store.faults.kill [--long]

Each round starts a run in a child, kills it after a random time, reads what is there, and lets another run
finish.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from bottleneck.errors import CacheError
from bottleneck.store import committer
from bottleneck.store.layout import parts_folder
from bottleneck.store.parts import read_log, require_intact
from bottleneck.store.reader import FeatureCache
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import MAP, A, B, content, digest_of, world_of
from tests.store.faults.runner import main

IMAGES = 24
NODES = [A, B, MAP]
DEFECTS = (
    "defect: committed rows lost",
    "defect: rows computed twice",
    "defect: files that do not open",
    "defect: final content differs",
    "defect: files left over",
)
DELAY = 0.001  # of the network, for each batch, so that kills fall between commits too


def start(path: Path) -> int:
    """Begin a run in a child; it commits a part every few images."""
    child = os.fork()
    if child:
        return child
    try:
        committer.PART_ROWS = 5
        world = world_of(IMAGES)
        add = CacheWriter.add

        def slow_add(*arguments, **keywords):
            time.sleep(DELAY)
            add(*arguments, **keywords)

        CacheWriter.add = slow_add
        world.extract(path, NODES)
    finally:
        os._exit(0)


def committed(path: Path) -> set[bytes]:
    """Digests whose rows are committed, by the log; opening each part."""
    found: set[bytes] = set()
    folder = parts_folder(path)
    state = read_log(folder)
    for entry in () if state is None else state.parts:
        require_intact(folder, entry, thorough=True)
    if path.exists() or (state is not None and state.parts):
        with FeatureCache(path) as cache:
            found |= set(cache.images.digests())
    return found


def run(folder: Path, rounds: int, seed: int = 0) -> dict:
    """Kill −9 at random moments."""
    dice = random.Random(seed)
    figures = dict.fromkeys(["runs", "killed", "killed after a commit", *DEFECTS], 0)
    world = world_of(IMAGES)
    expected = world.expected(NODES)
    span = _duration(folder)
    for number in range(10 * rounds):  # a run that ended before its kill does not count
        if figures["killed"] == rounds:
            break
        path = folder / f"{number}" / "cache.h5"
        path.parent.mkdir()
        child = start(path)
        time.sleep(dice.uniform(0, span))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        figures["runs"] += 1
        figures["killed"] += os.WIFSIGNALED(status)
        try:
            before = committed(path)
        except CacheError as error:
            print(error)
            figures["defect: files that do not open"] += 1
            continue
        figures["killed after a commit"] += bool(before) and os.WIFSIGNALED(status)
        world.computed.clear()
        world.extract(path, NODES)
        again = {digest for _, digest in world.computed}
        figures["defect: committed rows lost"] += len(before & again)
        figures["defect: rows computed twice"] += len(world.computed) - len(set(world.computed))
        figures["defect: final content differs"] += content(path) != expected
        names = sorted(os.listdir(path.parent))
        figures["defect: files left over"] += names != ["cache--blocks.3.h5", "cache.h5", "cache.h5.lock"]
    assert len({digest_of(data) for data, _ in world.files.values()}) == IMAGES + 1
    return figures


def _duration(folder: Path) -> float:
    """Seconds of an undisturbed run."""
    (folder / "whole").mkdir()
    started = time.perf_counter()
    os.waitpid(start(folder / "whole" / "cache.h5"), 0)
    return time.perf_counter() - started


if __name__ == "__main__":
    main(run, short=4, long=200)
