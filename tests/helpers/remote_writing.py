"""Write the cache of a `world` to a URL; as a program, be killed after some commits:

python -m tests.helpers.remote_writing URL COMMITS
"""

import os
import signal
import sys

from bottleneck.remote.path import path_of
from bottleneck.store import committer, staging
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import MAP, ROOT, SPEC, A, B, world_of

COUNT = 24
NODES = (A, B, MAP)
PART_ROWS = 5


def write(url, world, nodes=NODES, tell=lambda text: None, **finish):
    """Extract a world to a URL, and return the notes of that by their codes."""
    with staging.staged(path_of(url), tell) as place:
        with CacheWriter(place.path, SPEC, nodes, ROOT, committed=place.upload) as writer:
            world.feed(writer)
            writer.finish(world.samples(), **finish)
        place.finish()
    return {note.code: note for note in place.told([])}


def _be_killed(url, commits):
    """Begin to write; kill this process when `commits` are uploaded."""
    left, upload = commits, staging.Staging.upload

    def killing(place):
        nonlocal left
        upload(place)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    committer.PART_ROWS, staging.Staging.upload = PART_ROWS, killing
    write(url, world_of(COUNT))


if __name__ == "__main__":
    _be_killed(sys.argv[1], int(sys.argv[2]))
