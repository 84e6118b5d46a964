"""A map that is exact enough for a head: in the cache's own type, or in float32 where that is too coarse.

Some features are nearly constant on train. A head gives them large weights, and then the rounding of
a map to float16, which the unfrozen blocks pass on, moves its logits by more than training may start with.

The feature map that unfrozen blocks are fed with: cached, or extracted once into a file beside the cache.

Shapes: I images, C channels, H × W positions, V views.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.recipe import NO_OPTIONS, LoadOptions
from bottleneck.backbones.section import Cut, Section
from bottleneck.data.loader import load_images
from bottleneck.data.preprocess import Preprocess
from bottleneck.extraction.cached_source import require_images, source_of
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.extract import extract
from bottleneck.extraction.prepare import Extraction, prepare
from bottleneck.files import readable
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.progress import SILENT, Reporter
from bottleneck.store.cachefile import CacheFile
from bottleneck.store.layout import companion_path
from bottleneck.store.lock import CacheLock
from bottleneck.store.reader import FeatureCache
from bottleneck.training.config import Inputs, RunConfig, plain_batches
from bottleneck.training.initial_head import START_BOUND, head_logits, largest_difference
from bottleneck.training.loss import logits_of
from bottleneck.training.network import network_of
from bottleneck.training.split_rows import Sets
from bottleneck.training.timing import duration

REPLACED = ".replaced"  # ends the name of a map while the one that is to replace it is being made
TRIED = 16  # images on which the speed is measured


@dataclass(frozen=True)
class MapWork:
    """What is to be extracted: bytes on disk and an estimate of the seconds, for `images` images."""

    node: str
    images: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"Extracting {self.node} of {self.images:,} images once: {readable(self.bytes)} on disk, "
            f"about {duration(self.seconds)}."
        )


def ensure_map(
    cache: Path,
    node: str,
    *,
    views: int = 0,
    dtype: str | None = None,
    options: LoadOptions = NO_OPTIONS,
    reporter: Reporter = SILENT,
) -> float:
    """See that the cache has the map `node`, with `views` views; returns the seconds that this took.

    dtype : as the map is to be stored, one in another type being replaced; None takes it as it is, and for a
        new map the type of the cache's first node.
    reporter : receives what it will cost, before it starts.

    Raises
    ------
    CacheError
        The images that the cache was made from are gone, the disk is full, or another run is at work.
    """
    _settle(cache)
    with FeatureCache(cache) as opened:
        there = opened.nodes.get(node)
        if (
            there is not None
            and views in (0, (there.views or {}).get("count"))
            and dtype in (None, there.dtype)
        ):
            return 0.0
        source = source_of(opened)
        dtype = dtype or next(iter(opened.nodes.values())).dtype
    require_images(source, slice(None), "A new node is needed", cache)
    asked = {"nodes": (node,), "views": views, "dtype": dtype, **asdict(options)}
    replaced = there is not None and there.dtype != dtype
    with _set_aside(companion_path(cache, there)) if replaced else nullcontext():
        reporter.tell(str(_work(prepare(ExtractConfig(**asked), source, cache), node, views)))
        started = time.perf_counter()
        extract(source, cache, reporter=reporter, on_error="fail", **asked)
        return time.perf_counter() - started


@contextmanager
def _set_aside(path: Path) -> Iterator[None]:
    """A map's file out of the way of the one that is to replace it; back in its place where none does."""
    aside = path.with_name(path.name + REPLACED)
    path.replace(aside)
    try:
        yield
    except BaseException:
        if not path.exists():
            aside.replace(path)
        raise
    aside.unlink(missing_ok=True)


def _settle(cache: Path) -> None:
    """After a kill: a map that was set aside goes back to its place, or away where there is a new one.

    Raises CacheError where a run is at work that may need it.
    """
    left = [path for path in cache.parent.glob(f"*--*{REPLACED}") if path.name.startswith(f"{cache.stem}--")]
    if not left:
        return
    with CacheLock(cache):
        for aside in left:
            place = aside.with_name(aside.name.removesuffix(REPLACED))
            if place.exists():
                aside.unlink(missing_ok=True)
            elif aside.exists() and _is_map_of(cache, aside, place):
                aside.replace(place)


def _is_map_of(cache: Path, aside: Path, place: Path) -> bool:
    """Whether a file belongs to this cache at that place, not to one whose name begins alike."""
    with closing(CacheFile(aside)) as file:
        node = file.nodes.get(file.map_name or "")
        return node is not None and companion_path(cache, node) == place


def _work(extraction: Extraction, node: str, views: int) -> MapWork:
    """Bytes from the node's shape; seconds from the speed on a few images, engine building left out."""
    spec = next(spec for spec in extraction.nodes if spec.name == node)
    keys = extraction.source.images
    passes = len(keys) * (1 + views)
    trunk = extraction.trunk
    loaded = load_images(extraction.source, keys[:TRIED], trunk.preprocess, workers=1)
    pixels = [image.pixels for image in islice(loaded, TRIED) if image.pixels is not None]
    if not pixels:
        return MapWork(node, len(keys), 0, 0.0)
    batch = np.stack(pixels)
    run = trunk.engine([node], batch)
    run(batch)
    started = time.perf_counter()
    run(batch)
    seconds = (time.perf_counter() - started) / len(batch) * passes
    return MapWork(node, len(keys), spec.bytes_of(len(keys)), seconds)


def ensure_exact_map(
    path: Path,
    backbone: Backbone,
    cut: Cut,
    head: HeadArtifact,
    sets: Sets,
    config: RunConfig,
    *,
    views: int = 0,
    options: LoadOptions = NO_OPTIONS,
    reporter: Reporter = SILENT,
) -> float:
    """See that the cache `path` has the map of `cut`, exact enough for `head`; returns the seconds it took.

    A map in float16 that is too coarse is replaced by one in float32.

    Raises
    ------
    CacheError
        The map has to be extracted, and images are gone, or the disk is full.
    """
    asked = {"views": views, "options": options, "reporter": reporter}
    seconds = ensure_map(path, cut.node, **asked)
    with FeatureCache(path) as cache:
        if cache.node(cut.node).dtype == "float32":
            return seconds
        moved = _difference(cache, backbone, cut, head, sets, config)
        bound = START_BOUND[cache.node(head.node).dtype]
    if moved <= bound:
        return seconds
    reporter.tell(
        f"Rounded to float16, the map {cut.node} moves the head's logits by {moved:.2g}, and {bound:g} is "
        "allowed: it is extracted in float32 instead."
    )
    return seconds + ensure_map(path, cut.node, dtype="float32", **asked)


def _difference(
    cache: FeatureCache, backbone: Backbone, cut: Cut, head: HeadArtifact, sets: Sets, config: RunConfig
) -> float:
    """Greatest difference on val between the logits by way of the map and those of the cached features."""
    section = Section(backbone, cut, head.node, Preprocess.from_json(cache.spec.preprocess))
    rows = cache.features(cut.node)
    batches = plain_batches(Inputs(rows, rows), sets, "val", config)
    found, _ = logits_of(network_of(section, head), batches, torch.device("cpu"))
    return largest_difference(found, head_logits(head, cache, sets.rows["val"]))
