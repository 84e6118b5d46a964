"""Run images through a frozen network; it is loaded, and torch imported, only when an image is computed.

Shapes: B images of a batch, H × W pixels, V views.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.data.loader import LoadedImage, NotedImages, load_images
from bottleneck.data.measures import measure
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.resize import import_seconds
from bottleneck.errors import BottleneckError, EngineError, Note, distinct, first_line
from bottleneck.extraction.config import EngineConfig
from bottleneck.extraction.settings import ADOPTS
from bottleneck.names import FAST
from bottleneck.store.spec import canonical_json, fingerprint
from bottleneck.threads import thread_budget

if TYPE_CHECKING:
    from bottleneck.backbones.backbone import Backbone
    from bottleneck.data.preprocess import Views
    from bottleneck.data.source import Source
    from bottleneck.engines.base import Engine
    from bottleneck.store.spec import NodeSpec

BATCH_SIZE = 32
MOST_CALLS = 2


@dataclass
class Batch:
    """Images that passed the network together.

    images : list of B `LoadedImage`.
    features : one float32 array (B, …) per node.
    views : one float32 array (B, V, …) per node, or None.
    measures : (B, 7) float32 of the images' pixels (`measures_of`), where these have been dropped; else None.
    """

    images: list[LoadedImage]
    features: tuple[np.ndarray, ...]
    views: tuple[np.ndarray, ...] | None = None
    measures: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Batch:
        """Return the batch of the images `rows` (indices), with copies of their arrays."""
        return Batch(
            [self.images[i] for i in rows],
            tuple(each[rows] for each in self.features),
            None if self.views is None else tuple(each[rows] for each in self.views),
            None if self.measures is None else self.measures[rows],
        )


class _Calls:
    """Calls of the network in threads, so that it runs while batches are prepared and stored.

    With several calls at once no core is idle at a call's end, while the last of its passes still runs.

    Attributes
    ----------
    busy_seconds : time in which at least one call ran.
    """

    def __init__(self, compute: Callable[..., list[Batch | LoadedImage]]) -> None:
        self.busy_seconds = 0.0
        self._compute, self._until = compute, 0.0
        self._running: deque[Future] = deque()
        self._pool = ThreadPoolExecutor(MOST_CALLS, thread_name_prefix="bottleneck-call")

    def submit(self, at_once: int, *arguments: object) -> Iterator[Batch | LoadedImage]:
        """Begin a call once fewer than `at_once` are running; yield the results of the oldest one."""
        done = self._oldest() if len(self._running) >= min(at_once, MOST_CALLS) else []
        self._running.append(self._pool.submit(self._timed, *arguments))
        yield from done

    def rest(self) -> Iterator[Batch | LoadedImage]:
        """Yield the results of the calls that are still running."""
        while self._running:
            yield from self._oldest()

    def close(self) -> None:
        """End the threads; calls that have not begun are dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _timed(self, *arguments: object) -> tuple[list[Batch | LoadedImage], float, float]:
        started = time.perf_counter()
        return self._compute(*arguments), started, time.perf_counter()

    def _oldest(self) -> list[Batch | LoadedImage]:
        done, started, ended = self._running.popleft().result()
        self.busy_seconds += max(0.0, ended - max(started, self._until))
        self._until = max(ended, self._until)
        return done


class _Some:
    """An engine that gives the outputs at `indices` of another one."""

    def __init__(self, engine: Engine, indices: Sequence[int]) -> None:
        self._engine, self._indices = engine, indices

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = self._engine(pixels)
        return tuple(rows[index] for index in self._indices)


@dataclass
class Trunk:
    """A frozen network that computes the features of some nodes from pixels.

    load : builds the backbone; called once, when it is first needed.
    preprocess : how images become pixels.
    config : how the network is run.
    recipe : of the network that `load` will build, where it is known; a stored graph then needs no loading.
    calibrations : by node, of the engine that made its rows in the cache; no other may continue them.
    precisions : by node, of its rows in the cache; other nodes have the one of `config`.
    grouped : the nodes of each engine, where that is decided; else precision and calibration decide.
    calibrated_on : returns pixels (B, H, W, C) of the images of a calibration for their sha256.
    gives_way : where `config` names another precision than that of the rows of nodes (fp32 where it is not
        known), or the engine that made them cannot be had, the one of `config` computes them, with a note;
        else that is an error.
    first_notes : hold as soon as an image is computed.
    startup_seconds : time that imports, loading and engine building took.
    spent : seconds by stage; read and decode are summed over their threads, network is while it was busy.
    """

    load: Callable[[], Backbone]
    preprocess: Preprocess
    config: EngineConfig
    recipe: Mapping[str, Any] | None = None
    calibrations: Mapping[str, dict[str, Any] | None] = field(default_factory=dict)
    precisions: dict[str, str] = field(default_factory=dict)
    grouped: Sequence[tuple[str, ...]] = ()
    calibrated_on: Callable[[str], np.ndarray] | None = None
    gives_way: bool = False
    first_notes: Sequence[Note] = ()
    startup_seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "decode": 0.0, "network": 0.0})
    _engines: dict[tuple[str, ...], Engine] = field(default_factory=dict)
    _noted: NotedImages = field(default_factory=NotedImages)
    _read: list[Source] = field(default_factory=list)
    _gave_way: dict[tuple[str, ...], Note] = field(default_factory=dict)
    _ran: set[tuple[str, ...]] = field(default_factory=set)  # engines of this run, by their nodes
    _works: bool = False  # the network has taken an image

    @cached_property
    def backbone(self) -> Backbone:
        """The network, loaded at first use."""
        started = time.perf_counter()
        backbone = self.load()
        self.startup_seconds += time.perf_counter() - started
        return backbone

    @property
    def is_loaded(self) -> bool:
        """Whether the network has been loaded."""
        return "backbone" in vars(self)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was decided when the network was loaded, as soon as it was needed, and of its images."""
        loading = self.backbone.notes if self.is_loaded else ()
        engines = [note for engine in self._used.values() for note in engine.notes]
        reading = distinct(note for source in self._read for note in source.reading_notes())
        return (
            *loading,
            *self._slow(),
            *(self.first_notes if self._used else ()),
            *(note for nodes, note in self._gave_way.items() if nodes in self._ran),
            *self._forced(),
            *engines,
            *self._noted.notes(),
            *reading,
        )

    def _slow(self) -> Iterator[Note]:
        """Yield a note where `fast` is fp32, which says why."""
        on = [engine.device for engine in self._used.values() if engine.precision == "fp32"]
        if self.config.precision == FAST and on:
            from bottleneck.engines.runtimes import computes_bf16

            why = "its features in 16 bits differed from float32 by more than their bound"
            if on[0] == "cpu" and not computes_bf16():
                why = "this processor has no unit for bfloat16 that OpenVINO can use"
            elif on[0].partition(":")[0] not in ("cpu", "cuda"):
                why = f"on {on[0]} features are computed in fp32"
            yield Note("fast-is-fp32", f"--precision fast computed in fp32: {why}.")

    def _forced(self) -> Iterator[Note]:
        """Yield a note on each engine that is out of its bound and was used all the same, by --force."""
        for engine in self._used.values():
            from bottleneck.engines.reference import complaint

            if engine.calibration is not None and (
                problem := complaint(engine.agreement, engine.precision, as_cosine=True)
            ):
                text = f"--force: the features are from {engine.name} in {engine.precision}, {problem}."
                yield Note("engine-forced", text, True)

    def begin_run(self) -> None:
        """Forget the notes on images so far, and which engines ran."""
        self._noted, self._read, self._ran = NotedImages(), [], set()

    @property
    def _used(self) -> dict[tuple[str, ...], Engine]:
        """The engines that ran, by their nodes."""
        return {nodes: engine for nodes, engine in self._engines.items() if nodes in self._ran}

    @property
    def engine_name(self) -> str | None:
        """Name of the engine that ran; None where none was needed."""
        return next((engine.name for engine in self._engines.values()), None)

    @property
    def engines_used(self) -> list[dict[str, Any]]:
        """The engines that ran, each {"engine", "precision", "nodes"}."""
        return [
            {"engine": one.name, "precision": one.precision, "nodes": list(nodes)}
            for nodes, one in self._used.items()
        ]

    @property
    def precisions_used(self) -> dict[str, str]:
        """The precision of the engine that ran for a node, by node."""
        return {name: engine.precision for nodes, engine in self._used.items() for name in nodes}

    def engines_of(self, nodes: Sequence[str]) -> dict[str, str]:
        """Return by node the name of the engine that computes it, of nodes that have one by now."""
        groups = [group for group in self._groups(tuple(nodes)) if group in self._engines]
        return {name: self._engines[group].name for group in groups for name in group}

    def engine(self, nodes: Iterable[str], example: np.ndarray) -> Engine:
        """Return the engine that computes `nodes` in one pass, checked against eager float32 on `example`.

        Its arrays are those of the sorted nodes. example : (B, H, W, C) uint8, some of the user's images.
        """
        nodes = tuple(sorted(nodes))
        if nodes not in self._engines:
            started, before = time.perf_counter(), self.startup_seconds  # with the import of what runs it
            from bottleneck.engines.base import build_engine

            calibration, engine = self.calibrations.get(nodes[0]), self.config.engine
            precision = self.precisions.get(nodes[0], self.config.precision)
            if nodes[0] in self.calibrations and precision == "bf16" and not calibration:
                engine = "torch" if engine == "auto" else engine  # it computed the rows of the cache

            def build(nodes: tuple[str, ...], **settings: Any) -> Engine:
                return build_engine(
                    lambda: self.backbone.extractor(nodes, self.preprocess),
                    example,
                    key=self.graph_key(nodes),
                    device=self.config.device,
                    force=self.config.force,
                    network=str(self.network.get("name", "The network")),
                    **settings,
                )

            given, why = self.config.precision, ""
            learnt = self.precisions.get(nodes[0], "fp32")
            alike = (learnt, "fp16") if learnt == "fp32" else (learnt,)  # both are finer than what is stored
            if self.gives_way and given not in (*ADOPTS, *alike):
                why = f"--precision {given} was given."
                if given == "int8":
                    why += " It is calibrated on the first of these images, on which the features depend."
            else:
                try:
                    whole = self.made_with(nodes)
                    built = build(
                        whole,
                        engine=engine,
                        precision=precision,
                        calibration=calibration,
                        calibrated_on=self.calibrated_on,
                    )
                    if whole != nodes:
                        built = _Some(built, [whole.index(name) for name in nodes])
                except EngineError as error:
                    if not self.gives_way or given not in ADOPTS or nodes[0] not in self.precisions:
                        raise
                    why = (
                        f"{error.message.rstrip('.')}. If {learnt} cannot be had again, extract the training "
                        "images with --precision fp32 and fit the head on those features."
                    )
            if why:
                built = build(nodes, engine=self.config.engine, precision=given)
                self._gave_way[nodes] = _gave_way_note(nodes, learnt, built.precision, why)
            self._engines[nodes] = built
            self.startup_seconds = before + time.perf_counter() - started  # loading, if any, lies within
        self._ran.add(nodes)
        return self._engines[nodes]

    def made_with(self, nodes: Sequence[str]) -> tuple[str, ...]:
        """Return the sorted nodes of the int8 graph that made the rows of `nodes`, which may have others too.

        Quantised for some of them alone, it could round otherwise. A calibration has a cosine for each node.
        """
        calibration = self.calibrations.get(nodes[0]) or {}
        alike = sorted(name for name, each in self.calibrations.items() if each == calibration)
        together = "pixels_sha256" in calibration and len(calibration.get("cosine", ())) == len(alike)
        return tuple(alike) if together else tuple(nodes)

    def build_engine(
        self,
        group: tuple[str, ...],
        example: np.ndarray,
        wrap: Callable[[Engine], Engine] = lambda engine: engine,
    ) -> None:
        """Build the engine of a group of nodes as `engine` does; `wrap` gives what is used in its place."""
        if group not in self._engines:
            self._engines[group] = wrap(self.engine(group, example))

    @property
    def engines(self) -> dict[tuple[str, ...], Engine]:
        """The engines that exist by now, by their nodes."""
        return dict(self._engines)

    def apart(self) -> Trunk:
        """Return a trunk with the same engines, which have taken images, and its own times and notes."""
        return replace(
            self, spent=dict.fromkeys(self.spent, 0.0), _noted=NotedImages(), _read=[], _works=True
        )

    @property
    def network(self) -> Mapping[str, Any]:
        """The recipe of the network; it is loaded for it where the recipe is not known."""
        return self.recipe or self.backbone.recipe

    def graph_key(self, nodes: Sequence[str]) -> str:
        """Return the key under which the graph of the sorted `nodes` is stored (`onnx_graph.GraphCache`)."""
        preprocess = self.preprocess.exact.to_json()
        return fingerprint({"backbone": self.network, "preprocess": preprocess, "nodes": tuple(nodes)})

    def stream(
        self,
        source: Source,
        keys: Sequence[str],
        nodes: Iterable[str],
        *,
        known: Container[bytes] = (),
        views: Views | None = None,
    ) -> Generator[Batch | LoadedImage, None, None]:
        """Yield features of the images `keys`, batch by batch while later images are being decoded.

        Yields a `Batch` for images that were computed, and the bare `LoadedImage` for one without pixels:
        with `error` set it failed; else its digest is in `known` or belongs to an earlier image of this call.
        """
        budget = thread_budget(self.config.workers, self.config.device)
        size, nodes = self.config.batch_size or BATCH_SIZE, tuple(nodes)
        if not any(source is other for other in self._read):
            self._read.append(source)
        waiting: list[LoadedImage] = []
        images = load_images(source, keys, self.preprocess, workers=budget.decode, known=known, views=views)
        with closing(_Calls(self._compute)) as calls, closing(images):
            for image in self._without_imports(images):
                self.spent["read"] += image.read_seconds
                self.spent["decode"] += image.decode_seconds
                self._noted.add(image)
                if image.pixels is None:
                    yield image
                    continue
                waiting.append(image)
                if len(waiting) == size:
                    yield from calls.submit(self._at_once(waiting, nodes), waiting, nodes, size)
                    waiting = []
                    if self.config.batch_size is None:  # the engine exists now and has its best size
                        size = max(engine.batch for engine in self._engines.values())
            if waiting:
                yield from calls.submit(self._at_once(waiting, nodes), waiting, nodes, size)
            yield from calls.rest()
            self.spent["network"] += calls.busy_seconds

    def _without_imports(self, images: Iterator[LoadedImage]) -> Iterator[LoadedImage]:
        """Yield the images; what was waited for while a decoder imported torch is time of starting."""
        while True:
            started, before = time.perf_counter(), import_seconds()
            image = next(images, None)
            self.startup_seconds += min(time.perf_counter() - started, import_seconds() - before)
            if image is None:
                return
            yield image

    def _at_once(self, images: list[LoadedImage], nodes: tuple[str, ...]) -> int:
        """Return how many calls the engines of `nodes` take at once; missing engines are built here."""
        for group in self._groups(nodes):
            if group not in self._engines:
                self.engine(group, _stacked(images))
        return min(self._engines[group].calls for group in self._groups(nodes))

    def _compute(
        self, images: list[LoadedImage], nodes: tuple[str, ...], size: int
    ) -> list[Batch | LoadedImage]:
        """Return the batch of `images`; where it fails, each image by itself, as a batch or with its error.

        Raises what the network raised where it takes none of several images, or never took one: then the
        fault is not theirs.
        """
        try:
            done: list[Batch | LoadedImage] = [self._batch(images, nodes, size)]
        except BottleneckError:
            raise
        except Exception as error:
            if len(images) > 1:
                done = [item for image in images for item in self._alone(image, nodes, size)]
            else:
                done = [_refused(images[0], error)]
            if (len(images) > 1 or not self._works) and not any(isinstance(item, Batch) for item in done):
                raise
        self._works = True
        return done

    def _alone(self, image: LoadedImage, nodes: tuple[str, ...], size: int) -> list[Batch | LoadedImage]:
        try:
            return [self._batch([image], nodes, size)]
        except Exception as error:
            return [_refused(image, error)]

    def _batch(self, images: list[LoadedImage], nodes: tuple[str, ...], size: int) -> Batch:
        features, views = self._rows(_stacked(images), nodes), None
        if images[0].views is not None:
            views_of = [image.views for image in images if image.views is not None]
            flat = np.concatenate(views_of)  # (B·V, H, W, C)
            parts = [self._rows(flat[at : at + size], nodes) for at in range(0, len(flat), size)]
            views = tuple(
                np.concatenate(rows).reshape(len(images), -1, *rows[0].shape[1:])
                for rows in zip(*parts, strict=True)
            )
        return Batch(images, features, views)

    def _rows(self, pixels: np.ndarray, nodes: tuple[str, ...]) -> tuple[np.ndarray, ...]:
        """Return one float32 array (B, …) per node, for pixels (B, H, W, C)."""
        rows: dict[str, np.ndarray] = {}
        for group in self._groups(nodes):
            rows |= zip(group, self.engine(group, pixels)(pixels), strict=True)
        return tuple(rows[name] for name in nodes)

    def _groups(self, nodes: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Group the nodes by engine: those of one precision, and of one calibration where there is one.

        In each group they are sorted: a new cache has them as they were asked for, an existing one by name,
        and both shall find the same stored graph.
        """
        if self.grouped:
            return list(self.grouped)
        groups: dict[str, list[str]] = {}
        for name in sorted(nodes):
            calibration = self.calibrations.get(name)
            made_by = [self.precisions.get(name, self.config.precision), calibration]
            if calibration and "pixels_sha256" in calibration and len(calibration.get("cosine", ())) == 1:
                made_by.append(name)  # each of these nodes has a graph of its own
            groups.setdefault(canonical_json(made_by), []).append(name)
        return [tuple(group) for group in groups.values()]


def without_unstorable(
    items: Iterable[Batch | LoadedImage], nodes: Sequence[NodeSpec]
) -> Iterator[Batch | LoadedImage]:
    """Yield the items of `Trunk.stream`, with images whose features cannot be stored as failures.

    Such are NaN, infinity, and what is too large for the node's type. Where all images of the first batch
    are so, the fault is not theirs: the batch is passed on, and the writer's error ends the run.

    nodes : those of the stream, in its order.
    """
    works = False
    for item in items:
        bad = _unstorable(item, nodes) if isinstance(item, Batch) else {}
        if not isinstance(item, Batch) or not bad or (not works and len(bad) == len(item.images)):
            works = works or isinstance(item, Batch)
            yield item
            continue
        for index, reason in bad.items():
            yield replace(item.images[index], pixels=None, views=None, error=reason, passing=True)
        good = np.array([i for i in range(len(item.images)) if i not in bad], np.int64)
        if len(good):
            works = True
            yield item.take(good)


def _unstorable(batch: Batch, nodes: Sequence[NodeSpec]) -> dict[int, str]:
    """Return why the features of some images cannot be stored, by index in the batch."""
    reasons: dict[int, str] = {}
    for node, *parts in zip(nodes, batch.features, *([batch.views] if batch.views else []), strict=True):
        limit = 65520.0 if node.dtype == "float16" else np.inf  # less is rounded to a float16
        for rows in parts:
            largest = np.abs(rows.reshape(len(rows), -1)).max(axis=1, initial=0)
            for index in np.flatnonzero(~(largest < limit)):
                size = f"features up to {largest[index]:.6g}, beyond float16 (--dtype float32 holds them),"
                what = size if np.isfinite(largest[index]) else "features that are NaN or infinite"
                reasons.setdefault(int(index), f"has {what} at node {node.name}")
    return reasons


def measures_of(images: Sequence[LoadedImage], preprocess: Preprocess) -> np.ndarray:
    """Return the measures (B, 7) of the pixels of B images."""
    return measure(_stacked(images), np.array([image.size for image in images]), preprocess)


def _gave_way_note(nodes: Sequence[str], wanted: str, precision: str, why: str) -> Note:
    text = (
        f"The features of {' and '.join(nodes)} that were learnt from are in {wanted}; those of these images "
        f"are computed in {precision}: {why}"
    )
    details = {"nodes": list(nodes), "precision": precision, "learnt_from": wanted}
    return Note("node-in-other-precision", text, True, details)


def _stacked(images: Sequence[LoadedImage]) -> np.ndarray:
    """Return the pixels (B, H, W, C) of images that have them."""
    return np.stack([image.pixels for image in images if image.pixels is not None])


def _refused(image: LoadedImage, error: Exception) -> LoadedImage:
    """Return the image as a failure: the network raised `error` for it."""
    reason = f"cannot pass the network: {type(error).__name__}: {first_line(error)}"
    return replace(image, pixels=None, views=None, error=reason, passing=True)
