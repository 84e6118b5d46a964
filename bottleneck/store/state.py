"""The state of a cache before and during a run: the finished file, its companions, and committed parts.

The state only reads. `plan` decides from it what is missing; `CacheWriter` keeps it up to date during a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bottleneck.errors import CacheError
from bottleneck.store.cachefile import CacheFile, find_companions
from bottleneck.store.index import Added, hashes_of
from bottleneck.store.layout import companion_path, parts_folder
from bottleneck.store.parts import LogState, PartDamaged, PartEntry, read_log
from bottleneck.store.rows import Catalog
from bottleneck.store.spec import NodeSpec, Origin, require_equal

OTHER_FILE = "Leave those flags out, or give another file with -o."
OTHER_RUN = "Repeat that run with its settings, or delete {} to give it up."


class CacheState:
    """What a cache on disk holds, compared with the settings of a run that wants to continue it.

    Parameters
    ----------
    path : path of the main file, which may be absent
    origin : Origin of the run
    nodes : requested NodeSpecs
    moved : the images of the cache are those of the run although their source root is another

    Attributes
    ----------
    nodes : dict of name to NodeSpec
        Nodes that each image of the finished cache will have: the requested ones and those of the main file.
        Views that the cache has and the run did not request are adopted.
    main : CacheFile or None
    companions : dict of node name to CacheFile
    log : LogState of the parts folder, without damaged files, or None
    damage : numbers of the damaged rows by file, then by path of the dataset; they count as absent
    damaged_parts : what is wrong with committed files, which count as absent, by path
    damaged_samples : what is wrong with the samples of the main file, which are written anew; "" if nothing
    catalog : Catalog of the rows in all files
    records, failures : by key, those of `Catalog`
    finished : hashes (n, 16) of the keys of the last finished run, as of `hashes_of`
    cached_source : what the cache was extracted from, see `Origin`; None for a new cache

    Raises
    ------
    FingerprintError
        The cache was made with other settings; `fields` names them.
    CacheError
        A file is damaged.
    """

    def __init__(self, path: Path, origin: Origin, nodes: Sequence[NodeSpec], *, moved: bool = False) -> None:
        self.path, self.origin, self.moved = path, origin, moved
        self.catalog = Catalog()
        self.records, self.failures = self.catalog.records, self.catalog.failures
        self.main: CacheFile | None = None
        self.finished = hashes_of([])
        self.damaged_samples = ""
        self.damaged_parts: dict[Path, str] = {}
        self.damage: dict[Path, dict[str, np.ndarray]] = {}
        self._added: dict[tuple[str, ...], Added] = {}  # by nodes, see `add_rows`
        try:
            self._open_main()
            self._open_companions()
            self.log = self._read_log()
            self.nodes = self._merge_nodes(nodes)
            for name, companion in self.companions.items():
                if name in self.nodes:
                    self._add_rows(companion)
            self._open_parts()
            self.catalog.settle()
        except BaseException:
            self.close()
            raise
        known = self.main.origin if self.main is not None else self.log.origin if self.log else None
        self.cached_source = None if known is None else known.source
        self._name_of = {dataset: node.name for node in self.nodes.values() for dataset in node.datasets}

    def _open_main(self) -> None:
        if not self.path.exists():
            return
        self.main = main = CacheFile(self.path)
        self.catalog.pool.add(main)
        if main.map_name is not None:
            raise CacheError(
                f"{self.path} is the map of node {main.map_name!r} of another cache.",
                "Name the main file, whose name ends before the last '--'.",
            )
        main.origin.require_equal(self.origin, f"The cache {self.path}", OTHER_FILE, self.moved)
        self._add_rows(main)
        self.catalog.add_keys(main)
        try:
            _ = main.samples
        except CacheError as error:
            self.damaged_samples = error.message
        self.finished = hashes_of(main.images.name)

    def _add_rows(self, file: CacheFile) -> None:
        damage = file.damage(file.nodes.values())
        if damage:
            self.damage[file.path] = damage
        self.catalog.add_rows(file, damage)

    def _open_companions(self) -> None:
        self.companions, self._broken = find_companions(self.path, self.origin.spec)
        for companion in self.companions.values():
            self.catalog.pool.add(companion)

    def _read_log(self) -> LogState | None:
        folder = parts_folder(self.path)
        log = read_log(folder)
        if log is not None:
            where = f"The interrupted run in {folder}"
            log.origin.require_equal(self.origin, where, OTHER_RUN.format(folder), self.moved)
        return log

    def _merge_nodes(self, requested: Sequence[NodeSpec]) -> dict[str, NodeSpec]:
        """Return the main file's nodes and the requested ones. Raises FingerprintError if they disagree."""
        nodes = {} if self.main is None else dict(self.main.nodes)
        cached = nodes | {name: file.nodes[name] for name, file in self.companions.items()}
        for node in requested:
            companion = companion_path(self.path, node).name
            if node.is_map and companion in self._broken:
                raise self._broken[companion]
            if node.name in cached:
                where = f"Node {node.name!r} of {self.path}"
                node = _agreed(cached[node.name], node, where, OTHER_FILE)
            nodes[node.name] = node
        for node in () if self.log is None else self.log.nodes:
            if node.name in nodes:
                folder = parts_folder(self.path)
                where = f"Node {node.name!r} of the interrupted run in {folder}"
                _agreed(node, nodes[node.name], where, OTHER_RUN.format(folder))
        if not nodes:
            raise CacheError("A cache needs at least one node.", "Name one with --node.")
        return nodes

    def _open_parts(self) -> None:
        folder = parts_folder(self.path)
        if self.log is None:
            return
        table = None if self.log.table is None else self._open_part(folder, self.log.table)
        if table is not None:  # it has the keys of all parts before it
            self.catalog.add_keys(table)
            self.finished = hashes_of(table.images.name)
        parts = []
        for entry in self.log.parts:  # entered one by one, since the pool closes all but the latest
            part = self._open_part(folder, entry)
            if part is not None:
                self.catalog.add_rows(part)
                if table is None:
                    self.catalog.add_keys(part)
                parts.append(entry)
        self.log = replace(self.log, parts=tuple(parts), table=self.log.table if table is not None else None)

    def _open_part(self, folder: Path, entry: PartEntry) -> CacheFile | None:
        """Open a committed file; None if it is damaged, or was deleted: then it holds no rows."""
        try:
            return self.catalog.open_part(folder, entry, thorough=True)
        except PartDamaged as error:
            if (folder / entry.name).exists():
                self.damaged_parts[folder / entry.name] = error.message
            return None

    @property
    def all_nodes(self) -> dict[str, NodeSpec]:
        """The nodes of all files of the cache, those that this run does not touch included."""
        return {name: file.nodes[name] for name, file in self.companions.items()} | self.nodes

    def missing(self, digest: np.ndarray) -> np.ndarray:
        """Return (N, nodes) bool, whether no file has the row, or the views, of a digest of (N, 32)."""
        absent = self.catalog.missing(digest, list(self._name_of))
        of = list(self._name_of.values())
        columns = [[i for i, name in enumerate(of) if name == node] for node in self.nodes]
        return np.stack([absent[:, each].any(axis=1) for each in columns], axis=1)

    def has(self, digest: bytes, names: Sequence[str]) -> bool:
        """Return True if the digest has rows of all nodes `names`, those added in this run included."""
        left = set(names)
        for added, digests in [*self._added.items()]:  # a copy: threads ask while another adds
            if not left.isdisjoint(added) and digest in digests:
                left -= set(added)
        if left:
            absent = self.missing(np.frombuffer(digest, np.uint8)[None])[0]
            left &= {name for name, lacks in zip(self.nodes, absent, strict=True) if lacks}
        return not left

    def has_record(self, key: str) -> bool:
        """Return whether all rows of the image `key` are there, of whatever bytes it was in the last run."""
        at = self.records.find(hashes_of([key]))
        return at[0] >= 0 and key not in self.failures and not self.missing(self.records.digest[at]).any()

    def add_rows(self, names: Sequence[str], digests: Sequence[bytes]) -> None:
        """Note that this run has computed rows of the nodes `names`; they may not be committed yet."""
        self._added.setdefault(tuple(names), Added()).add(digests)

    def add_part(self, entry: PartEntry) -> int:
        """Enter rows and keys of a part that this run committed. Returns the number of rows computed for it.

        Its sha256 was compared when it was written.
        """
        part = self.catalog.open_part(parts_folder(self.path), entry, thorough=False)
        self.catalog.add_rows(part)
        self.catalog.add_keys(part)
        return len(part.images) if part.nodes else 0

    def close(self) -> None:
        """Close every file."""
        self.catalog.close()

    def __enter__(self) -> CacheState:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _agreed(cached: NodeSpec, requested: NodeSpec, where: str, hint: str) -> NodeSpec:
    """Return the node that both describe. Views that only one of them has are no difference."""
    views = requested.views if cached.views is None else cached.views
    ours = replace(cached.with_facts_of(requested), views=views)
    theirs = replace(
        requested, views=views if requested.views is None else requested.views, aliases=ours.aliases
    )
    require_equal(ours.recipe(), theirs.recipe(), where, hint)
    return ours
