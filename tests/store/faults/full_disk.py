"""A disk that is full after so many bytes: one clear error, and the next run completes.

    python -m tests.store.faults.full_disk [--long]

The room is taken away under `os.write`, through which all bytes of the store go, HDF5's too.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

from bottleneck import files
from bottleneck.errors import CacheError
from bottleneck.store import committer
from tests.helpers.world import MAP, A, content, world_of
from tests.store.faults.runner import main

NODES = [A, MAP]


class Disk:
    """Stands before the writes of the store and has room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room, self.written = room, 0

    def write(self, descriptor: int, data: memoryview) -> int:
        """Like os.write; the last write that fits in part is cut short, as disks do."""
        fits = min(len(data), self.room - self.written)
        if fits <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.write(descriptor, data[:fits])
        self.written += written
        return written


def attempt(path: Path, room: int) -> tuple[int, str | None]:
    """Run on a disk with `room` bytes; bytes written and the error."""
    disk, write, rows = Disk(room), files.write, committer.PART_ROWS
    files.write, committer.PART_ROWS = disk.write, 4
    try:
        world_of(9).extract(path, NODES)
        return disk.written, None
    except CacheError as error:
        return disk.written, str(error)
    finally:
        files.write, committer.PART_ROWS = write, rows


def run(folder: Path, rounds: int, seed: int = 0) -> dict:
    """ENOSPC at offsets spread over all that a run writes."""
    dice = random.Random(seed)
    (folder / "whole").mkdir()
    total, _ = attempt(folder / "whole" / "cache.h5", 1 << 40)
    expected = world_of(9).expected(NODES)
    figures = {"bytes that a run writes": total, "offsets": 0, "clean errors": 0}
    figures |= {"defect: another outcome": 0, "defect: not completed": 0, "defect: files left over": 0}
    for number in range(rounds):
        room = int(total * (number + dice.random()) / rounds)
        place = folder / f"{number}"
        place.mkdir()
        _, error = attempt(place / "cache.h5", room)
        figures["offsets"] += 1
        clean = error is not None and "disk is full" in error and "\n" not in error
        figures["clean errors"] += clean
        figures["defect: another outcome"] += not clean
        world_of(9).extract(place / "cache.h5", NODES)
        figures["defect: not completed"] += content(place / "cache.h5") != expected
        left = {"cache--blocks.3.h5", "cache.h5", "cache.h5.lock"} ^ set(os.listdir(place))
        figures["defect: files left over"] += bool(left)
        shutil.rmtree(place)
    return figures


if __name__ == "__main__":
    main(run, short=8, long=50)
