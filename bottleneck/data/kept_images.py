"""A folder that keeps the files of images which were read over a network, so that the next run reads none.

One file for each image, DIR/ab/HASH: the image's bytes and a trailer with their sha256 and the version of the
file that they were read from (size, times, version tag). HASH is that of root and key, without secrets.

A kept file counts only for the same version and with its sha256. It is written beside its name and moved
there in one step, so that processes may share the folder, which may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from bottleneck.errors import Note, SourceError, counted, verb
from bottleneck.files import EARLIEST, TEMPORARY, FileStat, readable, require_no_url
from bottleneck.remote.urls import without_secrets

FREE = 1 << 30  # bytes of disk that are left free
_TRAILER = struct.Struct("<32s4q8s")  # sha256, FileStat, MARK
_MARK = b"BNIMAGE1"


class Readable(Protocol):
    """Files by key."""

    root: str

    def read(self, key: str) -> bytes: ...

    def stat(self, key: str) -> FileStat: ...


class KeptImages:
    """Reads files through the folder `path`, which is made. Called from several threads at once.

    anew : read every file over the network and keep it in place of the old one.

    Raises SourceError if files cannot be written there.
    """

    def __init__(self, path: str | os.PathLike[str], anew: bool = False) -> None:
        self.path, self.anew = Path(path), anew
        require_no_url(self.path)
        self._lock = threading.Lock()
        self._stats: dict[tuple[str, str], FileStat] = {}  # asked for, of files that are read next
        self._refused: str | None = None  # why no more files are kept
        self._kept = self._read = self._damaged = self._bytes = self._untold = 0
        probe = self.path / f"{secrets.token_hex(4)}{TEMPORARY}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SourceError(
                f"Images cannot be kept in {path}: {error.strerror or error}.",
                "Give --cache-images a folder that you can write.",
            ) from error

    def __reduce__(self) -> tuple[type, tuple[Path, bool]]:
        """Pickle the folder alone: another process keeps images in its own, of the same name."""
        return KeptImages, (self.path.absolute(), self.anew)

    def stat(self, files: Readable, key: str) -> FileStat:
        """Return the version of a file, as its store tells it now."""
        stat = files.stat(key)
        with self._lock:
            self._stats[files.root, key] = stat
        return stat

    def read(self, files: Readable, key: str) -> bytes:
        """Return the bytes of a file: the kept ones if its version is theirs."""
        with self._lock:
            stat = self._stats.pop((files.root, key), None)
        stat = stat or files.stat(key)
        if stat.inode < 0 and stat.mtime_ns < EARLIEST:  # as of a server that gives all files one time
            with self._lock:
                self._untold += 1
            return files.read(key)
        path = self._path(files.root, key)
        data = None if self.anew else self._kept_bytes(path, stat)
        if data is None:
            data = files.read(key)
            self._keep(path, data, stat)
        return data

    def notes(self) -> list[Note]:
        """Return what came from the folder, what was put there, and why no more was."""
        details = {"read": self._read, "added": self._kept, "damaged": self._damaged}
        message = (
            f"Of the images read, {self._read:,} came from {self.path} and {self._kept:,} "
            f"({readable(self._bytes)}) {verb(self._kept, 'was', 'were')} added to it."
        )
        if self._damaged:
            message += f" {counted(self._damaged, 'kept file was', 'kept files were')} damaged and read anew."
        if self._untold:
            changed = verb(self._untold, "it has changed", "they have changed")
            message += f" {self._untold:,} {verb(self._untold)} not kept: nothing tells whether {changed}."
        if self._refused:
            message += f" No more were added: {self._refused}."
        return [Note("images-kept", message, details=details)]

    def _path(self, root: str, key: str) -> Path:
        name = hashlib.sha256(
            f"{root}\0{without_secrets(key)}".encode("utf-8", "surrogateescape")
        ).hexdigest()
        return self.path / name[:2] / name

    def _kept_bytes(self, path: Path, stat: FileStat) -> bytes | None:
        """Return the bytes of a kept file; None if there is none of this version, or it is damaged."""
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        data = stored[: -_TRAILER.size]
        if len(stored) > _TRAILER.size:
            digest, *version, mark = _TRAILER.unpack(stored[-_TRAILER.size :])
            if mark == _MARK and digest == hashlib.sha256(data).digest():
                if FileStat(*version) != stat:
                    return None
                with self._lock:
                    self._read += 1
                return data
        with self._lock:
            self._damaged += 1
        return None

    def _keep(self, path: Path, data: bytes, stat: FileStat) -> None:
        """Write a file. The first failure, or a disk that is nearly full, ends keeping; reading goes on."""
        if self._refused or not data:
            return
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
        try:
            free = shutil.disk_usage(self.path).free
            if free < FREE + len(data):
                self._refused = f"its disk has {readable(free)} free, of which {readable(FREE)} are left"
                return
            path.parent.mkdir(exist_ok=True)
            trailer = _TRAILER.pack(hashlib.sha256(data).digest(), *stat, _MARK)
            fresh.write_bytes(data + trailer)
            os.replace(fresh, path)
        except OSError as error:
            self._refused = error.strerror or str(error)
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            return
        with self._lock:
            self._kept += 1
            self._bytes += len(data)
