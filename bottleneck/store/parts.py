"""The parts folder: what a running or interrupted run has computed, committed a few thousand rows at a time.

A part is built in memory, written under another name, made durable, read back, renamed, and only then named
in the commit log; so whatever stops the process, a part either counts whole or not at all.

Shapes: B rows of one part.

The commit log of a parts folder: append-only lines, each with its own checksum (FORMAT.md, section 8).

What is in the log happened; what is not, did not. A torn last line is a commit that never was.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from bottleneck.errors import CacheError
from bottleneck.files import BINARY, rename, sha256_of_file, sync, sync_folder, write_all, write_durably
from bottleneck.samples import SampleTable
from bottleneck.store import layout
from bottleneck.store.spec import CacheSpec, NodeSpec, canonical_json
from bottleneck.store.tables import Failure, ImageTable, failure_columns, sample_columns

FORMAT = "bottleneck-feature-cache-parts"
FORMAT_VERSION = 1
NAME = "log"


@dataclass(frozen=True)
class PartEntry:
    """A committed file: its name, length and sha256, and how many rows it holds."""

    name: str
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class LogState:
    """What a log says.

    nodes : what the last run wanted. table : the file that ends a run whose rows stay in the parts.
    lines, length : number and bytes of the good lines; what follows `length` is a torn one.
    """

    spec: CacheSpec
    source_root: str
    nodes: tuple[NodeSpec, ...]
    parts: tuple[PartEntry, ...]
    table: PartEntry | None
    lines: int
    length: int


def read_log(folder: Path) -> LogState | None:
    """Read a folder's log; None where nothing was ever committed.

    Raises
    ------
    CacheError
        A line other than the last is damaged, or the log is of another version.
    """
    path = folder / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}.") from None
    objects, length = _good_lines(path, data)
    if not objects:
        return None
    try:
        return _state(path, objects, length)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"a line lacks what it should say ({error})") from None


def _good_lines(path: Path, data: bytes) -> tuple[list[dict], int]:
    objects: list[dict] = []
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


def _parse(line: bytes, number: int) -> dict | None:
    """The object of a whole and undamaged line, otherwise None."""
    digits, _, text = line.rstrip(b"\n").partition(b" ")
    whole = line.endswith(b"\n") and hashlib.sha256(text).hexdigest().encode() == digits
    if not whole:
        return None
    value = json.loads(text.decode())
    return value if isinstance(value, dict) and value.get("n") == number else None


def _state(path: Path, objects: list[dict], length: int) -> LogState:
    first = objects[0]
    if first["format"] != FORMAT or first["format_version"] != FORMAT_VERSION:
        raise _damaged(path, f"its format is {first['format']!r} {first['format_version']!r}")
    nodes: tuple[NodeSpec, ...] = ()
    parts: list[PartEntry] = []
    table = None
    for value in objects[1:]:
        table = None  # what follows a table supersedes it
        if "nodes" in value:
            nodes = tuple(NodeSpec.from_json(node) for node in value["nodes"])
        else:
            name = value["table"] if "table" in value else value["part"]
            if os.path.basename(name) != name:
                raise _damaged(path, f"it names a file elsewhere ({name!r})")
            entry = PartEntry(name, int(value["bytes"]), value["sha256"], int(value["rows"]))
            if "table" in value:
                table = entry
            else:
                parts.append(entry)
    spec = CacheSpec(first["backbone"], first["preprocess"])
    return LogState(spec, first["source_root"], nodes, tuple(parts), table, len(objects), length)


def _damaged(path: Path, what: str) -> CacheError:
    return CacheError(
        f"The commit log {path} is damaged: {what}.",
        f"Delete {path.parent} to give up the unfinished run, then run the same command again.",
    )


class LogWriter:
    """Appends to a folder's log; the caller holds the cache's lock."""

    def __init__(self, folder: Path, state: LogState | None) -> None:
        self._path = folder / NAME
        self._lines = state.lines if state else 0
        self._length = state.length if state else 0
        self._descriptor: int | None = None

    def start(self, spec: CacheSpec, source_root: str) -> None:
        """Write line 0, where the log has none."""
        if self._lines == 0:
            self.append(
                {
                    "format": FORMAT,
                    "format_version": FORMAT_VERSION,
                    "source_root": source_root,
                    **spec.to_json(),
                }
            )
            sync_folder(self._path.parent)

    def append(self, value: dict) -> None:
        """Commit one line. When this returns it has happened; when it raises it has not."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | BINARY, 0o666)
            os.ftruncate(self._descriptor, self._length)  # drops a torn line
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
        """Close the file; nothing is pending."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


PID = "pid"


@dataclass(frozen=True)
class PartContent:
    """What one part holds.

    Parameters
    ----------
    images : ImageTable of the B computed rows
    features, views : dict of node name to (B, …) array of the node's dtype
    taken : ImageTable of images whose digest has its row elsewhere
    failures : list of Failure
    """

    images: ImageTable
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    views: Mapping[str, np.ndarray] = field(default_factory=dict)
    taken: ImageTable = field(default_factory=lambda: ImageTable.of([]))
    failures: Sequence[Failure] = ()


class PartsFolder:
    """Writes parts; the caller holds the cache's lock.

    Opening it recovers from an interruption: a torn last line and files that the log does not name go.
    """

    def __init__(self, path: Path, spec: CacheSpec, source_root: str) -> None:
        self.path, self._spec, self._source_root = path, spec, source_root
        self._state = read_log(path)
        self._log = LogWriter(path, self._state)
        self._nodes: dict[str, NodeSpec] = {}
        self._declared = False
        self._fresh: list[PartEntry] = []
        path.mkdir(exist_ok=True)
        self._remove_strangers()
        (path / PID).write_text(str(os.getpid()))

    def entries(self) -> list[PartEntry]:
        """Parts that earlier runs committed and that are still there; one that was deleted holds no rows."""
        entries = self._state.parts if self._state else ()
        return [entry for entry in entries if (self.path / entry.name).exists()]

    @property
    def table(self) -> PartEntry | None:
        """The table that ended the last run, where that run left its rows in the parts."""
        return self._state.table if self._state else None

    def take_new(self) -> list[PartEntry]:
        """Parts that this run committed since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def declare(self, nodes: Mapping[str, NodeSpec]) -> None:
        """Say which nodes this run wants; committed together with its first part."""
        self._nodes = dict(nodes)
        self._declared = bool(self._state) and self._state.nodes == tuple(nodes.values())

    def commit(self, content: PartContent) -> PartEntry:
        """Write one part and commit it.

        Raises OSError where the disk refuses; nothing was committed then.
        """

        def fill(file: h5py.File) -> None:
            layout.write_images(file, content.images)
            for name, rows in content.features.items():
                layout.write_rows(file, self._spec, self._nodes[name], len(rows), iter([rows]))
            for name, rows in content.views.items():
                layout.write_rows(file, self._spec, self._nodes[name], len(rows), iter([rows]), views=True)
            layout.write_images(file, content.taken, group="taken")
            layout.write_columns(file, failure_columns(content.failures))

        entry = self._commit("part", len(content.images), fill)
        self._fresh.append(entry)
        return entry

    def commit_table(self, images: ImageTable, samples: SampleTable, failures: list[Failure]) -> PartEntry:
        """End a run whose rows stay in the parts: everything of a main file but the features."""

        def fill(file: h5py.File) -> None:
            layout.write_images(file, images)
            layout.write_columns(file, sample_columns(samples))
            layout.write_columns(file, failure_columns(failures))

        return self._commit("table", len(images), fill)

    def _commit(self, kind: str, rows: int, fill: Callable[[h5py.File], None]) -> PartEntry:
        data = self._built(fill)
        name = f"{kind}-{secrets.token_hex(8)}.h5"
        fresh = self.path / f"{name}.new"
        write_durably(fresh, data)
        digest = hashlib.sha256(data).hexdigest()
        if sha256_of_file(fresh) != digest:
            raise CacheError(f"{fresh} reads back differently from what was written: the disk is failing.")
        rename(fresh, self.path / name)
        entry = PartEntry(name, len(data), digest, rows)
        self._log.start(self._spec, self._source_root)
        if not self._declared:
            self._log.append({"nodes": [node.to_json() for node in self._nodes.values()]})
            self._declared = True
        self._log.append({kind: name, "bytes": entry.bytes, "sha256": digest, "rows": rows})
        return entry

    def _built(self, fill: Callable[[h5py.File], None]) -> memoryview:
        """The bytes of a cache file that `fill` filled, built in memory."""
        memory = io.BytesIO()
        with h5py.File(memory, "w", libver=layout.LIBVER) as file:
            layout.write_root(file, self._spec, self._source_root)
            fill(file)
            layout.seal(file)
        return memory.getbuffer()

    def _remove_strangers(self) -> None:
        named = {"log"} | {entry.name for entry in (self._state.parts if self._state else ())}
        if self._state and self._state.table:
            named.add(self._state.table.name)
        for entry in os.scandir(self.path):
            if entry.name not in named and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)

    def close(self) -> None:
        """Leave the parts for the next run; a folder in which nothing was committed goes."""
        self._log.close()
        (self.path / PID).unlink(missing_ok=True)
        if self.path.exists() and not os.listdir(self.path):
            self.path.rmdir()

    def remove(self) -> None:
        """Delete the folder; the log first, so that a stop in between leaves files that nobody names."""
        self._log.close()
        (self.path / "log").unlink(missing_ok=True)
        sync_folder(self.path)
        shutil.rmtree(self.path, ignore_errors=True)


def require_intact(folder: Path, entry: PartEntry, thorough: bool) -> None:
    """Raise CacheError where a committed file is not what the log says (`thorough`: its sha256 too)."""
    path = folder / entry.name
    try:
        found = path.stat().st_size
        same = found == entry.bytes and (not thorough or sha256_of_file(path) == entry.sha256)
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}.") from None
    if not same:
        raise CacheError(
            f"The committed part {path} is damaged: it has {found} bytes or another sha256 than the log's.",
            "Delete that file and run the same command again: its images are computed anew.",
        )


def read_state(folder: Path) -> LogState:
    """The state of a folder that is about to be read as a cache."""
    state = read_log(folder)
    if state is None:
        raise CacheError(
            f"{folder} holds no committed rows yet.", "Run the `bottleneck extract` that began it again."
        )
    return state
