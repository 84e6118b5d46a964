"""One HDF5 file in the cache format, opened for reading: a main file, a companion or a part.

Tables are small and are compared with their checksums whenever they are read. Features are not: see `verify`.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from shlex import quote

import h5py
import numpy as np

from bottleneck.errors import BottleneckError, CacheError
from bottleneck.samples import SampleTable
from bottleneck.store import layout
from bottleneck.store.spec import CacheSpec, NodeSpec, Origin
from bottleneck.store.tables import (
    FAILURE_COLUMNS,
    IMAGE_COLUMNS,
    UNKNOWN_BEFORE_2,
    Column,
    Failure,
    ImageTable,
    failures_of,
    no_samples,
    samples_of,
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
        self.path = Path(path)
        self.file = open_untrusted(self.path)
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
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
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
            texts = {name: str(dataset.attrs[name]) for name in layout.NODE_TEXTS}
            recipe = json.loads(views[link].attrs["views"]) if link in views else None
            calibration = json.loads(dataset.attrs["calibration"]) if "calibration" in dataset.attrs else None
            node = NodeSpec(shape=dataset.shape[1:], views=recipe, calibration=calibration, **texts)
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

    @cached_property
    def images(self) -> ImageTable:
        """The images of the file's rows."""
        return self.image_group("images")

    def image_group(self, group: str) -> ImageTable:
        """Return the table in /images, or in /taken of a part; it is empty if the group is absent."""
        if group not in self.file:
            return ImageTable.of([])
        return ImageTable.of_columns(self._read_group(group, IMAGE_COLUMNS))

    @cached_property
    def failures(self) -> list[Failure]:
        """Inputs that gave no row."""
        return failures_of(self._read_group("failures", FAILURE_COLUMNS)) if "failures" in self.file else []

    @cached_property
    def samples(self) -> SampleTable:
        """The sample table; empty if the file holds none."""
        if "samples" not in self.file:
            return no_samples()
        try:
            samples = samples_of(self.read_tables(("samples", "labels", "covariates")))
        except (BottleneckError, KeyError, ValueError, TypeError, AttributeError) as error:
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

    def require_sound(self, nodes: Iterable[NodeSpec]) -> None:
        """Compare features with their checksums. Raises CacheError if they differ.

        It is called before features are copied, because the copy of a damaged row would get a new checksum.
        """
        for path in (path for node in nodes for path in node.datasets):
            try:
                same = layout.checksum(self.file[path]) == self.file[path].attrs["sha256"]
            except (OSError, RuntimeError, KeyError) as error:
                raise self.damaged(f"/{path} cannot be read ({error})") from None
            if not same:
                raise self.damaged(f"/{path} does not match its checksum")

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
    for name in sorted(os.listdir(main.parent)) if main.parent.is_dir() else ():
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
