"""One HDF5 file in the cache format, opened for reading: a main file, a companion or a part.

Tables and rows of features are compared with their checksums whenever they are read.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import h5py
import numpy as np

from bottleneck.errors import ArtifactError, BottleneckError, CacheError, counted, listed
from bottleneck.names import MEASURES
from bottleneck.records import require_calibration
from bottleneck.remote.path import path_of
from bottleneck.samples import SampleTable
from bottleneck.store import layout
from bottleneck.store.chunks import CheckedRows, spans_of
from bottleneck.store.layout import PARTS
from bottleneck.store.spec import CacheSpec, NodeSpec, Origin, canonical_json, link_name, name_of_link
from bottleneck.store.tables import (
    FAILURE_COLUMNS,
    IMAGE_COLUMNS,
    MEASURED,
    UNKNOWN_BEFORE_2,
    Column,
    Failure,
    ImageTable,
    columns_of,
    failures_of,
    no_samples,
    sample_flags,
    samples_of,
    set_aside_of,
)
from bottleneck.store.validate import open_untrusted

MAX_OPEN = 64  # parts that a `FilePool` holds open
TABLES = ("images", "samples", "labels", "covariates", "failures")  # groups and datasets of `CacheTables`


class CacheFile:
    """A file of the format, open for reading.

    Parameters
    ----------
    path : path of one HDF5 file

    Attributes
    ----------
    origin : Origin
    nodes : dict of name to NodeSpec, for each dataset under /features
    created_with : str
    map_name : str or None
        Name of the node whose map a companion holds.

    Raises
    ------
    CacheError
        The file is not a cache, or a recipe, a table or the structure does not match its checksum.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path_of(path)
        self.file = open_untrusted(self.path)
        self._checked: dict[str, CheckedRows] = {}
        try:
            self._read_root()
        except BaseException:
            self.file.close()
            raise

    def _read_root(self) -> None:
        attributes = self.file.attrs
        try:
            if layout.structure_checksum(self.file) != attributes["sha256"]:
                raise self.damaged("its attributes, names or shapes do not match the root's checksum")
            self.spec = CacheSpec(json.loads(attributes["backbone"]), json.loads(attributes["preprocess"]))
            self.nodes = {node.name: node for node in self._read_nodes()}
            self.engines = {name: self._read_engines(node) for name, node in self.nodes.items()}
        except (KeyError, TypeError, ValueError, OSError, RuntimeError, ArtifactError) as error:
            raise self.damaged(f"a recipe cannot be read ({error})") from None
        if self.spec.fingerprint != attributes["fingerprint"]:
            raise self.damaged("its fingerprint is not that of its recipes")
        self.origin = Origin(self.spec, str(attributes["source_root"]), str(attributes.get("source", "")))
        self.created_with = str(attributes.get("created_with", ""))
        self.map_name: str | None = attributes.get("map")

    def _read_nodes(self) -> list[NodeSpec]:
        views = self.file.get("views", {})
        nodes = []
        for link, dataset in self.file.get("features", {}).items():
            texts: dict[str, Any] = {name: str(dataset.attrs[name]) for name in layout.NODE_TEXTS}
            recipe = json.loads(views[link].attrs["views"]) if link in views else None
            records = {
                name: json.loads(dataset.attrs[name])
                for name in ("calibration", "decoding_agreement", "calibrated_on")
                if name in dataset.attrs
            }
            if "calibration" in records:
                require_calibration(records["calibration"], f"The calibration of {link!r}")
            aliases = tuple(json.loads(dataset.attrs.get("aliases", "[]")))
            node = NodeSpec(shape=dataset.shape[1:], views=recipe, aliases=aliases, **records, **texts)
            if dataset.shape[0] != self.file["images/key"].shape[0]:
                raise ValueError(f"/features/{link} does not have a row per image")
            if node.dataset() != f"features/{link}" or dataset.dtype.name != node.dtype:
                raise ValueError(f"/features/{link} is not what its attributes say")
            if node.fingerprint(self.spec) != dataset.attrs["fingerprint"]:
                raise ValueError(f"/features/{link} has another fingerprint than its attributes give")
            if recipe is not None:
                stored = views[link].attrs["fingerprint"], views[link].shape, views[link].dtype.name
                shape = (len(dataset), *node.views_shape)
                if stored != (node.fingerprint(self.spec, views=True), shape, node.dtype):
                    raise ValueError(f"/views/{link} is not what its attributes say")
            nodes.append(node)
        return nodes

    def _read_engines(self, node: NodeSpec) -> frozenset[str]:
        """Return the engines that computed a node's rows; "" stands for rows of a file that does not tell."""
        names = json.loads(self.file[node.dataset()].attrs.get("engines", '[""]'))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"/{node.dataset()} has engines that are no list of names")
        return frozenset(names)

    @cached_property
    def images(self) -> ImageTable:
        """The images of the file's rows."""
        return self.image_group("images")

    @cached_property
    def digest(self) -> np.ndarray:
        """Digests (n, 32) of the images of the file's rows."""
        return vars(self)["images"].digest if "images" in vars(self) else self.read_checked("images/digest")

    def image_group(self, group: str) -> ImageTable:
        """Return the table in /images, or in /taken of a part; it is empty if the group is absent."""
        if not self._has(group):
            return ImageTable.of([])
        columns = self._read_group(group, IMAGE_COLUMNS)
        path = f"{group}/{MEASURED}"
        if path in self.file and self.file[path].attrs.get("names") == canonical_json(list(MEASURES)):
            columns[MEASURED] = self.read_checked(path)
            if columns[MEASURED].shape != (len(columns["key"]), len(MEASURES)):
                raise self.damaged(f"/{path} does not have a row per image")
        return ImageTable.of_columns(columns)

    @cached_property
    def failures(self) -> list[Failure]:
        """Inputs that gave no row."""
        return failures_of(self._read_group("failures", FAILURE_COLUMNS)) if self._has("failures") else []

    @cached_property
    def samples(self) -> SampleTable:
        """The sample table; empty if the file holds none."""
        if not self._has("samples"):
            return no_samples()
        try:
            columns = self.read_tables(("samples", "labels", "covariates"))
        except CacheError as error:
            raise CacheError(error.message, f"{self._again}: it writes samples and labels anew.") from None
        try:
            samples = samples_of(columns)
        except (BottleneckError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self.damaged(f"its samples cannot be read: {str(error).rstrip('.')}") from None
        if samples.image.size and not 0 <= samples.image.min() <= samples.image.max() < len(self.images):
            raise self.damaged("a sample points at an image that is not there")
        if samples.image.shape[1] == 1:
            named = self.images.key[samples.image[:, 0]]
            if np.array_equal(samples.key, named):
                return replace(samples, key=named)  # sample and image share one str; there may be millions
        return samples

    def read_tables(self, names: Iterable[str] = TABLES) -> dict[str, Column]:
        """Read the datasets of the tables `names`, by path. They are read anew each time."""
        columns = {}
        for name in names:
            item = self.file.get(name, {})
            for path in [name] if isinstance(item, h5py.Dataset) else [f"{name}/{link}" for link in item]:
                values = self.read_checked(path)
                attributes = {key: text for key, text in self.file[path].attrs.items() if key != "sha256"}
                columns[path] = Column(values, attributes)
        return columns

    def _has(self, path: str) -> bool:
        if not self.file:  # h5py finds nothing in a closed file, which is no file without rows
            raise ValueError(f"{self.path} is closed.")
        return path in self.file

    def read_checked(self, path: str) -> np.ndarray:
        """Read a whole small dataset and compare it with its checksum."""
        try:
            dataset = self.file[path]
            values = dataset[...]
            same = layout.sha256_of(values) == dataset.attrs["sha256"]
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise self.damaged(f"/{path} cannot be read ({error})") from None
        if not same:
            raise self.damaged(f"/{path} does not match its checksum")
        return values

    def _read_group(self, group: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        if self.file.attrs["format_version"] == 1:
            names = tuple(name for name in names if name not in UNKNOWN_BEFORE_2)
        columns = {name: self.read_checked(f"{group}/{name}") for name in names}
        if len({len(column) for column in columns.values()}) > 1:
            raise self.damaged(f"the columns of /{group} have different lengths")
        return columns

    def rows(self, dataset: str) -> CheckedRows:
        """Return the rows of the features or views at the path `dataset`.

        Raises CacheError if their checksums are damaged and `damage` was not called.
        """
        if dataset not in self._checked:
            self._checked[dataset] = CheckedRows(self.file[dataset], self._sums(dataset))
        return self._checked[dataset]

    def _sums(self, dataset: str) -> np.ndarray | None:
        """Return the crc32 of each chunk; None if the file was written without them."""
        path = layout.sums_path(dataset)
        if path not in self.file:
            return None
        stored = self.file[dataset]
        chunks = stored.id.get_num_chunks() if stored.chunks else 0
        try:
            sums = self.read_checked(path)
        except CacheError as error:
            raise CacheError(error.message, self.mend) from None
        if sums.shape != (chunks,) or sums.dtype != np.int64:
            raise CacheError(
                f"{self.path} is damaged: /{path} has no int64 for each of {counted(chunks, 'chunk')}.",
                self.mend,
            )
        return sums

    def damage(self, nodes: Iterable[NodeSpec]) -> dict[str, np.ndarray]:
        """Return the damaged rows of each dataset of `nodes`, by path; it reads them all.

        A dataset whose checksums alone are damaged has an entry without rows, one that is sound has none.
        """
        found = {}
        for path in (path for node in nodes for path in node.datasets):
            try:
                rows, known = self.rows(path).damaged(), True
            except CacheError:  # the rows are then compared with their sha256
                self._checked[path] = CheckedRows(self.file[path], None)
                rows, known = self._checked[path].damaged(), False
            if len(rows) or not known:
                found[path] = rows
        return found

    def require_sound(self, nodes: Iterable[NodeSpec]) -> None:
        """Raise CacheError if rows of `nodes` are damaged.

        It is called before features are copied, because the copy of a damaged row would get a new checksum.
        """
        for path, rows in self.damage(nodes).items():
            raise self.damaged_rows(path, rows)

    def damaged_rows(self, dataset: str, rows: np.ndarray) -> CacheError:
        """Return the error for rows of a dataset that do not match their checksums."""
        return CacheError(f"{self.path} is damaged: {describe_rows(dataset, rows)}.", self.mend)

    @property
    def mend(self) -> str:
        """What to do about damaged rows of features: the command that computes them again."""
        return f"{self._again}: it computes those rows again and nothing else."

    @property
    def _again(self) -> str:
        folder = self.path.parent
        if folder.name.endswith(PARTS):
            main, before = folder.with_name(folder.name.removesuffix(PARTS)), f"Delete {self.path}, then run "
        elif self.map_name is not None:
            node = link_name(self.map_name.removesuffix("@none"))
            main, before = folder / (self.path.stem.removesuffix(f"--{node}") + self.path.suffix), "Run "
        else:
            main, before = self.path, "Run "
        source = self.origin.source if not self.origin.source.startswith("-") else f"./{self.origin.source}"
        flags = self._sample_flags(main)
        return f"{before}`bottleneck extract {quote(source)}{flags} -o {quote(str(main))}`"

    def _sample_flags(self, main: Path) -> str:
        """Return the flags that give the samples again; the file `main` knows, where this is a map or a part.

        "" where they cannot be read: the file may be damaged.
        """
        with suppress(KeyError, TypeError, ValueError, OSError, RuntimeError, CacheError):
            if "samples/key" in self.file:
                return _flags_in(self.file)
            if main != self.path and main.is_file():
                with open_untrusted(main) as file:
                    return _flags_in(file)
        return ""

    def damaged(self, what: str) -> CacheError:
        """Return the error for a damaged file."""
        verify = f"bottleneck cache verify {quote(str(self.path))}"
        return CacheError(
            f"{self.path} is damaged: {what}.",
            f"See `{verify}`; restore it or delete it and compute it again.",
        )

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __enter__(self) -> CacheFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _flags_in(file: h5py.File) -> str:
    columns, splits, labels = file["samples/key"].attrs, file["samples/split"].attrs, file.get("labels", {})
    targets = [
        (name_of_link(link), str(labels[link].attrs["kind"]), json.loads(labels[link].attrs["class_names"]))
        for link in labels
    ]
    aside = set_aside_of(splits.get("set_aside", "{}"))
    return sample_flags(columns_of(columns.get("columns", "{}")), aside, targets)


def describe_rows(dataset: str, rows: np.ndarray) -> str:
    """Return what is damaged of a node, as a part of a sentence; `dataset` is the path of its rows."""
    group, _, link = dataset.partition("/")
    node = f"{'the views of ' if group == 'views' else ''}node {name_of_link(link)!r}"
    if not len(rows):
        return f"the checksums of {node} cannot be read"
    if len(rows) == 1:
        return f"row {rows[0]} of {node} does not match its checksum"
    spans = [str(first) if first == last else f"{first} to {last}" for first, last in spans_of(rows)]
    return f"rows {listed(spans, 4)} of {node} do not match their checksums"


class FilePool:
    """Cache files by path, opened on demand; at most MAX_OPEN of them are open at a time.

    Files that were added open stay open, since another file may have taken their path meanwhile.
    """

    def __init__(self) -> None:
        self._added: dict[Path, CacheFile] = {}
        self._open: OrderedDict[Path, CacheFile] = OrderedDict()

    def add(self, file: CacheFile) -> None:
        """Take over an open file, which `close` closes."""
        self._added[file.path] = file

    def get(self, path: Path) -> CacheFile:
        """Return the open file at `path`."""
        if path in self._added:
            return self._added[path]
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        while len(self._open) >= MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        self._open[path] = CacheFile(path)
        return self._open[path]

    def close(self) -> None:
        """Close every file."""
        for file in [*self._added.values(), *self._open.values()]:
            file.close()
        self._added.clear()
        self._open.clear()


def find_companions(main: Path, spec: CacheSpec) -> tuple[dict[str, CacheFile], dict[str, CacheError]]:
    """Open the companions of the main file `main`.

    A file with a matching name but other recipes is not a companion: it may belong to another cache.

    Returns
    -------
    companions : dict of node name to CacheFile
    errors : dict of file name to the reason why it cannot be opened
    """
    companions: dict[str, CacheFile] = {}
    errors: dict[str, CacheError] = {}
    for name in sorted(beside.name for beside in main.parent.iterdir()) if main.parent.is_dir() else ():
        if not (name.startswith(f"{main.stem}--") and name.endswith(main.suffix)):
            continue
        path = main.with_name(name)
        try:
            companion = CacheFile(path)
        except CacheError as error:
            errors[name] = error
            continue
        node = companion.nodes.get(companion.map_name or "")
        if node and layout.companion_path(main, node) == path and companion.spec == spec:
            companions[node.name] = companion
        else:
            companion.close()
    return companions, errors
