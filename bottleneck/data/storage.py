"""Stores that the bytes of images are read from: a folder, an fsspec URL, tar shards.

Keys are paths relative to the root with "/" between their parts, whatever the platform. In a manifest a key
may also be an absolute path, lead out of the root by "..", or be a URL: the list is the user's own, and
nothing is done with what it names but decoding it as an image.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from PIL import features

from bottleneck.errors import ImageError
from bottleneck.files import FileStat, stat_of
from bottleneck.remote.filesystem import TAGS, TIMES, RemoteStore
from bottleneck.remote.retries import Retrier
from bottleneck.remote.urls import one_line, without_secrets

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".jfi")
_AVIF, _HEIF = (".avif",), (".heic", ".heif", ".hif")
# Suffixes that need something which may not be there, with what to do about it.
OPTIONAL_SUFFIXES = dict.fromkeys(_AVIF, "install a Pillow with AVIF")
OPTIONAL_SUFFIXES |= dict.fromkeys(_HEIF, "run: pip install 'bottleneck-features[heif]'")
SUFFIXES = (
    *_JPEG,
    *(".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"),
    *(_AVIF if features.check("avif") else ()),
    *(_HEIF if find_spec("pillow_heif") else ()),
)


class Files(Protocol):
    """A store of files by key. Methods are called from several threads at once."""

    root: str

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        """The file's bytes, or `size` of them from `start`. Raises ImageError or OSError."""
        ...

    def stat(self, key: str) -> FileStat:
        """What tells whether the file has changed. Raises ImageError or OSError."""
        ...

    def missing(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the keys that are certainly no readable files, with the reason."""
        ...


class LocalFiles:
    """Files below a folder of this machine."""

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = os.path.abspath(root)

    def path(self, key: str) -> str:
        """The file's path on this machine."""
        return os.path.join(self.root, key)

    def open(self, key: str) -> BinaryIO:
        """Open a file that is read from its beginning on, in parts."""
        return open(self.path(key), "rb")

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        with open(self.path(key), "rb") as file:
            file.seek(start)
            return file.read(size)

    def stat(self, key: str) -> FileStat:
        return stat_of(self.path(key))

    def missing(self, keys: Iterable[str]) -> dict[str, str]:
        reasons = {}
        for key in keys:
            try:
                status = os.stat(self.path(key))
            except (OSError, ValueError) as error:  # ValueError: a NUL in the name
                reasons[key] = getattr(error, "strerror", None) or str(error)
            else:
                if not stat.S_ISREG(status.st_mode):
                    reasons[key] = "is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
        return reasons


class RemoteFiles:
    """Files behind an fsspec filesystem: object stores, archives, web servers, memory.

    `listing` holds the records of listed files by path, so that no request per file is needed for its size.
    retrier : sends requests again; one for all files of a source.
    """

    def __init__(
        self,
        filesystem: AbstractFileSystem,
        folder: str,
        url: str,
        listing: dict[str, dict[str, Any]] | None = None,
        retrier: Retrier | None = None,
    ) -> None:
        self.filesystem = filesystem
        self.folder = folder.rstrip("/")
        url = url if url.endswith("://") else url.rstrip("/")
        self.root = without_secrets(url)  # no credentials in caches and messages
        self.listing = listing or {}
        self.retrier = retrier or Retrier()
        self.store = RemoteStore(filesystem, url, self.retrier)

    def __reduce__(self) -> tuple[type, tuple[AbstractFileSystem, str, str, None, Retrier]]:
        """Pickle how the files are read, for another process, without the listing, which may be large.

        The source there has the same `retrier`, which counts for its notes.
        """
        return RemoteFiles, (self.filesystem, self.folder, self.root, None, self.retrier)

    def path(self, key: str) -> str:
        """The file's path within the filesystem."""
        path = posixpath.join(self.folder, key)
        return posixpath.normpath(path) if ".." in path and "://" not in path else path

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        path = self.path(key)
        with _named():
            return self.store.cat(path, start, size, (self.listing.get(path) or {}).get("size") or 0)

    def stat(self, key: str) -> FileStat:
        path = self.path(key)
        with _named():
            info = self.listing.get(path) or self.store.ask("info", path)
        return FileStat(info.get("size") or 0, *_version(info))

    def open(self, key: str) -> BinaryIO:
        """Open a file that is read from its beginning on, in parts."""
        return self.store.open(self.path(key))

    def missing(self, keys: Iterable[str]) -> dict[str, str]:
        """List each folder once instead of asking for each file; {} where the store cannot list folders."""
        paths = {key: self.path(key) for key in keys}
        unknown: set[str] = set()
        for folder in {path.rpartition("/")[0] for path in paths.values()}:
            try:
                entries = self.store.ask("ls", folder, detail=True)
            except NotImplementedError:
                return {}
            except FileNotFoundError:
                continue
            except Exception:  # of any backend: the store does not answer now, so nothing is certain
                unknown.add(folder)
                continue
            self.listing |= {entry["name"]: entry for entry in entries if entry["type"] == "file"}
        return {
            key: "does not exist"
            for key, path in paths.items()
            if path not in self.listing and path.rpartition("/")[0] not in unknown
        }


@contextmanager
def _named() -> Iterator[None]:
    """Turn an error of a backend, which has classes of its own, into an ImageError that may pass."""
    try:
        yield
    except (OSError, ImageError):
        raise
    except Exception as error:
        raise ImageError(f"cannot be read: {one_line(error)}", passing=True) from error


class TarFiles:
    """Members of tar shards; `members` maps a key to its shard's key, offset and size in bytes."""

    def __init__(self, shards: LocalFiles | RemoteFiles, members: dict[str, tuple[str, int, int]]) -> None:
        self.shards = shards
        self.members = members
        self.root = shards.root

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        shard, offset, length = self.members[key]
        data = self.shards.read(shard, offset, length)
        if len(data) < length:
            raise ImageError(f"is cut off by the end of its shard ({len(data)} of {length} bytes)")
        return data[start:] if size is None else data[start : start + size]

    def stat(self, key: str) -> FileStat:
        """The member's size and the shard's times: members often carry no time of their own."""
        shard, _, length = self.members[key]
        return self.shards.stat(shard)._replace(size=length)

    def missing(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: "is not in its shard" for key in keys if key not in self.members}


def _version(info: dict[str, Any]) -> tuple[int, int, int]:
    """Return mtime_ns, ctime_ns and inode of a `FileStat` from a remote file's record.

    Without a time and a tag the time is the present one: the file counts as changed and is read again.
    """
    tag = next((info[name] for name in TAGS if info.get(name)), None)
    number = -1 if tag is None else int.from_bytes(hashlib.sha256(str(tag).encode()).digest()[:8]) >> 1
    for value in map(info.get, TIMES):
        if isinstance(value, datetime):
            return int(value.timestamp() * 1e9), -1, number
        if isinstance(value, int | float):
            return int(value * 1e9), -1, number
    return (time.time_ns() if tag is None else -1), -1, number
