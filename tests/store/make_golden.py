"""Writes the cache that tests/store/golden keeps a copy of: `python -m tests.store.make_golden FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from bottleneck.store import committer
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import MAP, ROOT, SPEC, VIEWED, A, world_of


def make(folder: Path) -> Path:
    """cache.h5 with two vector nodes, views of one, a map, samples, labels, covariates and a failure."""
    world_of(3).extract(folder / "cache.h5", [A, VIEWED, MAP])
    (folder / "cache.h5.lock").unlink()
    return folder


def interrupted(folder: Path) -> Path:
    """The parts folder of a run that ended before it finished."""
    usual, committer.PART_ROWS = committer.PART_ROWS, 2
    try:
        with CacheWriter(folder / "cache.h5", SPEC, [A], ROOT) as writer:
            world_of(3).feed(writer)
    finally:
        committer.PART_ROWS = usual
    return folder / "cache.h5.parts"


if __name__ == "__main__":
    make(Path(sys.argv[1]))
