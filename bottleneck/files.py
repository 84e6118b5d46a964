"""Files that survive: durable writes, one rename, and room on the disk checked beforehand.

All writing of the store goes through `write`, `sync` and `rename` here, so that the fault tests can fail or
stop each of them.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bottleneck.errors import CacheError

BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends


class LatchedFile(io.RawIOBase):
    """The file object through which HDF5 writes.

    HDF5 cannot close a file whose writes fail: it keeps the handle and complains when the process ends.
    So the first error is kept, every later write is dropped, and `commit` raises it once HDF5 is done.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                write_all(self._descriptor, view)
            except OSError as error:
                self.error = error
        return len(view)

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")
        data = os.read(self._descriptor, len(view))
        view[: len(data)] = data
        if self.error is not None and len(data) < len(view):
            view[len(data) :] = bytes(len(view) - len(data))  # what was dropped; the file is thrown away
            return len(view)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._descriptor, offset, whence)

    def tell(self) -> int:
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._descriptor, size)
            except OSError as error:
                self.error = error
        return size

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def commit(self) -> None:
        """Raise the error kept, or make the bytes durable."""
        if self.error is not None:
            raise self.error
        sync(self._descriptor)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def write_all(descriptor: int, data: memoryview | bytes) -> None:
    """Write every byte; the system may take fewer at a time."""
    view = memoryview(data)
    while view:
        view = view[write(descriptor, view) :]


def write(descriptor: int, data: memoryview) -> int:
    """One write."""
    return os.write(descriptor, data)


def sync(descriptor: int) -> None:
    """Make a file's bytes durable."""
    os.fsync(descriptor)


def sync_file(path: Path) -> None:
    """Make the bytes of a closed file durable."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Move a durable file over `target`, and make the move durable."""
    os.replace(source, target)
    sync_folder(target.parent)


def temporary(path: Path) -> Path:
    """Where the file that will replace `path` is built."""
    return path.with_name(path.name + ".new")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to build the file that replaces `path`: moved there at the end, deleted after an error.

    Raises CacheError where the system refuses; what was at `path` is then as it was.
    """
    fresh = temporary(path)
    try:
        yield fresh
        rename(fresh, path)
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise as_cache_error(error, path) from error
        raise


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a whole new file and make its bytes durable."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
    try:
        write_all(descriptor, data)
        sync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, need: int, purpose: str) -> None:
    """Raise CacheError where `folder` has less than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise CacheError(
            f"{purpose} needs {readable(need)} of free disk in {folder}, which has {readable(free)}.",
            "Free some space, or choose another place with -o.",
        )


def readable(count: int) -> str:
    """A number of bytes for people."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def as_cache_error(error: OSError, path: Path) -> CacheError:
    """An operating-system error while writing, in the user's terms."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CacheError(
            f"The disk is full: {path} could not be written.",
            "Free some space and run the same command again; what was computed is kept.",
        )
    return CacheError(
        f"{path} could not be written: {error.strerror or error}.",
        "Run the same command again once that is mended; what was computed is kept.",
    )
