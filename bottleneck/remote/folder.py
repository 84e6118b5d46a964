"""A folder behind a URL that files are written to: listed, put, read, deleted, each with retries.

A store must put a file whole or not at all, as object stores do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bottleneck.errors import CacheError, Note
from bottleneck.files import replacing
from bottleneck.remote.filesystem import RemoteStore, access_hint, count_sent_again, open_url, version_of
from bottleneck.remote.path import RemotePath
from bottleneck.remote.retries import Retrier
from bottleneck.remote.urls import one_line

BLOCK = 16 << 20  # bytes that are asked for at once of a file that is fetched


class Version(NamedTuple):
    """What changes with a file in a store: its version tag, or its time, and its size in bytes."""

    tag: str
    size: int


class RemoteFolder:
    """The folder `url`; names of files are relative to it. Several threads may call it at once.

    Attributes
    ----------
    sent, received : bytes of whole files

    Raises CacheError, which names the file and the reason, where the store refuses or does not answer.
    """

    def __init__(self, url: RemotePath) -> None:
        self.url, self._retrier = url, Retrier()
        filesystem, self._root = open_url(str(url), given=True, own=True)
        with self._named("", "opened"):
            count_sent_again(filesystem, self._retrier)
        self._store = RemoteStore(filesystem, str(url), self._retrier)
        self.sent = self.received = 0

    def notes(self) -> list[Note]:
        """Return notes on requests that were sent again, as of `Retrier`."""
        return self._retrier.notes()

    def versions(self, folder: str = "") -> dict[str, Version]:
        """Return the versions of the files that lie in it, or in a folder in it, by name.

        What is a folder itself has a size of −1. There are none where the folder is absent.
        """
        with self._named(folder, "listed"):
            self._store.filesystem.invalidate_cache()
            try:
                entries = self._store.ask("ls", self._path(folder), detail=True)
            except FileNotFoundError:
                return {}
        start = f"{folder}/" if folder else ""
        names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries]
        return {start + name: _version(entry) for name, entry in zip(names, entries, strict=True)}

    def put(self, name: str, path: Path) -> Version:
        """Upload a local file, over the one that lies there, and return its version there.

        Raises CacheError as well where the store then has another number of bytes.
        """
        size = path.stat().st_size
        with self._named(name, "written"):
            self._store.ask("put_file", str(path), self._path(name), size=size)
            found = self._info(name)
        if found.size != size:
            raise CacheError(
                f"{self.url / name} has {found.size:,} bytes after {size:,} were uploaded.",
                "Run the same command again: it uploads the file again.",
            )
        self.sent += size
        return found

    def get(self, name: str, path: Path, size: int) -> None:
        """Fetch a file of `size` bytes to `path`. Raises WriteError where the disk refuses."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as fresh, open(fresh, "xb") as file:
            for start in range(0, size, BLOCK):
                with self._named(name, "read"):
                    data = self._store.cat(self._path(name), start, min(BLOCK, size - start))
                file.write(data)
        self.received += size

    def write(self, name: str, data: bytes, create: bool = False) -> None:
        """Write a small file. create : raise FileExistsError if it exists, as far as the store can tell."""
        with self._named(name, "written"):
            mode: dict[str, Any] = {"mode": "create"} if create else {}
            try:
                self._store.ask("pipe_file", self._path(name), data, **mode)
            except TypeError:  # a backend that knows no such mode
                self._store.ask("pipe_file", self._path(name), data)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a small file; None if it is absent."""
        with self._named(name, "read"):
            try:
                return self._store.cat(self._path(name))
            except FileNotFoundError:
                return None

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with self._named(name, "deleted"):
            try:
                self._store.ask("rm_file", self._path(name))
            except FileNotFoundError:
                return

    def _info(self, name: str) -> Version:
        self._store.filesystem.invalidate_cache()
        return _version(self._store.ask("info", self._path(name)))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    @contextmanager
    def _named(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            raise CacheError(
                f"{self.url / name} cannot be {what}: {one_line(error)}.", "Check the name of the bucket."
            ) from error
        except NotImplementedError as error:
            raise read_only(self.url / name) from error
        except Exception as error:  # each backend has error classes of its own
            hint = access_hint(str(self.url))
            raise CacheError(f"{self.url / name} cannot be {what}: {one_line(error)}.", hint) from error


def read_only(url: RemotePath) -> CacheError:
    """Return the error for users where a cache is to be written to a store that is only read."""
    return CacheError(
        f"{url} cannot be written: its store is only read.",
        "Give a URL such as s3://bucket/photos.h5 or gs://bucket/photos.h5 with -o, or a file.",
    )


def _version(info: dict[str, Any]) -> Version:
    return Version(version_of(info), -1 if info["type"] == "directory" else info.get("size") or 0)
