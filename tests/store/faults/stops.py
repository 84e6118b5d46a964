"""Stop at every step of the protocol, and cut parts and log at random places: the last commit, or a refusal.

    python -m tests.store.faults.stops [--long]

A stop is a process that ends at the n-th write, sync, rename, deletion … A cut is a truncation of one file
of an interrupted run. Afterwards nothing may be read that was never computed.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from bottleneck.errors import CacheError
from bottleneck.store import committer
from bottleneck.store.layout import parts_folder
from bottleneck.store.reader import FeatureCache
from tests.helpers.world import MAP, A, World, content, row_of, world_of
from tests.store.faults.runner import main

NODES = [A, MAP]
STEPS = ("write", "fsync", "replace", "unlink", "ftruncate", "mkdir", "rmdir")  # of the os module
PART_ROWS = 4


def small_world() -> World:
    """Enough for three parts."""
    return world_of(9)


def stopped_run(path: Path, before: int | None, settle: Callable[[], World]) -> tuple[int, int]:
    """Run in a child that ends just before its `before`-th step; (exit code, number of steps taken)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        steps = 0

        def counted(call):
            def step(*arguments, **keywords):
                nonlocal steps
                if steps == before:
                    os._exit(9)
                steps += 1
                return call(*arguments, **keywords)

            return step

        committer.PART_ROWS = PART_ROWS
        world = settle()
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        world.extract(path, NODES)
        total = steps
        steps = -(10**9)
        os.write(writer, str(total).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        taken = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(taken or -1)


def lies(path: Path) -> bool:
    """True where a reader sees a row that the network never gave; refusing is no lie."""
    try:
        with FeatureCache(path) as cache:
            for name, node in cache.nodes.items():
                rows = cache.features(name).read(0, len(cache.images))
                for digest, row in zip(cache.images.digests(), rows, strict=True):
                    if (row != row_of(digest, node).astype(row.dtype)).any():
                        return True
    except CacheError:
        pass
    return False


def stop_everywhere(folder: Path, most: int | None, dice: random.Random) -> dict:
    """Stop a first run, and a run over an older cache, before each of their steps (or `most` of them)."""
    figures = {
        "steps of the protocol": 0,
        "stops": 0,
        "defect: lies after a stop": 0,
        "defect: not recovered": 0,
    }
    for older in (False, True):
        template = folder / f"older-{older}"
        template.mkdir()
        if older:
            first = small_world()
            first.put("a/gone.jpg", b"gone")
            del first.files["a/0000.jpg"]
            first.extract(template / "cache.h5", NODES)
        counted = shutil.copytree(template, folder / f"count-{older}")
        _, steps = stopped_run(counted / "cache.h5", None, small_world)
        figures["steps of the protocol"] += steps
        places = range(steps) if most is None else sorted(dice.sample(range(steps), most))
        for step in places:
            place = shutil.copytree(template, folder / f"stop-{older}-{step}")
            code, _ = stopped_run(place / "cache.h5", step, small_world)
            figures["stops"] += code == 9
            figures["defect: lies after a stop"] += lies(place / "cache.h5")
            world = small_world()
            world.extract(place / "cache.h5", NODES)
            whole = content(place / "cache.h5") == world.expected(NODES)
            left = {"cache--blocks.3.h5", "cache.h5", "cache.h5.lock"} ^ set(os.listdir(place))
            figures["defect: not recovered"] += not whole or bool(left)
            shutil.rmtree(place)
    return figures


def cut_everywhere(folder: Path, rounds: int, dice: random.Random) -> dict:
    """Truncate a random file of an interrupted run at a random place."""
    figures = {
        "cuts": 0,
        "cuts recovered": 0,
        "cuts refused": 0,
        "defect: lies after a cut": 0,
        "defect: not mended": 0,
        "defect: unclear refusal": 0,
    }
    template = folder / "interrupted"
    template.mkdir()
    _, steps = stopped_run(folder / "cut-count.h5", None, small_world)
    last = 0
    while not _parts(template):
        shutil.rmtree(template)
        template.mkdir()
        last += 1
        stopped_run(
            template / "cache.h5", steps - last * 8, small_world
        )  # before the end, parts not yet deleted
    for number in range(rounds):
        place = shutil.copytree(template, folder / f"cut-{number}")
        files = sorted(entry for entry in parts_folder(place / "cache.h5").iterdir() if entry.name != "pid")
        victim = dice.choice([*files, parts_folder(place / "cache.h5") / "log"])
        os.truncate(victim, dice.randrange(victim.stat().st_size))
        figures["cuts"] += 1
        figures["defect: lies after a cut"] += lies(place / "cache.h5")
        world = small_world()
        try:
            world.extract(place / "cache.h5", NODES)
            figures["cuts recovered"] += 1
        except CacheError as error:
            figures["cuts refused"] += 1
            figures["defect: unclear refusal"] += victim.name not in error.message
            victim.unlink()  # what the message says to do
            world.extract(place / "cache.h5", NODES)
        figures["defect: not mended"] += content(place / "cache.h5") != world.expected(NODES)
        shutil.rmtree(place)
    return figures


def _parts(folder: Path) -> int:
    """Parts committed in an interrupted run."""
    return len(list(folder.glob("cache.h5.parts/part-*.h5")))


def run(folder: Path, rounds: int, seed: int = 0) -> dict:
    """Stop at every step of the protocol, and truncate parts and log."""
    dice = random.Random(seed)
    thorough = rounds >= 500
    return stop_everywhere(folder, None if thorough else rounds // 4, dice) | cut_everywhere(
        folder, rounds, dice
    )


if __name__ == "__main__":
    main(run, short=12, long=500)
