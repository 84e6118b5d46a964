"""The trunk of an extraction on a Ray cluster: the driver plans and writes, workers read, decode and compute.

    keys ──► parts ──► workers (`ray_pool`, `ray_worker`) ──► batches, in the order in which they are done

It streams as `pipeline.Trunk` does, so that the cache is the one that a single process writes. The engine is
built here first, on images of the run: workers get it, and refuse to start where they would give other rows.

Shapes: B images of a batch, V views.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.loader import LoadedImage, load_images
from bottleneck.data.source import Source
from bottleneck.engines.graph_engine import int8_keys
from bottleneck.engines.onnx_graph import GraphCache, StoredGraph
from bottleneck.errors import ClusterError, Note, SourceError, counted
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.pipeline import BATCH_SIZE, Batch, Trunk
from bottleneck.extraction.prepare import Extraction
from bottleneck.extraction.ray_cluster import (
    STORE_HINT,
    Size,
    connected,
    living_nodes,
    require_ray,
    require_room,
    sizes_of,
)
from bottleneck.extraction.ray_pool import AT_WORK, Pool
from bottleneck.extraction.ray_task import (
    DECODERS,
    Done,
    EngineOf,
    Part,
    Task,
    package_versions,
    part_of,
    portable,
)
from bottleneck.progress import SILENT, Reporter
from bottleneck.remote.urls import allowed
from bottleneck.threads import thread_budget

if TYPE_CHECKING:
    from bottleneck.data.preprocess import Views

PROBED = 4  # images that each worker computes before all others, and the driver too
EXAMPLES = 8  # images that engines of workers are compared on
STORE_SHARE = 2  # of an object store, this part is for results: other work may need it too


def for_workers(config: ExtractConfig, source: Source) -> ExtractConfig:
    """Return the settings as the workers need them: without GPUs, all compute on processors.

    Raises
    ------
    ClusterError
        Ray is not installed, or workers without GPUs are to compute on one.
    SourceError
        The source is a shard, which is another way of sharing the work, or its images are to be kept.
    """
    require_ray()
    if source.samples.shard is not None:
        raise SourceError(
            "--ray shares the whole source among its workers, and --shard takes a part of it.",
            "Leave one of them out.",
        )
    if source.kept is not None:
        raise SourceError(
            "--cache-images keeps the images that this process reads; with --ray the workers read them.",
            "Leave one of them out.",
        )
    if config.gpus_per_worker:
        return config
    if config.engine.device not in ("auto", "cpu"):
        raise ClusterError(
            f"--device {config.engine.device} is for workers with GPUs, and none are asked for.",
            "Add --gpus-per-worker 1, or leave --device out.",
        )
    return replace(config, engine=replace(config.engine, device="cpu"))


@dataclass
class RayTrunk(Trunk):
    """A trunk whose stream runs on a Ray cluster. `spent` is summed over the workers.

    extraction : what is extracted; its own trunk is not used.
    """

    extraction: Extraction | None = None
    reporter: Reporter = SILENT
    _ray_notes: list[Note] = field(default_factory=list)

    @classmethod
    def of(cls, extraction: Extraction, reporter: Reporter) -> RayTrunk:
        """Return the trunk that takes the place of an extraction's own."""
        own = extraction.trunk
        trunk = cls(**{name: value for name, value in vars(own).items() if name != "backbone"})
        if "backbone" in vars(own):
            vars(trunk)["backbone"] = own.backbone  # loaded already
        trunk.extraction, trunk.reporter = extraction, reporter
        return trunk

    @property
    def notes(self) -> tuple[Note, ...]:
        """Those of a trunk, and on the cluster."""
        return (*super().notes, *self._ray_notes)

    def stream(
        self,
        source: Source,
        keys: Sequence[str],
        nodes: Iterable[str],
        *,
        known: Container[bytes] = (),
        views: Views | None = None,
    ) -> Generator[Batch | LoadedImage, None, None]:
        """Yield what `Trunk.stream` yields, in any order.

        Raises
        ------
        ClusterError
            The cluster cannot be reached, or none of its workers can do the work.
        """
        nodes = tuple(nodes)
        self._read.append(source)
        images = _first_images(source, keys, self, known)
        for image in images:
            if image.pixels is None:
                yield image
        probe = [image for image in images if image.pixels is not None]
        if probe:
            pixels = np.stack([image.pixels for image in probe if image.pixels is not None])
            for group in self._groups(nodes):
                self.build_engine(group, pixels)
            task = self._task(source, nodes, views, probe, pixels)
            left = [*(image.index for image in probe), *range(len(images), len(keys))]
            with closing(self._on_workers(task, source, keys, left)) as items:
                yield from _without_copies(items, known)

    def _on_workers(
        self, task: Task, source: Source, keys: Sequence[str], left: Sequence[int]
    ) -> Generator[Batch | LoadedImage, None, None]:
        """Yield the items of the images `left`, by their indices in `keys`."""
        assert self.extraction is not None
        config, started = self.extraction.config, time.perf_counter()
        with connected(config.ray or "") as notes:
            self._ray_notes += notes
            nodes = living_nodes()
            require_room(nodes, config.gpus_per_worker)
            sizes = sizes_of(nodes, config.ray_workers, config.gpus_per_worker)
            room = self._room(task, min(node.store for node in nodes), sizes, len(nodes))
            at = 0

            def next_part(batch: int) -> Part | None:
                nonlocal at
                indices = left[at : at + min(self.config.batch_size or batch, room)]
                at += len(indices)
                return part_of(source, indices, [keys[i] for i in indices]) if indices else None

            with Pool(task, sizes, config.gpus_per_worker, self.reporter) as pool:
                pool.wait()
                self.startup_seconds += time.perf_counter() - started
                for done in pool.run(next_part):
                    yield from self._taken_in(done)
                self._ray_notes += pool.notes()

    def _taken_in(self, done: Done) -> Iterator[Batch | LoadedImage]:
        """Yield the items of a result, and count its times and notes."""
        for stage, seconds in done.spent.items():
            self.spent[stage] += seconds
        self._ray_notes += [note for note in done.notes if note not in self._ray_notes]
        if done.requests is not None:
            self._read[-1].retrier.add(*done.requests)
        for item in done.items:
            for image in item.images if isinstance(item, Batch) else [item]:
                self._noted.add(image)
            yield item

    def _room(self, task: Task, store: int, sizes: Sequence[Size], nodes: int) -> int:
        """Return how many images a part may have, so that the results of a node fit its object store."""
        each = sum(rows[0].nbytes for rows in task.rows) * (1 + (task.views.count if task.views else 0))
        on_a_node = Counter(size.node for size in sizes)
        workers = -(-on_a_node.pop(None, 0) // nodes) + max(on_a_node.values(), default=0)
        places = AT_WORK * workers + 1  # one more is on its way to the driver
        room = store // STORE_SHARE // places // each
        if not room:
            raise ClusterError(
                f"An object store of the Ray cluster has {store >> 20} MiB; "
                f"{counted(places, 'batch', 'batches')} of one image of "
                f"{each >> 10} KiB need {STORE_SHARE * places * each >> 20} MiB.",
                STORE_HINT,
            )
        wanted = self.config.batch_size or max(engine.batch for engine in self.engines.values())
        if room < wanted:
            text = (
                f"Batches have {counted(room, 'image')} instead of {wanted}: so many fit the object "
                "stores of Ray."
            )
            self._ray_notes.append(Note("ray-batches-reduced", text, details={"images": room, "of": wanted}))
        return room

    def _task(
        self,
        source: Source,
        nodes: tuple[str, ...],
        views: Views | None,
        images: Sequence[LoadedImage],
        pixels: np.ndarray,
    ) -> Task:
        """Return what the workers need. images, pixels : of the run, with the engines built on them."""
        assert self.extraction is not None
        config, first = self.extraction.config, images[:PROBED]
        engines = [(group, self.engines[group]) for group in self._groups(nodes)]
        libraries = tuple(sorted({engine.name.partition("-")[0] for _, engine in engines}))
        return Task(
            network=dict(self.network),
            options=LoadOptions(_absolute(config.weights), config.trust_code),
            statistics=self._statistics(),
            preprocess=self.preprocess,
            config=self.config,
            engines=tuple(
                EngineOf(group, engine.name, engine.precision, engine.calibration, self.made_with(group))
                for group, engine in engines
            ),
            graphs=tuple(self._graphs(nodes)),
            example=pixels[:EXAMPLES],
            nodes=nodes,
            views=views,
            source=portable(source),
            probe=part_of(source, [image.index for image in first], [image.key for image in first]),
            digests=tuple(image.digest for image in first if image.digest is not None),
            rows=self._rows(pixels[: len(first)], nodes),
            versions=package_versions(("bottleneck", *DECODERS, "torch", *libraries)),
            libraries=libraries,
            allowed=allowed(),
        )

    def _statistics(self) -> dict[str, np.ndarray] | None:
        """Return BatchNorm's statistics of a random network, from its first run or the cache."""
        assert self.extraction is not None
        if not self.network.get("calibrated"):
            return None
        from bottleneck.backbones.batchnorm import read_statistics

        return dict(self.extraction.statistics) or read_statistics(self.extraction.path)

    def _graphs(self, nodes: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], StoredGraph]]:
        """Yield the stored graphs of the engines of `nodes`, with their keys."""
        for group in self._groups(nodes):
            calibration, key = self._engines[group].calibration or {}, self.graph_key(self.made_with(group))
            pixels = calibration.get("pixels_sha256")
            for kind in [("fp32",), *(int8_keys(pixels, calibration) if pixels else [])]:
                if (stored := GraphCache().load(key, *kind)) is not None:
                    yield (key, *kind), stored


def _first_images(
    source: Source, keys: Sequence[str], trunk: Trunk, known: Container[bytes]
) -> list[LoadedImage]:
    """Return the first images of a run, up to the one with which a batch is full."""
    images: list[LoadedImage] = []
    workers = thread_budget(trunk.config.workers, trunk.config.device).decode
    with closing(load_images(source, keys, trunk.preprocess, workers=workers, known=known)) as loaded:
        full = trunk.config.batch_size or BATCH_SIZE
        for image in loaded:
            images.append(image)
            full -= image.pixels is not None
            if not full:
                break
    return images


def _without_copies(
    items: Iterable[Batch | LoadedImage], known: Container[bytes]
) -> Iterator[Batch | LoadedImage]:
    """Yield the items, with images that have the bytes of known or earlier ones as those without pixels.

    Arrays are copied, so that they leave the object store.
    """
    seen: set[bytes] = set()
    for item in items:
        if isinstance(item, LoadedImage):
            yield item
            continue
        fresh = []
        for number, image in enumerate(item.images):
            assert image.digest is not None
            if image.digest in seen or image.digest in known:
                yield image
            else:
                fresh.append(number)
                seen.add(image.digest)
        if fresh:
            yield item.take(np.array(fresh, np.int64))


def _absolute(weights: str | None) -> str | None:
    """Return the path of a weights file from any folder; an id as it is."""
    return os.path.abspath(weights) if weights is not None and os.path.exists(weights) else weights
