"""Paths of files behind URLs, which read like those of this machine.

`Path` makes s3:/bucket/x.h5 of s3://bucket/x.h5, so both forms are taken for the URL. A file of this machine
that has such a name goes first.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from bottleneck.errors import CacheError
from bottleneck.remote.filesystem import RemoteStore, Replaced, access_hint, is_remote, open_url, version_of
from bottleneck.remote.retries import Retrier
from bottleneck.remote.urls import one_line, without_secrets

_SCHEMES = re.compile(r"[a-z][a-z0-9+.]+(::[a-z][a-z0-9+.]+)*:", re.IGNORECASE)
_URL = re.compile(r"([a-z][a-z0-9+.]+):/+(?=[^/])", re.IGNORECASE)  # a drive of Windows is one letter


def path_of(given: str | os.PathLike[str]) -> Path:
    """Return the path of a file of this machine, or a `RemotePath`.

    Raises CacheError where a URL has a password, signature or token, which results would then show.
    """
    text = os.fspath(given)
    found = _URL.match(text)
    if isinstance(given, RemotePath) or found is None or os.path.exists(text):
        return given if isinstance(given, RemotePath) else Path(given)
    url = f"{found[1].lower()}://{text[found.end() :]}"
    if not is_remote(url):
        return Path(given)
    if "::" in url or without_secrets(url) != url:
        raise CacheError(
            f"The URL {without_secrets(url)} of a cache is a chain, or has a password, signature or token.",
            "Give a plain URL, and access by the settings of its store.",
        )
    return RemotePath(url)


def output_path(given: str | os.PathLike[str]) -> Path:
    """Return the path of a cache to be written, as `path_of`.

    Raises CacheError as well for a URL of no store over a network, which would be a folder called `memory:`.
    """
    path = path_of(given)
    first = "" if isinstance(path, RemotePath) or not path.parts else path.parts[0]
    if _SCHEMES.fullmatch(first) and not os.path.exists(first):
        raise CacheError(
            f"{os.fspath(given)} is no URL that a cache is written to.",
            "Give one such as s3://bucket/photos.h5 or gs://bucket/photos.h5 with -o, or a path.",
        )
    return path


class RemotePath(type(Path())):  # type: ignore[misc]  # the class of this system's paths
    """A file or folder behind a URL, which is read. `store.staging` writes there.

    Methods raise CacheError where the store cannot be reached or opened, and OSError as those of `Path` do.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def stat(self, **options: Any) -> os.stat_result:
        """Return the kind and size of a file, and 0 for the rest. Raises FileNotFoundError."""
        info = self._info()
        kind = stat.S_IFDIR if info["type"] == "directory" else stat.S_IFREG
        return os.stat_result((kind, 0, 0, 0, 0, 0, info.get("size") or 0, 0, 0, 0))

    def lstat(self) -> os.stat_result:
        """Return what `stat` does."""
        return self.stat()

    def exists(self, **options: Any) -> bool:
        """Return whether there is a file or folder."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Return whether there is a file."""
        try:
            return bool(self._info()["type"] == "file")
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        """Return whether there is a folder; a web server has none."""
        return bool(self._ask("isdir"))

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what a folder holds; nothing where a web server lists none."""
        try:
            entries = self._ask("ls", detail=False)
        except (NotImplementedError, FileNotFoundError):
            return
        for entry in entries:
            yield self / entry.rstrip("/").rpartition("/")[2]

    def open(self, *mode: Any, **options: Any) -> BinaryIO:
        """Open a file of which parts are read.

        Reading raises CacheError where the store fails, and if the file was replaced since it was opened.
        """
        store, path = self._store()
        info = self._info()
        return cast(BinaryIO, _Ranges(store.open(path, info.get("size"), version_of(info)), self))

    def read_bytes(self) -> bytes:
        """Return the bytes of a file."""
        with self.open() as file:
            return file.read()

    def resolve(self, strict: bool = False) -> RemotePath:
        """Return the path itself: what links a store has is not known."""
        return self

    def absolute(self) -> RemotePath:
        """Return the path itself."""
        return self

    def _store(self) -> tuple[RemoteStore, str]:
        filesystem, path = open_url(str(self), given=True)
        return RemoteStore(filesystem, str(self), Retrier()), path

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = self._ask("info")
        return info

    def _ask(self, method: str, **options: Any) -> Any:
        store, path = self._store()
        store.filesystem.invalidate_cache()
        try:
            return store.ask(method, path, **options)
        except (FileNotFoundError, NotImplementedError):
            raise
        except Exception as error:  # each backend has error classes of its own
            raise self.unreachable(error) from error

    def unreachable(self, error: Exception) -> CacheError:
        """Return the error for users where the store does not give the file."""
        hint = "Run the same command again." if isinstance(error, Replaced) else access_hint(str(self))
        return CacheError(f"{self} cannot be read: {one_line(error)}.", hint)


class _Ranges:
    """A file whose errors of the network are CacheErrors, which nothing takes for damage of the file."""

    def __init__(self, file: BinaryIO, path: RemotePath) -> None:
        self._file, self._path = file, path

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            raise self._path.unreachable(error) from error

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def __enter__(self) -> _Ranges:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
