"""Two writers of one cache started together: one wins, the other is told so at once, none hangs.

python -m tests.store.faults.writers [--long]
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bottleneck.errors import CacheError
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import ROOT, SPEC, A, content, world_of
from tests.store.faults.runner import main

SECONDS = 60.0
WON, REFUSED, STRANGE = 0, 3, 4


def start(path: Path, go: int) -> int:
    """A child that writes the cache as soon as its pipe closes, and holds the lock for a moment."""
    child = os.fork()
    if child:
        return child
    code = STRANGE
    try:
        os.read(go, 1)
        with CacheWriter(path, SPEC, [A], ROOT) as writer:
            world = world_of(3)
            world.feed(writer)
            time.sleep(0.1)
            writer.finish(world.samples())
        code = WON
    except CacheError as error:
        code = REFUSED if "Another writer" in error.message else STRANGE
    finally:
        os._exit(code)


def run(folder: Path, rounds: int, seed: int = 0) -> dict:
    """Start two writers at once."""
    figures = {"rounds": 0, "one won": 0, "both won, one after the other": 0}
    figures |= {"defect: none won": 0, "defect: another error": 0, "defect: hung": 0, "defect: content": 0}
    expected = world_of(3).expected([A])
    for number in range(rounds):
        path = folder / f"{number}.h5"
        ready, go = os.pipe()
        children = [start(path, ready) for _ in range(2)]
        os.close(ready)
        os.write(go, b"go")
        os.close(go)
        codes = [_ended(child) for child in children]
        figures["rounds"] += 1
        figures["one won"] += sorted(codes) == [WON, REFUSED]
        figures["both won, one after the other"] += codes == [WON, WON]
        figures["defect: none won"] += WON not in codes
        figures["defect: another error"] += STRANGE in codes
        figures["defect: hung"] += None in codes
        figures["defect: content"] += content(path) != expected
    return figures


def _ended(child: int) -> int | None:
    """Exit code of a child, None where it had to be killed."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    main(run, short=4, long=100)
