"""The parts folder: rows that a running or interrupted run has computed, a few thousand rows a file.

A part is built in memory, written under another name, made durable, read back, renamed, and then named in the
commit log. If the process stops at any moment, the part counts completely or not at all.

Shapes: B rows of one part.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from bottleneck.errors import CacheError
from bottleneck.files import TEMPORARY, rename, sha256_of_file, sync_folder, write_durably
from bottleneck.store import layout, log
from bottleneck.store.log import LogState, LogWriter, PartEntry
from bottleneck.store.spec import NodeSpec, Origin
from bottleneck.store.tables import CacheTables, Failure, ImageTable, failure_columns

PID = "pid"  # file that holds the writer's process id
OWN = re.compile(rf"(part|table)-[0-9a-f]{{16}}\.h5({re.escape(TEMPORARY)})?|{PID}")  # names of a run's files


@dataclass(frozen=True)
class PartContent:
    """Content of one part.

    Parameters
    ----------
    images : ImageTable of the B computed rows
    features, views : dict of node name to (B, …) array of the node's dtype
    taken : ImageTable of images that use the row of another image with the same digest
    failures : list of Failure
    """

    images: ImageTable
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    views: Mapping[str, np.ndarray] = field(default_factory=dict)
    taken: ImageTable = field(default_factory=lambda: ImageTable.of([]))
    failures: Sequence[Failure] = ()


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
    """

    def __init__(
        self, path: Path, origin: Origin, nodes: Mapping[str, NodeSpec], state: LogState | None
    ) -> None:
        self.path, self.nodes = path, nodes
        self._origin, self._log = origin, LogWriter(path, state)
        self._nodes_committed = state is not None and state.nodes == tuple(nodes.values())
        self._new: list[PartEntry] = []
        path.mkdir(exist_ok=True)
        named = {log.NAME} | {entry.name for entry in (state.files if state else ())}
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
                    layout.write_rows(file, self._origin.spec, self.nodes[name], [rows], views)
            layout.write_columns(file, content.taken.columns("taken"))
            layout.write_columns(file, failure_columns(content.failures))

        self._new.append(self._commit("part", len(content.images), fill))

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
        (self.path / log.NAME).unlink(missing_ok=True)
        sync_folder(self.path)
        with suppress(OSError):
            self._delete_own()
            self.path.rmdir()


def require_intact(folder: Path, entry: PartEntry, thorough: bool) -> None:
    """Raise CacheError if a committed file has another length (`thorough`: or sha256) than the log's."""
    path = folder / entry.name
    try:
        status = path.lstat()
        size = status.st_size
        same = (
            stat.S_ISREG(status.st_mode)
            and size == entry.bytes
            and (not thorough or sha256_of_file(path) == entry.sha256)
        )
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}.") from None
    if not same:
        raise CacheError(
            f"The committed part {path} is damaged: it has {size} bytes or another sha256 than the log's.",
            "Delete that file and run the same command again: its images are computed anew.",
        )
