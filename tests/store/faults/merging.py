"""kill −9 at random moments of a merge, then merge again: every cache is whole, and nothing is left over.

    python -m tests.store.faults.merging [--long]

Each round merges into a new file or extends one of the caches, in a child that is killed after a random
time. The caches that were there must read as before (or, the extended one, as the union); the next merge must
end in the union, which an extraction then finds complete.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from bottleneck.errors import CacheError
from bottleneck.store import layout
from bottleneck.store.merge import merge
from bottleneck.store.reader import FeatureCache
from tests.helpers.world import MAP, A, B, World, content, world_of
from tests.store.faults.runner import main

IMAGES = 40
NODES = [A, B, MAP]
DEFECTS = (
    "defect: a cache changed",
    "defect: files that do not open",
    "defect: rows computed again",
    "defect: final content differs",
    "defect: files left over",
)
DELAY = 0.002  # for each column, so that kills fall between them


def halves() -> tuple[World, World, World]:
    """Return two worlds and the one of both."""
    both = world_of(IMAGES)
    parts = World(), World()
    for number, key in enumerate(both.keys):
        parts[number % 2].put(key, *both.files[key])
    return *parts, both


def start(caches: list[Path], out: Path) -> int:
    """Begin a merge in a child."""
    child = os.fork()
    if child:
        return child
    try:
        write = layout.write_columns

        def slow(*arguments, **keywords):
            time.sleep(DELAY)
            write(*arguments, **keywords)

        layout.write_columns = slow
        merge(caches, out)
    finally:
        os._exit(0)


def images_of(path: Path) -> list[str]:
    """Return the keys of a cache, after reading all its rows."""
    with FeatureCache(path) as cache:
        for node in cache.nodes:
            cache.features(node).read(0, len(cache.images))
        return sorted(cache.images.key)


def run(folder: Path, rounds: int, seed: int = 0) -> dict:
    """Kill −9 at random moments of a merge."""
    dice = random.Random(seed)
    figures = dict.fromkeys(["runs", "killed", "killed with files written", *DEFECTS], 0)
    span = _duration(folder)
    for number in range(10 * rounds):  # a merge that ended before its kill does not count
        if figures["killed"] == rounds:
            break
        place = folder / f"{number}"
        caches, both = _caches(place)
        out = caches[0] if number % 2 else place / "out.h5"
        before = [images_of(path) for path in caches]
        union = sorted({*before[0], *before[1]})
        child = start(caches, out)
        time.sleep(dice.uniform(0, span))
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        figures["runs"] += 1
        figures["killed"] += killed
        figures["killed with files written"] += killed and len(os.listdir(place)) > 6
        try:
            after = [images_of(path) for path in caches]
            whole = after == before or (out == caches[0] and after == [union, before[1]])
            figures["defect: a cache changed"] += not whole
            if out in caches or not out.exists():  # else the kill fell after the last rename
                merge(caches, out)
        except CacheError as error:
            print(error)
            figures["defect: files that do not open"] += 1
            continue
        both.computed.clear()
        both.extract(out, NODES)
        figures["defect: rows computed again"] += len(both.computed)
        figures["defect: final content differs"] += content(out) != both.expected(NODES)
        mains = {"1.h5", "2.h5", out.name}
        expected = mains | {f"{Path(name).stem}--blocks.3.h5" for name in mains}
        left = {name for name in os.listdir(place) if not name.endswith(".lock")} - expected
        figures["defect: files left over"] += len(left)
    return figures


def _caches(place: Path) -> tuple[list[Path], World]:
    """Write two caches. Returns their paths and the world of both."""
    place.mkdir()
    first, second, both = halves()
    paths = [place / "1.h5", place / "2.h5"]
    for path, world in zip(paths, (first, second), strict=True):
        world.extract(path, NODES)
    return paths, both


def _duration(folder: Path) -> float:
    """Seconds of an undisturbed merge."""
    caches, _ = _caches(folder / "whole")
    started = time.perf_counter()
    os.waitpid(start(caches, folder / "whole" / "out.h5"), 0)
    return time.perf_counter() - started


if __name__ == "__main__":
    main(run, short=4, long=200)
