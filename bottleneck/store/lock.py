"""One writer at a time: a lock on NAME.h5.lock, which the system releases however the process ends."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import filelock

from bottleneck.errors import CacheError
from bottleneck.files import write_error
from bottleneck.store.layout import parts_folder
from bottleneck.store.parts import PID


class CacheLock:
    """The lock of the cache `path`, held until `release`. A lock file that no process holds is no obstacle.

    The lock file is unlinked while locked; waiters detect the unlinked inode and retry (filelock 3.21 and
    later). It is unlinked only after a run that changed nothing, if the file is new or no cache is beside it.

    Raises CacheError at once, or after `timeout` seconds, if another process holds the lock.
    """

    def __init__(self, path: Path, timeout: float = 0) -> None:
        self._path, self._file = path, Path(f"{path}.lock")
        self._is_new = not self._file.exists()
        self._lock = filelock.FileLock(self._file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=timeout)
        except filelock.Timeout:
            raise CacheError(
                f"Another writer{_holder(path)} is at work on {path}.",
                "Wait until it has finished, or stop it.",
            ) from None
        except OSError as error:
            raise write_error(error, path) from error
        self._before = _stamp(path)

    def release(self) -> None:
        """Release the lock, and delete its file if it guards nothing."""
        idle = self._before == _stamp(self._path) and not parts_folder(self._path).exists()
        unneeded = idle and (self._is_new or self._before is None)
        if unneeded and not isinstance(self._lock, filelock.SoftFileLock):  # deletes its file itself
            with suppress(OSError):  # Windows does not delete open files
                self._file.unlink()
        self._lock.release()

    def __enter__(self) -> CacheLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return a value that changes when the file is replaced."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _holder(path: Path) -> str:
    try:
        return f" (process {int((parts_folder(path) / PID).read_text())})"
    except (OSError, ValueError):
        return ""
