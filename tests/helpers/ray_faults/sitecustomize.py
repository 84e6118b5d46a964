"""Faults of Ray workers. Python imports this at its start in processes that have this folder in PYTHONPATH.

The variable `BOTTLENECK_TEST_FAULTS` names a folder. Files in it are the faults: `kill` ends one process,
`wrong` changes the rows, `hold` stops workers for a minute or until the file is gone, `slow` holds each up,
`poison` ends each process that gets an image which it names, one a line.
"""

import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

FAULTS = "BOTTLENECK_TEST_FAULTS"
PATCHED = "bottleneck.extraction.ray_worker"
MOST_HELD = 3000  # times 0.02 seconds


class Finder(importlib.abc.MetaPathFinder):
    """Finds the module of workers, and gives it faults when it is imported."""

    def find_spec(self, name, path, target=None):
        if name != PATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            give_faults(module.Worker)

        spec.loader.exec_module = exec_module
        return spec


def give_faults(worker):
    """Let `Worker._computed` have the faults that are switched on."""
    computed, folder = worker._computed, Path(os.environ[FAULTS])

    def faulty(self, part):
        with suppress(FileNotFoundError):
            (folder / "kill").unlink()  # by one process alone
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(MOST_HELD):
            if not (folder / "hold").exists():
                break
            time.sleep(0.02)
        if (folder / "slow").exists():
            time.sleep(0.05)
        with suppress(FileNotFoundError):
            if set(part.keys) & set((folder / "poison").read_text().split()):
                os._exit(1)
        items, trunk = computed(self, part)
        if (folder / "wrong").exists():
            for item in items:
                item.features = tuple(rows + 1 for rows in item.features)
        return items, trunk

    worker._computed = faulty


if FAULTS in os.environ:
    sys.meta_path.insert(0, Finder())
