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
    """The lock of the cache `path`, held from now on; a lock file that nobody holds is no obstacle.

    Where nothing has come of it, neither a cache nor rows, the file goes away again, unless it was there and
    beside a cache. Its holder alone deletes it, and before letting go: who waits for it meanwhile finds that
    what it got has no name any more, and begins anew (filelock 3.21 and later).

    Raises CacheError at once (or after `timeout` seconds) where another process holds it.
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
        """Let go."""
        idle = self._before == _stamp(self._path) and not parts_folder(self._path).exists()
        needless = idle and (self._is_new or self._before is None)
        if needless and not isinstance(self._lock, filelock.SoftFileLock):  # which deletes its file itself
            with suppress(OSError):  # Windows keeps what is open
                self._file.unlink()
        self._lock.release()

    def __enter__(self) -> CacheLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes when a file is replaced."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _holder(path: Path) -> str:
    try:
        return f" (process {int((parts_folder(path) / PID).read_text())})"
    except (OSError, ValueError):
        return ""
