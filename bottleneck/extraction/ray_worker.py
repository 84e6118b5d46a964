"""What a Ray worker does: build the driver's trunk, prove that its rows are the driver's, compute batches.

    Task ──► Worker: the same versions, the same images, the same rows? ──► batches, or a refusal

The driver decides the engine, the precision, the calibration and BatchNorm's statistics. A worker only keeps
to them. Its graphs are the driver's own, so that it needs neither weights nor torch to run them. This module
does not import Ray.

Shapes: B images of a batch, H × W pixels, C channels, V views.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.loader import LoadedImage
from bottleneck.data.source import Source
from bottleneck.data.storage import TarFiles
from bottleneck.engines.onnx_graph import GraphCache
from bottleneck.engines.reference import complaint, measure
from bottleneck.errors import BottleneckError
from bottleneck.extraction.pipeline import Batch, Trunk, measures_of
from bottleneck.extraction.ray_task import DECODERS, Done, Part, Task, package_versions
from bottleneck.files import FileStat
from bottleneck.remote.urls import allow, one_line, without_secrets
from bottleneck.threads import use_cores

if TYPE_CHECKING:
    from bottleneck.backbones.backbone import Backbone
    from bottleneck.engines.base import Engine


class Refusal(Exception):
    """Why this worker cannot keep what the driver promises, as a clause."""


class Worker:
    """A trunk equal to the driver's. Parts are computed from several threads at once.

    Parameters
    ----------
    task : Task
    cores : int
        That Ray gave this process.
    on_gpu : bool

    Raises
    ------
    Refusal
        It would not give the driver's rows, with the reason.
    """

    def __init__(self, task: Task, cores: int, on_gpu: bool) -> None:
        use_cores(cores)
        self.task = task
        engines = [(node, engine) for engine in task.engines for node in engine.nodes]
        self._trunk = Trunk(
            partial(load_network, task.network, task.options, task.statistics),
            task.preprocess,
            replace(task.config, device="cuda" if on_gpu else "cpu"),
            task.network,
            {node: each.calibration for each in task.engines if each.calibration for node in each.made_with},
            {node: engine.precision for node, engine in engines},
            [engine.nodes for engine in task.engines],
        )
        self._require_versions()
        self._require_images()
        try:
            self._build_engines()
        except BottleneckError as error:
            raise Refusal(f"{error.message} {error.hint}".strip().rstrip(".")) from error
        self.batch = max(engine.batch for engine in self._trunk.engines.values())
        self._require_rows()

    def compute(self, part: Part) -> Done:
        """Return what the images of a part give; pixels and views are dropped."""
        items, trunk = self._computed(part)
        notes = tuple(note for engine in trunk.engines.values() for note in engine.notes)
        return Done(items, trunk.spent, notes, self.task.source.retrier.taken())

    def _computed(self, part: Part) -> tuple[list[Batch | LoadedImage], Trunk]:
        """Return the items of a part, and the trunk that computed them."""
        trunk = self._trunk.apart()
        source, task = _source_of(self.task.source, part), self.task
        with allow(*task.allowed):
            stream = trunk.stream(source, part.keys, task.nodes, views=task.views)
            return [_light(item, trunk, part.indices) for item in stream], trunk

    def _require_versions(self) -> None:
        """Raise Refusal where a package is not the driver's that decides pixels or rows."""
        libraries = ("torch",) if self._trunk.config.device != "cpu" else self.task.libraries
        names = ("bottleneck", *DECODERS, *libraries)
        here = package_versions(names)
        other = [name for name in names if _release(here[name]) != _release(self.task.versions[name])]
        if other:
            both = ", ".join(f"{name} {here[name]} instead of {self.task.versions[name]}" for name in other)
            raise Refusal(f"has {both}: install the same versions on all nodes")

    def _require_images(self) -> None:
        """Raise Refusal unless the probe's images are here what they are for the driver."""
        source = _source_of(self.task.source, self.task.probe)
        for key, digest in zip(self.task.probe.keys, self.task.digests, strict=True):
            place = without_secrets(key if "://" in key else f"{source.root.rstrip('/')}/{key}")
            try:
                with allow(*self.task.allowed):
                    data = source.read(key)
            except Exception as error:  # of any library
                reason = getattr(error, "strerror", None) or one_line(error)
                raise Refusal(f"cannot read {place}: {reason}") from error
            if hashlib.sha256(data).digest() != digest:
                raise Refusal(f"has another file at {place} than the driver")

    def _build_engines(self) -> None:
        """Build an engine for each group of nodes, of the driver's graphs where it has them."""
        graphs = GraphCache()
        for key, stored in self.task.graphs:
            here = graphs.load(*key)
            if here is None or here.graph != stored.graph:
                graphs.store(stored, *key)
        trunk, config = self._trunk, self._trunk.config
        for engine in self.task.engines:
            trunk.config = replace(config, engine=engine.name if config.device == "cpu" else "torch")
            trunk.build_engine(engine.nodes, self.task.example, _InTurn)

    def _require_rows(self) -> None:
        """Raise Refusal where the probe's rows differ from the driver's by more than the precision allows."""
        items, _ = self._computed(self.task.probe)
        first = items[0] if items else None
        if not isinstance(first, Batch) or len(first.images) != len(self.task.digests):
            reasons = [item.error for item in items if isinstance(item, LoadedImage) and item.error]
            raise Refusal(f"cannot compute the driver's images: {'; '.join(reasons)}")
        for engine in self.task.engines:
            which = [self.task.nodes.index(node) for node in engine.nodes]
            here, there = [first.features[i] for i in which], [self.task.rows[i] for i in which]
            as_cosine = engine.calibration is not None
            found = measure(here, there, as_cosine=as_cosine)
            if problem := complaint(found, engine.precision, as_cosine=as_cosine):
                against_driver = problem.replace(" from eager float32", "").replace(" with float32", "")
                raise Refusal(f"has other rows than the driver: {against_driver}")


class _InTurn:
    """An engine that makes later calls wait while it has as many as it takes at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._turns = engine, threading.BoundedSemaphore(engine.calls)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        with self._turns:
            return self._engine(pixels)


@dataclass(frozen=True)
class _PartSource(Source):
    """The source of a part, which knows what the driver told of its files."""

    told: Mapping[str, FileStat] = field(default_factory=dict)

    def stat(self, key: str) -> FileStat:
        """Return what the driver told of a file, else what is here."""
        return self.told.get(key) or super().stat(key)


def _source_of(source: Source, part: Part) -> _PartSource:
    """Return the source that reads the images of a part."""
    values = {each.name: getattr(source, each.name) for each in fields(source)}
    if part.members and isinstance(source.files, TarFiles):
        values["files"] = TarFiles(source.files.shards, dict(part.members))
    return _PartSource(**values | {"images": part.keys}, told=part.stats)


def load_network(
    recipe: dict[str, Any], options: LoadOptions, statistics: Mapping[str, np.ndarray] | None
) -> Backbone:
    """Load the driver's network. Raises BackboneError where it is not here, or is another."""
    from bottleneck.backbones.registry import load_from_recipe

    return load_from_recipe(recipe, options, statistics=statistics)


def _release(version: str) -> str:
    """Return a version without the build: torch 2.8.0+cpu is torch 2.8.0."""
    return version.partition("+")[0]


def _light(item: Batch | LoadedImage, trunk: Trunk, indices: Sequence[int]) -> Batch | LoadedImage:
    """Return an item without pixels and views, with the measures of its images, numbered as in the run."""

    def light(image: LoadedImage) -> LoadedImage:
        return replace(image, index=indices[image.index], pixels=None, views=None)

    if isinstance(item, LoadedImage):
        return light(item)
    measures = measures_of(item.images, trunk.preprocess)
    return Batch([light(image) for image in item.images], item.features, item.views, measures)
