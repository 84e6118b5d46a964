"""Write files that survive a crash: durable bytes, one rename, free disk checked beforehand.

`FileStat` tells whether a file that is only read has changed.

Every file that users keep is written by `replacing`, `whole_file` or `write_whole`. The store writes through
`write`, `sync` and `rename`, so that the fault tests can fail or stop each of them.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bottleneck.errors import CacheError, WriteError

BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
DEVICES = {Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")}
URL = re.compile(r"[a-z][a-z0-9+.]+:[/\\]", re.IGNORECASE)  # a drive of Windows is one letter
TEMPORARY = ".new"  # ends the name of a file that is being written
SECOND = 10**9  # ns
EARLIEST = 315_705_600 * SECOND  # 1980-01-03: zip's and FAT's first day, 0 and −1 are no times of change
CLOCK_TICK = 20_000_000  # ns; a file system's clock may stand still for so long


class FileStat(NamedTuple):
    """What changes with a file's content, as far as it is known without reading it; −1 where unknown.

    size : bytes
    mtime_ns : time of the last change of the content, ns since 1970; anyone can set it
    ctime_ns : time of the last change of the content, the times, the owner or the name, by the kernel's clock
    inode : number of the file in its file system; for a remote file a number made of its version tag
    """

    size: int = -1
    mtime_ns: int = -1
    ctime_ns: int = -1
    inode: int = -1


UNKNOWN_STAT = FileStat()


def stat_of(path: str | os.PathLike[str]) -> FileStat:
    """Return the `FileStat` of a local file. Raises OSError.

    ctime_ns and inode are −1 on Windows, where the first is the time of creation; and for a file that changed
    within the present tick of the clock, because a second change in that tick would leave no trace.
    """
    status = os.stat(path)
    if os.name == "nt" or 0 <= time.time_ns() - status.st_ctime_ns < CLOCK_TICK:
        return FileStat(status.st_size, status.st_mtime_ns)
    return FileStat(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1))


def user_cache() -> Path:
    """The user's folder: $BOTTLENECK_CACHE, else $XDG_CACHE_HOME/bottleneck, else ~/.cache/bottleneck."""
    if folder := os.environ.get("BOTTLENECK_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bottleneck"


def other_than_file(path: Path) -> str:
    """Return what an existing path is that is no file, for a sentence."""
    return "a folder" if path.is_dir() else "a pipe or a device"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file beside `path`; then make it durable and rename it to `path`.

    After an error the temporary file is deleted, and a file at `path` is as it was.

    Raises
    ------
    WriteError
        The disk is full, the folder cannot be written, or `path` is a folder. An OSError that names another
        file is the caller's own and passes unchanged.
    """
    require_file_name(path)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
        sync_file(fresh)
        rename(fresh, path)
    except BaseException as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        if isinstance(error, OSError) and _concerns(error, {fresh, path, *path.parents}):
            raise write_error(error, path) from error
        raise


FAULTS_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def _concerns(error: OSError, paths: set[Path]) -> bool:
    """True if the error names one of `paths`, or no path but a fault of the disk, as open files do."""
    if isinstance(error.filename, str):
        return Path(error.filename) in paths
    return error.errno in FAULTS_OF_WRITING


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file whose content replaces `path` as in `replacing`."""
    with replacing(path) as fresh, open(fresh, "xb") as file:
        yield file


def require_no_url(path: Path) -> None:
    """Raise WriteError if an output file or folder is a URL, and not a path of this machine like one."""
    if URL.match(str(path)) and not path.parent.exists():
        raise WriteError(
            f"{str(path).replace(':/', '://', 1)} is a URL, and only a cache is written to one.",
            "Give a path of this machine, and copy what is written there.",
        )


def require_file_name(path: Path) -> None:
    """Raise WriteError if an output path is a URL, or a folder, device or pipe, which a rename would replace.

    Call it before the work whose result is written.
    """
    require_no_url(path)
    if path.is_dir():
        raise WriteError(
            f"{path} is a folder; expected the name of a file.", f"Give for example {path / 'NAME'}."
        )
    if (path.exists() and not path.is_file()) or path.absolute().parent in DEVICES:
        raise WriteError(
            f"{path} is a device or a pipe; expected the name of a file.",
            "Write to a file, or use --json, which prints the result.",
        )


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Replace the file `path` by one that holds `data`, as in `replacing`."""
    with replacing(path) as fresh:
        _write_new(fresh, data)


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a file under its final name and make its bytes durable; a crash may leave half of it."""
    _write_new(path, data)
    sync_file(path)


def _write_new(path: Path, data: bytes | memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


class LatchedFile(io.RawIOBase):
    """A file object for HDF5, which cannot close a file after a failed write.

    The first error is stored in `error`, and later writes are dropped. Raise it when HDF5 is done.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                write_all(self._descriptor, view)
            except OSError as error:
                self.error = error
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = os.read(self._descriptor, len(view))
        view[: len(data)] = data
        if self.error is not None and len(data) < len(view):
            view[len(data) :] = bytes(len(view) - len(data))  # dropped bytes; the file will be deleted
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

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def write_all(descriptor: int, data: memoryview | bytes) -> None:
    """Write every byte; one system call may write fewer."""
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
    """Move a durable file over `target` and make the move durable."""
    os.replace(source, target)
    sync_folder(target.parent)


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, need: int, purpose: str) -> None:
    """Raise CacheError if less than `need` bytes are free in `folder`, which may not exist yet."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < need:
        raise CacheError(
            f"{purpose} needs {readable(need)} of free disk in {folder}, which has {readable(free)}.",
            "Free some space, or choose another place with -o.",
        )


def readable(count: int) -> str:
    """Return a number of bytes as text with a unit, such as "80.4 MB"."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def write_error(error: OSError, path: Path) -> WriteError:
    """Return the error for users when the system refused to write `path`."""
    reason = os.strerror(error.errno) if error.errno else error  # libraries add words of their own
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"The disk is full: {path} could not be written."
        hint = "Free some space and run the same command again; work already saved is reused."
    else:
        message = f"{path} could not be written: {reason}."
        hint = "Remove the cause and run the same command again; work already saved is reused."
    return WriteError(message, hint)
