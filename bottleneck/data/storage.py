"""Where the bytes of images lie: a folder, a store behind an fsspec URL, tar shards.

Keys are paths relative to the root with "/" between their parts, whatever the platform. In a manifest a key
may also be an absolute path, lead out of the root by "..", or be a URL: the list is the user's own, and
nothing is done with what it names but decoding it as an image.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
import time
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import datetime
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from PIL import features

from bottleneck.data.untrusted import one_line, split_chain, without_secrets
from bottleneck.errors import ImageError, SourceError
from bottleneck.files import FileStat, stat_of

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
    """

    def __init__(
        self,
        filesystem: AbstractFileSystem,
        folder: str,
        url: str,
        listing: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        from fsspec.archive import AbstractArchiveFileSystem

        self.filesystem = filesystem
        self.folder = folder.rstrip("/")
        url = url if url.endswith("://") else url.rstrip("/")
        self.root = without_secrets(url)  # no credentials in caches and messages
        self.listing = listing or {}
        # All members of an archive are read through one file with one position
        self.turn = Lock() if isinstance(filesystem, AbstractArchiveFileSystem) else nullcontext()

    def path(self, key: str) -> str:
        """The file's path within the filesystem."""
        path = posixpath.join(self.folder, key)
        return posixpath.normpath(path) if ".." in path and "://" not in path else path

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        end = None if size is None else start + size
        try:
            with self.turn:
                return self.filesystem.cat_file(self.path(key), start=start or None, end=end)
        except (OSError, ImageError):
            raise
        except Exception as error:  # each backend has error classes of its own
            raise ImageError(f"cannot be read: {one_line(error)}", passing=True) from error

    def stat(self, key: str) -> FileStat:
        path = self.path(key)
        try:
            info = self.listing.get(path) or self.filesystem.info(path)
        except (OSError, ImageError):
            raise
        except Exception as error:  # each backend has error classes of its own
            raise ImageError(f"cannot be read: {one_line(error)}", passing=True) from error
        return FileStat(info.get("size") or 0, *_version(info))

    def missing(self, keys: Iterable[str]) -> dict[str, str]:
        """List each folder once instead of asking for each file; {} where the store cannot list folders."""
        paths = {key: self.path(key) for key in keys}
        unknown: set[str] = set()
        for folder in {path.rpartition("/")[0] for path in paths.values()}:
            try:
                entries = self.filesystem.ls(folder, detail=True)
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


# The extra that installs what a scheme needs.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
_SCHEME = re.compile("([a-z0-9]+)://", re.IGNORECASE)


def open_url(url: str, given: bool = False) -> tuple[AbstractFileSystem, str]:
    """Return the fsspec filesystem of a URL, and the path in it. given : the user named the URL.

    Raises
    ------
    SourceError
        No such protocol, its package is not installed, or it cannot be reached.
    """
    from fsspec.core import url_to_fs

    if url.lower().startswith(("http://", "https://")) and not split_chain(url)[1]:
        from bottleneck.data.http import WebFileSystem

        return WebFileSystem(given=url if given else ""), url
    try:
        return url_to_fs(url)
    except Exception as error:  # each backend has error classes of its own
        url, scheme = without_secrets(url), _SCHEME.match(url.rpartition("::")[2])
        extra = _EXTRAS.get(scheme[1].lower()) if scheme else None
        if isinstance(error, ImportError) and extra:
            raise SourceError(
                f"The URL {url} needs a package that is not installed.",
                f"Run: pip install 'bottleneck-features[{extra}]'",
            ) from error
        raise SourceError(f"The URL {url} cannot be opened: {one_line(error)}.") from error


_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_TAGS = ("CRC", "md5Hash", "ETag", "etag")


def _version(info: dict[str, Any]) -> tuple[int, int, int]:
    """Return mtime_ns, ctime_ns and inode of a `FileStat` from a remote file's record.

    Without a time and a tag the time is the present one: the file counts as changed and is read again.
    """
    tag = next((info[name] for name in _TAGS if info.get(name)), None)
    number = -1 if tag is None else int.from_bytes(hashlib.sha256(str(tag).encode()).digest()[:8]) >> 1
    for value in map(info.get, _TIMES):
        if isinstance(value, datetime):
            return int(value.timestamp() * 1e9), -1, number
        if isinstance(value, int | float):
            return int(value * 1e9), -1, number
    return (time.time_ns() if tag is None else -1), -1, number
