"""One writer at a time: a lock on NAME.h5.lock, which the system releases however the process ends."""

from __future__ import annotations

from pathlib import Path

import filelock

from bottleneck.errors import CacheError
from bottleneck.store.files import as_cache_error
from bottleneck.store.layout import parts_folder
from bottleneck.store.parts import PID


def locked(path: Path, timeout: float = 0) -> filelock.BaseFileLock:
    """Hold the lock of the cache `path`; a lock file that nobody holds is no obstacle.

    Raises CacheError at once (or after `timeout` seconds) where another process holds it.
    """
    lock = filelock.FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout)
    except filelock.Timeout:
        raise CacheError(
            f"Another writer{_holder(path)} is at work on {path}.", "Wait until it has finished, or stop it."
        ) from None
    except OSError as error:
        raise as_cache_error(error, path) from error
    return lock


def _holder(path: Path) -> str:
    try:
        return f" (process {int((parts_folder(path) / PID).read_text())})"
    except (OSError, ValueError):
        return ""
