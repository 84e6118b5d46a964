"""The parts folder: rows that a running or interrupted run has computed, some thousands a file; its log.

A part is built in memory, written under another name, made durable, read back, renamed, and then named in the
commit log. If the process stops at any moment, the part counts completely or not at all.

The log has append-only lines, each with its own checksum (FORMAT.md, section 8). A line in it was committed.
A last line that is incomplete was not, and is ignored.

Shapes: B rows of one part.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bottleneck.errors import CacheError
from bottleneck.files import (
    BINARY,
    TEMPORARY,
    rename,
    sha256_of_file,
    sync,
    sync_folder,
    write_all,
    write_durably,
)
from bottleneck.store import layout
from bottleneck.store.spec import CacheSpec, NodeSpec, Origin, canonical_json
from bottleneck.store.tables import CacheTables, Failure, ImageTable, failure_columns

PID = "pid"  # file that holds the writer's process id
OWN = re.compile(rf"(part|table)-[0-9a-f]{{16}}\.h5({re.escape(TEMPORARY)})?|{PID}")  # names of a run's files
LOG_FORMAT = "bottleneck-feature-cache-parts"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
LOG = "log"


@dataclass(frozen=True)
class PartContent:
    """Content of one part.

    Parameters
    ----------
    images : ImageTable of the B computed rows
    features, views : dict of node name to (B, …) array of the node's dtype
    taken : ImageTable of images that use the row of another image with the same digest
    failures : list of Failure
    engines : by node, the engine that computed the rows
    """

    images: ImageTable
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    views: Mapping[str, np.ndarray] = field(default_factory=dict)
    taken: ImageTable = field(default_factory=lambda: ImageTable.of([]))
    failures: Sequence[Failure] = ()
    engines: Mapping[str, str] = field(default_factory=dict)


class PartsFolder:
    """Writes parts. The caller holds the cache's lock.

    Opening the folder recovers from an interruption: a run's files that the log does not name are deleted.
    Links are never followed, and nothing is deleted that no run could have written: see `foreign`.

    Parameters
    ----------
    path : the folder, made if absent; `read_log` has refused a link in its place
    origin : Origin of the cache
    nodes : dict of name to NodeSpec
        Nodes that each image of the finished cache will have; committed together with the first part.
    state : LogState that was read from the folder, or None
    committed : called after each commit; what it raises ends the run, whose rows are committed
    """

    def __init__(
        self,
        path: Path,
        origin: Origin,
        nodes: Mapping[str, NodeSpec],
        state: LogState | None,
        committed: Callable[[], None],
    ) -> None:
        self.path, self.nodes, self._committed = path, nodes, committed
        self._origin, self._log = origin, LogWriter(path, state)
        self._nodes_committed = state is not None and state.nodes == tuple(nodes.values())
        self._new: list[PartEntry] = []
        self.reopened = False  # whether this run has committed a part, after which a table no longer counts
        path.mkdir(exist_ok=True)
        named = {LOG} | {entry.name for entry in (state.files if state else ())}
        self._delete_own(keep=named)
        self.foreign = tuple(sorted(set(os.listdir(path)) - named))
        if PID not in self.foreign:
            (path / PID).write_text(str(os.getpid()))

    def _delete_own(self, keep: Collection[str] = ()) -> None:
        for entry in os.scandir(self.path):
            if entry.name not in keep and OWN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)

    def take_new(self) -> list[PartEntry]:
        """Return the parts that were committed since the last call."""
        new, self._new = self._new, []
        return new

    def commit(self, content: PartContent) -> None:
        """Write one part and commit it. Raises OSError if the disk refuses; nothing is committed then."""

        def fill(file: h5py.File) -> None:
            layout.write_columns(file, content.images.columns())
            for views, arrays in ((False, content.features), (True, content.views)):
                for name, rows in arrays.items():
                    engine = content.engines.get(name, "")
                    layout.write_rows(file, self._origin.spec, self.nodes[name], [rows], views, [engine])
            layout.write_columns(file, content.taken.columns("taken"))
            layout.write_columns(file, failure_columns(content.failures))

        self._new.append(self._commit("part", len(content.images), fill))
        self.reopened = True

    def commit_tables(self, tables: CacheTables) -> None:
        """End a run whose rows stay in the parts: commit everything of a main file except features."""
        self._commit("table", len(tables.images), lambda file: layout.write_columns(file, tables.columns()))

    def _commit(self, kind: str, rows: int, fill: Callable[[h5py.File], None]) -> PartEntry:
        data = self._build(fill)
        name = f"{kind}-{secrets.token_hex(8)}.h5"
        fresh = self.path / f"{name}{TEMPORARY}"
        write_durably(fresh, data)
        digest = hashlib.sha256(data).hexdigest()
        if sha256_of_file(fresh) != digest:
            raise CacheError(f"{fresh} reads back differently from what was written: the disk is failing.")
        rename(fresh, self.path / name)
        self._log.start(self._origin)
        if not self._nodes_committed:
            self._log.append({"nodes": [node.to_json() for node in self.nodes.values()]})
            self._nodes_committed = True
        self._log.append({kind: name, "bytes": len(data), "sha256": digest, "rows": rows})
        self._committed()
        return PartEntry(name, len(data), digest, rows)

    def _build(self, fill: Callable[[h5py.File], None]) -> memoryview:
        """Return the bytes of the cache file that `fill` writes."""
        memory = io.BytesIO()
        with h5py.File(memory, "w", libver=layout.LIBVER) as file:
            layout.write_root(file, self._origin)
            fill(file)
            layout.seal(file)
        return memory.getbuffer()

    def close(self) -> None:
        """Leave the parts for the next run; delete the folder if nothing was committed."""
        self._log.close()
        if PID not in self.foreign:
            (self.path / PID).unlink(missing_ok=True)
        if self.path.exists() and not os.listdir(self.path):
            self.path.rmdir()

    def remove(self) -> None:
        """Delete the run's files, and the folder if no other is in it.

        The log goes first, so that after a stop no log names a deleted file.
        """
        self._log.close()
        (self.path / LOG).unlink(missing_ok=True)
        sync_folder(self.path)
        with suppress(OSError):
            self._delete_own()
            self.path.rmdir()


class PartDamaged(CacheError):
    """A committed file is not the one that the log names; the next run computes its images again."""


def require_intact(folder: Path, entry: PartEntry, thorough: bool) -> None:
    """Raise PartDamaged if a committed file has another length (`thorough`: or sha256) than the log's.

    Raises CacheError if it is a link, or may not be read.
    """
    path = folder / entry.name
    try:
        _require_own(path, stat.S_ISREG, "file")
        size = path.lstat().st_size
        same = size == entry.bytes and (not thorough or sha256_of_file(path) == entry.sha256)
    except OSError as error:
        kind = PartDamaged if error.errno in (errno.EIO, errno.ENOENT) else CacheError
        raise kind(f"{path} cannot be read: {error.strerror or error}.") from None
    if not same:
        found = f"it has {size:,} of {entry.bytes:,} bytes" if size != entry.bytes else "its sha256 differs"
        raise PartDamaged(
            f"The committed part {path} is damaged: {found}.",
            "Run the `bottleneck extract` that began it again: its images are computed again.",
        )


@dataclass(frozen=True)
class PartEntry:
    """A committed file: its name, length, sha256 and number of rows."""

    name: str
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class LogState:
    """Content of a log.

    nodes : nodes of the last run.
    table : the file that ended a run whose rows stay in the parts.
    lines, length : number and bytes of the valid lines; a torn line follows them.
    """

    origin: Origin
    nodes: tuple[NodeSpec, ...]
    parts: tuple[PartEntry, ...]
    table: PartEntry | None
    lines: int
    length: int

    @property
    def files(self) -> tuple[PartEntry, ...]:
        """All committed files."""
        return self.parts if self.table is None else (*self.parts, self.table)


def read_log(folder: Path) -> LogState | None:
    """Read a folder's log; None if nothing was ever committed.

    Raises
    ------
    CacheError
        A line other than the last is damaged, the log is of another version, or folder or log is a link.
    """
    path = folder / LOG
    try:
        _require_own(folder, stat.S_ISDIR, "folder")
        _require_own(path, stat.S_ISREG, "file")
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}.") from None
    objects, length = _valid_lines(path, data)
    if not objects:
        return None
    try:
        return _state(path, objects, length)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(path, f"a line lacks a field or has one of another type ({error})") from None


def _require_own(path: Path, is_kind: Callable[[int], bool], kind: str) -> None:
    """Raise CacheError if `path` is a link, which could lead a run to files that are not its own."""
    if not is_kind(path.lstat().st_mode):
        raise CacheError(
            f"{path} is a link or no {kind}; a run writes and deletes only in a {kind} of its own.",
            "Remove it, or give another file with -o.",
        )


def _valid_lines(path: Path, data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the objects of the valid lines and the bytes of these lines together."""
    objects: list[dict[str, Any]] = []
    length = 0
    lines = io.BytesIO(data).readlines()
    for number, line in enumerate(lines):
        value = _parse(line, number)
        if value is None:
            if number < len(lines) - 1:
                raise _damaged(path, f"line {number + 1} of {len(lines)} fails its checksum")
            break
        objects.append(value)
        length += len(line)
    return objects, length


def _parse(line: bytes, number: int) -> dict[str, Any] | None:
    """Return the object of a complete, undamaged line, otherwise None."""
    digits, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or hashlib.sha256(text).hexdigest().encode() != digits:
        return None
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.get("n") == number else None


def _state(path: Path, objects: Sequence[dict[str, Any]], length: int) -> LogState:
    first = objects[0]
    if first["format"] != LOG_FORMAT or first["format_version"] not in READABLE_VERSIONS:
        raise _damaged(path, f"its format is {first['format']!r} {first['format_version']!r}")
    nodes: tuple[NodeSpec, ...] = ()
    parts: list[PartEntry] = []
    table = None
    for value in objects[1:]:
        table = None  # a line after a table reopens the run
        if "nodes" in value:
            nodes = tuple(NodeSpec.from_json(node) for node in value["nodes"])
            continue
        name = value["table"] if "table" in value else value["part"]
        if os.path.basename(name) != name:
            raise _damaged(path, f"it names a file elsewhere ({name!r})")
        entry = PartEntry(name, int(value["bytes"]), value["sha256"], int(value["rows"]))
        if "table" in value:
            table = entry
        else:
            parts.append(entry)
    spec = CacheSpec(first["backbone"], first["preprocess"])
    origin = Origin(spec, first["source_root"], first.get("source", ""))
    return LogState(origin, nodes, tuple(parts), table, lines=len(objects), length=length)


def _damaged(path: Path, what: str) -> CacheError:
    return CacheError(
        f"The commit log {path} is damaged: {what}.",
        f"Delete {path.parent} to give up the unfinished run, then run the same command again.",
    )


class LogWriter:
    """Append to a folder's log. The caller holds the cache's lock."""

    def __init__(self, folder: Path, state: LogState | None) -> None:
        self._path = folder / LOG
        self._lines = state.lines if state else 0
        self._length = state.length if state else 0
        self._descriptor: int | None = None

    def start(self, origin: Origin) -> None:
        """Write line 0 if the log is empty."""
        if self._lines == 0:
            self.append({"format": LOG_FORMAT, "format_version": FORMAT_VERSION, **origin.to_json()})
            sync_folder(self._path.parent)

    def append(self, value: dict[str, Any]) -> None:
        """Commit one line: it is durable when this returns, and absent when this raises."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | BINARY, 0o666)
            os.ftruncate(self._descriptor, self._length)  # removes a torn line
        text = canonical_json({"n": self._lines, **value}).encode()
        line = hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n"
        os.lseek(self._descriptor, self._length, os.SEEK_SET)
        try:
            write_all(self._descriptor, line)
            sync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._length)
            raise
        self._lines += 1
        self._length += len(line)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
