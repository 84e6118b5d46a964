"""One HDF5 file in the format, opened and understood: main files, companions and parts alike.

Tables are small and are compared with their checksums whenever they are read. Features are not: see `verify`.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from shlex import quote

import h5py
import numpy as np

from bottleneck.errors import BottleneckError, CacheError
from bottleneck.samples import SampleTable
from bottleneck.store import layout
from bottleneck.store.spec import CacheSpec, NodeSpec
from bottleneck.store.tables import (
    Column,
    Failure,
    ImageTable,
    failures_of,
    images_of,
    link_name,
    no_samples,
    samples_of,
)
from bottleneck.store.validate import open_untrusted


class CacheFile:
    """A file of the format, held open for reading.

    Parameters
    ----------
    path : path of one HDF5 file

    Attributes
    ----------
    spec : CacheSpec
    nodes : dict of name to NodeSpec, for each dataset under /features
    source_root, created_with : str
    map_name : str or None
        Of a companion, the node whose map it holds.

    Raises
    ------
    CacheError
        The file is no cache, or a recipe, table or the structure does not match its checksum.
    """

    def __init__(self, path: str | os.PathLike) -> None:
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
            self.nodes = {node.name: node for node in self._nodes()}
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise self.damaged(f"a recipe cannot be read ({error})") from None
        if self.spec.fingerprint != attributes["fingerprint"]:
            raise self.damaged("its fingerprint is not that of its recipes")
        self.source_root = str(attributes["source_root"])
        self.created_with = str(attributes.get("created_with", ""))
        self.map_name = attributes.get("map")

    def _nodes(self) -> list[NodeSpec]:
        views = self.file.get("views", {})
        nodes = []
        for link, dataset in self.file.get("features", {}).items():
            texts = {name: str(dataset.attrs[name]) for name in layout.NODE_TEXTS}
            recipe = json.loads(views[link].attrs["views"]) if link in views else None
            calibration = json.loads(dataset.attrs["calibration"]) if "calibration" in dataset.attrs else None
            node = NodeSpec(shape=dataset.shape[1:], views=recipe, calibration=calibration, **texts)
            if dataset.shape[0] != self.file["images/key"].shape[0]:
                raise ValueError(f"/features/{link} does not have a row per image")
            if link_name(node.name) != link or dataset.dtype.name != node.dtype:
                raise ValueError(f"/features/{link} is not what its attributes say")
            if node.fingerprint(self.spec) != dataset.attrs["fingerprint"]:
                raise ValueError(f"/features/{link} has another fingerprint than its attributes give")
            if recipe is not None:
                seen = views[link].attrs["fingerprint"], views[link].shape, views[link].dtype.name
                shape = (len(dataset), *node.views_shape)
                if seen != (node.fingerprint(self.spec, views=True), shape, node.dtype):
                    raise ValueError(f"/views/{link} is not what its attributes say")
            nodes.append(node)
        return nodes

    @cached_property
    def images(self) -> ImageTable:
        """The images of the file's rows."""
        return self.image_group("images")

    def image_group(self, group: str) -> ImageTable:
        """/images, or /taken of a part; empty where absent."""
        if group not in self.file:
            return ImageTable.of([])
        return images_of(self._columns(group, ("key", "digest", "size", "mtime_ns")))

    @cached_property
    def failures(self) -> list[Failure]:
        """Inputs that gave no row."""
        if "failures" not in self.file:
            return []
        return failures_of(self._columns("failures", ("key", "reason", "digest", "size", "mtime_ns")))

    @property
    def sample_columns(self) -> dict[str, Column]:
        """The datasets of samples, labels and covariates, by path; read anew each time."""
        paths = [f"{group}/{name}" for group in ("samples", "labels") for name in self.file.get(group, ())]
        columns = {}
        for path in paths + ["covariates"] * ("covariates" in self.file):
            values = self.read_checked(path)
            kept = {name: value for name, value in self.file[path].attrs.items() if name != "sha256"}
            columns[path] = Column(values, kept)
        return columns

    @cached_property
    def samples(self) -> SampleTable:
        """The sample table; empty where the file holds none."""
        if "samples" not in self.file:
            return no_samples()
        try:
            samples = samples_of(self.sample_columns)
        except (BottleneckError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise self.damaged(f"its samples cannot be read: {str(error).rstrip('.')}") from None
        if samples.image.size and not 0 <= samples.image.min() <= samples.image.max() < len(self.images):
            raise self.damaged("a sample points at an image that is not there")
        named = self.images.key[samples.image[:, 0]] if samples.image.shape[1] == 1 else None
        # One str for a sample and its image: there may be millions.
        return replace(samples, key=named) if np.array_equal(samples.key, named) else samples

    def read_checked(self, path: str) -> np.ndarray:
        """A whole small dataset, compared with its checksum."""
        try:
            dataset = self.file[path]
            values = dataset[...]
            same = hashlib.sha256(np.ascontiguousarray(values)).hexdigest() == dataset.attrs["sha256"]
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise self.damaged(f"/{path} cannot be read ({error})") from None
        if not same:
            raise self.damaged(f"/{path} does not match its checksum")
        return values

    def rows_of(self, path: str) -> h5py.Dataset:
        """The dataset at features/<link> or views/<link>."""
        return self.file[path]

    def _columns(self, group: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        columns = {name: self.read_checked(f"{group}/{name}") for name in names}
        if len({len(column) for column in columns.values()}) > 1:
            raise self.damaged(f"the columns of /{group} have different lengths")
        return columns

    def damaged(self, what: str) -> CacheError:
        """The error for a file that does not hold together."""
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

    def __exit__(self, *exception) -> None:
        self.close()


def dataset_paths(node: NodeSpec) -> tuple[str, ...]:
    """The datasets that a node's rows need: its features, and its views where it has a recipe for them."""
    link = link_name(node.name)
    return (f"features/{link}",) if node.views is None else (f"features/{link}", f"views/{link}")


def find_companions(
    main: Path, fingerprint: str, source_root: str
) -> tuple[dict[str, CacheFile], dict[str, CacheError]]:
    """Open the companions that belong to the main file `main`.

    A file of a fitting name that holds another recipe's map is not one of them, and neither is another cache
    whose own name happens to begin alike.

    Returns
    -------
    found : dict of node name to CacheFile
    broken : dict of file name to the reason why it cannot be opened
    """
    found: dict[str, CacheFile] = {}
    broken: dict[str, CacheError] = {}
    prefix = f"{main.stem}--"
    for name in sorted(os.listdir(main.parent)):
        if not (name.startswith(prefix) and name.endswith(main.suffix)):
            continue
        try:
            companion = CacheFile(main.with_name(name))
        except CacheError as error:
            broken[name] = error
            continue
        node = companion.nodes.get(companion.map_name or "")
        fits = node is not None and layout.companion_path(main, node).name == name
        if fits and (companion.spec.fingerprint, companion.source_root) == (fingerprint, source_root):
            found[node.name] = companion
        else:
            companion.close()
    return found, broken
