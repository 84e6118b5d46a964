"""A cache at a URL is written in a staging folder of this machine, and uploaded whenever rows are committed.

    with staged(path, tell) as place:            # a lease; what lies at the URL is fetched unless it is here
        ... write place.path as any cache; call place.upload() after each commit ...
        place.finish()                           # the finished files are there; the folder is then removed

The URL has the files of a cache on a disk, under the same names. They are uploaded in an order in which what
lies there is valid at any moment: parts before the log that names them, maps before the main file. What is no
longer needed is deleted last, the log before its parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from bottleneck.errors import BottleneckError, CacheError, Note, WriteError
from bottleneck.files import readable, require_space, user_cache, write_whole
from bottleneck.remote.folder import RemoteFolder, Version, read_only
from bottleneck.remote.lease import Lease
from bottleneck.remote.path import RemotePath
from bottleneck.store.cachefile import CacheFile
from bottleneck.store.layout import PARTS, companion_path, parts_folder, statistics_path
from bottleneck.store.parts import LOG
from bottleneck.store.reader import FeatureCache

RECORD = "staging.json"  # which version of each file lies at the URL, as far as this folder knows
_PART = re.compile(r"(part|table)-[0-9a-f]{16}\.h5")


class Place:
    """Where a cache is written: at its path itself.

    path : the main file that is written. shown : the one that results name.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.shown = path

    def upload(self) -> None:
        """Called after each commit."""

    def finish(self) -> None:
        """Called when the cache is complete."""

    def named(self, value: Any) -> Any:
        """Return a text, or the texts in a JSON value, with `shown` in place of `path`."""
        return value

    def told(self, notes: Sequence[Note]) -> list[Note]:
        """Return notes as `named` does, and those on the place."""
        return list(notes)


@contextmanager
def staged(path: Path, tell: Callable[[str], None]) -> Iterator[Place]:
    """Yield where the cache `path` is written: there, or in the staging folder of its URL.

    After an error the folder stays, if it has what the URL lacks or this run has uploaded; `tell` says so.

    Raises
    ------
    CacheError
        The store is only read, refuses or does not answer; another writer is at work.
    """
    if not isinstance(path, RemotePath):
        yield Place(path)
        return
    place = Staging(path)
    try:
        with place.open():
            yield place
    except BaseException as error:
        if place.folder.exists():
            tell(f"What is computed is kept in {place.folder}, and what is uploaded at {path}.")
        if isinstance(error, BottleneckError) and not isinstance(error, WriteError):  # that names the disk
            error.message, error.hint = place.named(error.message), place.named(error.hint)
        if isinstance(error, BottleneckError) and str(place.folder) in error.message:
            error.hint = "Free some space, or set BOTTLENECK_CACHE to a folder on another disk."
        raise


def staging_folder(url: RemotePath) -> Path:
    """Return the folder of this machine in which the cache of a URL is written."""
    return user_cache() / "staging" / hashlib.sha256(str(url).encode()).hexdigest()[:16]


class Staging(Place):
    """The staging folder of a URL, and what it knows of the files there.

    The folder has what lies at the URL, and perhaps more, if the versions there are those that it recorded;
    files that it was uploading when it was stopped may differ as long as the lease is that of its last run.
    Otherwise the URL is right: what differs is fetched from there.
    """

    _lease: Lease
    _is_last: bool  # whether nobody else has written since the last run of this folder
    _token: str

    def __init__(self, url: RemotePath) -> None:
        if str(url).startswith(("http://", "https://")):
            raise read_only(url)
        if len(url.parts) < 3:
            raise CacheError(
                f"{url} is no file in a bucket.", "Give one with -o, such as s3://bucket/photos.h5."
            )
        self.shown: Path = url
        self.folder = staging_folder(url)
        self.path = self.folder / url.name
        self._remote = RemoteFolder(url.parent)
        self._notes: list[Note] = []
        self._uploaded = False

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the lease, and begin with what lies at the URL."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = filelock.FileLock(self.folder / "staging.lock").acquire(timeout=0)
        except filelock.Timeout:
            raise CacheError(
                f"Another writer on this machine is at work on {self.shown}.",
                "Wait until it has finished, or stop it.",
            ) from None
        with lock:
            self._read_record()
            try:
                self._lease = Lease(self._remote, f"{self.path.name}.lease", self._token)
            except BaseException:
                self._remove(unless=bool(self._local()))
                raise
            self._notes += self._lease.notes
            self._is_last, self._token = self._lease.token == self._token, self._lease.token
            complete = False
            try:
                self._fetch()
                yield
                complete = True
            finally:
                self._end(complete)

    def _end(self, complete: bool) -> None:
        """Give the lease back; remove the folder unless it has, or this run has uploaded, unfinished work."""
        done = complete or not (self._uploaded or self._changed())
        try:
            self._lease.end(done)
        except CacheError:
            if complete:
                raise
        self._remove(unless=not done)

    def _remove(self, unless: bool) -> None:
        if not unless:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _read_record(self) -> None:
        """Read what is known of the URL. A folder without a record has no files yet, or none that count."""
        self._known: dict[str, tuple[Version | None, list[int]]] = {}
        self._token = ""
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((self.folder / RECORD).read_bytes())
            known = record["files"].items()
            self._known = {name: (Version(*at) if at else None, mine) for name, (at, mine) in known}
            self._token = record["token"]

    def _record(self, name: str, version: Version | None) -> None:
        """Note the version of a file at the URL; None if it is about to change."""
        self._known[name] = version, self._stamp(name)
        self._write_record()

    def _write_record(self) -> None:
        record = {"url": str(self.shown), "token": self._token, "files": self._known}
        write_whole(self.folder / RECORD, json.dumps(record).encode())

    def _stamp(self, name: str) -> list[int]:
        """Return what changes with a file of the folder; empty if it is absent."""
        try:
            stat = os.stat(self.folder / name)
        except OSError:
            return []
        return [stat.st_size, stat.st_mtime_ns, stat.st_ino]

    def _order(self, name: str) -> int:
        """Return when a file is uploaded, −1 for one that is no file of the cache."""
        main, folder = self.path.name, f"{self.path.name}{PARTS}/"
        if name == statistics_path(self.path).name:
            return 0
        if name.startswith(folder):
            name = name.removeprefix(folder)
            return 1 if _PART.fullmatch(name) else 2 if name == LOG else -1
        if name.startswith(f"{self.path.stem}--") and name.endswith(self.path.suffix):
            return 3
        return 4 if name == main else -1

    def _local(self) -> list[str]:
        """Return the files of the cache in the folder, in the order in which they are uploaded."""
        parts = parts_folder(self.path)
        names = [f"{parts.name}/{name}" for name in os.listdir(parts)] if parts.is_dir() else []
        names += os.listdir(self.folder)
        return sorted((name for name in names if self._order(name) >= 0), key=self._order)

    def _changed(self) -> list[str]:
        """Return the files of the folder that the URL lacks, or has in another version."""
        known = self._known
        return [
            n for n in self._local() if n not in known or known[n][0] is None or known[n][1] != self._stamp(n)
        ]

    def _fetch(self) -> None:
        """Begin with what lies at the URL, or with this folder where it has all of that and perhaps more."""
        parts = parts_folder(self.path).name
        there = self._remote.versions() | self._remote.versions(parts)
        if there.get(self.path.name, Version("", 0)).size < 0:
            raise CacheError(f"{self.shown} is a folder; expected the name of a file.")
        there = self._of_cache(there)
        doubted = {n for n, (version, _) in self._known.items() if version is None and self._is_last}
        told = {n: version for n, (version, _) in self._known.items() if n not in doubted}
        agrees = told == {name: version for name, version in there.items() if name not in doubted}
        before, changed = self._local(), set(self._changed())
        if agrees:
            finished = f"{parts}/{LOG}" not in before  # the parts are in the main file by now
            absent = [n for n in told if n not in before and not (finished and n.startswith(f"{parts}/"))]
        else:
            absent = [n for n in there if n not in before or n in changed or told.get(n) != there[n]]
            for name in {*before} - ({*there} - {*absent}):
                (self.folder / name).unlink()
            self._known = {name: self._known[name] for name in there if name not in absent}
        self._tell_reuse(before, agrees)
        self._write_record()
        need = sum(there[name].size for name in absent)
        require_space(self.folder, need, f"Fetching {self.shown}")
        for name in sorted(absent, key=self._order):
            self._remote.get(name, self.folder / name, there[name].size)
            self._record(name, there[name])

    def _of_cache(self, there: dict[str, Version]) -> dict[str, Version]:
        """Return the files at the URL that belong to the cache; others may have a name like a companion's."""
        maps: set[str] = set()
        if self.path.name in there:
            with FeatureCache(self.shown) as cache:
                maps = {companion_path(self.path, node).name for node in cache.nodes.values() if node.is_map}
        maps |= self._known.keys()
        return {n: v for n, v in there.items() if self._order(n) >= 0 and (self._order(n) != 3 or n in maps)}

    def _tell_reuse(self, before: Sequence[str], agrees: bool) -> None:
        if before and agrees:
            text = f"The copy of {self.shown} in {self.folder}, of a run that was stopped, is used."
            self._notes.append(Note("staging-reused", text, details={"folder": str(self.folder)}))
        elif before:
            text = (
                f"{self.shown} has changed since the run that left a copy in {self.folder}; what differs "
                "there is not used, and is fetched from the URL."
            )
            self._notes.append(Note("staging-replaced", text, details={"folder": str(self.folder)}))

    def upload(self) -> None:
        """Upload what has changed; then delete the log and the parts at the URL that are no more here."""
        for name in self._changed():
            self._lease.require()
            self._uploaded = True
            self._record(name, None)
            version = self._remote.put(name, self.folder / name)
            if self._order(name) >= 3:
                self._check(name)
            self._record(name, version)
        gone = {*self._known} - {*self._local()}
        for name in sorted((n for n in gone if self._order(n) in (1, 2)), key=self._order, reverse=True):
            self._lease.require()
            self._record(name, None)
            self._remote.delete(name)
            del self._known[name]
            self._write_record()

    def _check(self, name: str) -> None:
        """Raise CacheError unless structure and tables of the file at the URL match their checksums."""
        with CacheFile(self.shown.with_name(name)) as file:
            _ = file.images, file.samples, file.failures

    def finish(self) -> None:
        """Upload the finished cache, and say what was sent and fetched."""
        self.upload()
        sent, received = self._remote.sent, self._remote.received
        text = f"{readable(sent)} were uploaded to {self.shown}, and {readable(received)} fetched from there."
        details = {"uploaded": sent, "fetched": received}
        self._notes += [Note("cache-uploaded", text, details=details), *self._remote.notes()]

    def named(self, value: Any) -> Any:
        """Return a text, or the texts in a JSON value, with the URL in place of the staging folder."""
        if isinstance(value, dict):
            return {key: self.named(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.named(each) for each in value]
        here, there = f"{self.folder}{os.sep}", f"{self.shown.parent}/"
        return value.replace(here, there) if isinstance(value, str) else value

    def told(self, notes: Sequence[Note]) -> list[Note]:
        """Return notes with the URL in place of the staging folder, and those on the upload."""
        renamed = [replace(n, message=self.named(n.message), details=self.named(n.details)) for n in notes]
        return [*self._notes, *renamed]
