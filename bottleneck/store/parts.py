"""The parts folder: what a running or interrupted run has computed, committed a few thousand rows at a time.

A part is built in memory, written under another name, made durable, read back, renamed, and only then named
in the commit log; so whatever stops the process, a part either counts whole or not at all.

Shapes: B rows of one part.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from bottleneck.errors import CacheError
from bottleneck.samples import SampleTable
from bottleneck.store import layout
from bottleneck.store.files import rename, sha256_of_file, sync_folder, write_durably
from bottleneck.store.log import LogState, LogWriter, PartEntry, read_log
from bottleneck.store.spec import CacheSpec, NodeSpec
from bottleneck.store.tables import Failure, ImageTable, failure_columns, sample_columns

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
