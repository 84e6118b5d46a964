"""The commit log of a parts folder: append-only lines, each with its own checksum (FORMAT.md, section 8).

A line in the log was committed. A last line that is incomplete was not, and is ignored.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.errors import CacheError
from bottleneck.files import BINARY, sync, sync_folder, write_all
from bottleneck.store.spec import CacheSpec, NodeSpec, Origin, canonical_json

FORMAT = "bottleneck-feature-cache-parts"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
NAME = "log"


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
    path = folder / NAME
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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
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
    value = json.loads(text.decode())
    return value if isinstance(value, dict) and value.get("n") == number else None


def _state(path: Path, objects: Sequence[dict[str, Any]], length: int) -> LogState:
    first = objects[0]
    if first["format"] != FORMAT or first["format_version"] not in READABLE_VERSIONS:
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
        self._path = folder / NAME
        self._lines = state.lines if state else 0
        self._length = state.length if state else 0
        self._descriptor: int | None = None

    def start(self, origin: Origin) -> None:
        """Write line 0 if the log is empty."""
        if self._lines == 0:
            self.append({"format": FORMAT, "format_version": FORMAT_VERSION, **origin.to_json()})
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
