"""Prepare an extraction: the recipe and the nodes for the cache writer, and the network. Nothing is written.

    flags ──► Settings ──► Trunk ──► descriptions of new nodes ──► Extraction

A source at another place than the cache's is taken for the same if its images are.

Shapes: B images of a batch, H × W pixels, C channels.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.backbones.model_file import holds_network
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.loader import readable_pixels
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source
from bottleneck.engines.device import resolve_device
from bottleneck.errors import BackboneError, CacheError, ImageError, Note
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.pipeline import BATCH_SIZE, Trunk
from bottleneck.extraction.settings import Settings, refuse_for_shard, resolve
from bottleneck.heads.artifact import load_head
from bottleneck.names import DEFAULT_BACKBONE, DTYPES, FAST, SMALL_CNN, default_pool
from bottleneck.store.layout import parts_folder
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import CacheSpec, NodeSpec, Origin, alias_note, stored_name

if TYPE_CHECKING:
    from bottleneck.backbones.backbone import Backbone

COMPARED = 32  # images that are read
CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class Extraction:
    """What is extracted, and the network that does it.

    spec, nodes : for the cache writer.
    trunk : loads the backbone only when something has to be computed.
    statistics : BatchNorm's, by name, of a new network with random weights; empty otherwise.
    moved : where the images of the existing cache are now in this source, at another place.
    notes : on nodes that are stored under another name than was given, on samples in another split than in
        the existing cache, on a precision and statistics that are kept.
    """

    path: Path
    source: Source
    config: ExtractConfig
    spec: CacheSpec
    nodes: tuple[NodeSpec, ...]
    trunk: Trunk
    statistics: Mapping[str, np.ndarray] = field(default_factory=dict)
    moved: Note | None = None
    notes: tuple[Note, ...] = ()


def prepare(config: ExtractConfig, source: Source, path: Path) -> Extraction:
    """Resolve the settings, and describe the new nodes. Writes nothing.

    A new cache or a new node needs the network; an int8 network is calibrated here, before any row.

    Raises
    ------
    FingerprintError
        A flag differs from what the cache was made with.
    BackboneError, EngineError, SourceError, CacheError
    """
    config, preprocess = read_model_file(config)
    cache, moved, notes = _open_existing(path), None, list[Note]()
    if cache is None:
        settings = resolve(config, path, preprocess=preprocess)
    else:
        with cache:
            settings = resolve(config, path, cache.spec, dict(cache.nodes))
            moved = moved_note(cache, source, config.source_moved)
            notes += [*_resplit_notes(cache, source), *_statistics_notes(cache, source)]
    if settings.engine.precision == "int8":
        refuse_for_shard(source, "An int8 network's calibration")
    statistics: Mapping[str, np.ndarray] = {}
    trunk, spec = open_trunk(settings), settings.spec
    if spec is None:
        backbone = trunk.backbone
        if backbone.recipe["weights"] == "none":
            refuse_for_shard(source, "BatchNorm statistics of a random network")
            from bottleneck.backbones.batchnorm import calibrate_batchnorm
            from bottleneck.backbones.batchnorm import statistics as statistics_of

            calibrate_batchnorm(backbone, _example(source, trunk.preprocess, BATCH_SIZE), trunk.preprocess)
            statistics = statistics_of(backbone)
        spec = CacheSpec(backbone=backbone.recipe, preprocess=trunk.preprocess.to_json())
    nodes = (*settings.nodes, *_describe(settings, trunk, source))
    stored = {node.name: node for node in nodes}
    given = [(name, stored_name(stored, name)) for name in config.node_names]
    notes += [alias_note(name, found) for name, found in given if found not in (None, name)]
    if cache is not None and config.engine.precision == FAST and settings.engine.precision == "fp32":
        message = f"--precision fast is not used: the features in {path} are fp32, and its new ones are too."
        notes.append(Note("precision-of-cache", message))
    return Extraction(path, source, config, spec, nodes, trunk, statistics, moved, tuple(notes))


def _open_existing(path: Path) -> FeatureCache | None:
    """Open the finished cache at `path`, or the parts of an interrupted run if it committed any."""
    if path.exists():
        return FeatureCache(path)
    if not parts_folder(path).exists():
        return None
    try:
        return FeatureCache(path)
    except CacheError:  # nothing was committed yet; damaged parts are reported by the writer
        return None


def moved_note(cache: FeatureCache, source: Source, stated: bool) -> Note | None:
    """Return a note where the images of `cache` are now in `source`, whose root is another; else None.

    That is so if the user states it (--source-moved), or if `source` has most of the cache's keys,
    relative to their roots, and images spread over them have the digests of the cache.
    """
    if Origin(cache.spec, source.root).source_root == cache.source_root:
        return None
    compared = 0 if stated else _equal_images(cache, source)
    if not stated and not compared:
        return None
    why = f": all of {compared} images that were compared are the same" if compared else ", as stated"
    return Note(
        "source-moved",
        f"The images of {cache.path} have moved from {cache.source} to {source.location}{why}.",
        details={"before": cache.source, "source": source.location},
    )


def _equal_images(cache: FeatureCache, source: Source) -> int:
    """Return the number of images compared; 0 if most keys are absent or a digest differs."""
    present = set(source.images)
    rows = np.flatnonzero([key in present for key in cache.images.key])
    if 2 * len(rows) <= len(cache.images):
        return 0
    spread = rows[np.unique(np.linspace(0, len(rows) - 1, COMPARED).astype(int))]
    try:
        for key, digest in zip(cache.images.key[spread], cache.images.digest[spread], strict=True):
            if hashlib.sha256(source.read(key)).digest() != bytes(digest):
                return 0
    except (ImageError, OSError):
        return 0
    return len(spread)


def _resplit_notes(cache: FeatureCache, source: Source) -> list[Note]:
    """Return a note on samples of `cache` that `source` has in another split."""
    try:
        before = dict(zip(cache.samples.key, cache.samples.split, strict=True))
    except CacheError:  # damaged samples, which are written anew with a note of their own
        return []
    pairs = zip(source.samples.key, source.samples.split, strict=True)
    moves = Counter((before[key], split) for key, split in pairs if before.get(key, split) != split)
    if not moves:
        return []
    shown = ", ".join(f"{count:,} {old} → {new}" for (old, new), count in sorted(moves.items()))
    text = (
        f"{moves.total():,} samples of {cache.path} are now in another split: {shown}. Figures of heads and "
        "models that were fitted before are of other samples; compare none of them with new ones."
    )
    details = {"moves": {f"{old} → {new}": count for (old, new), count in sorted(moves.items())}}
    return [Note("splits-changed", text, True, details)]


def _statistics_notes(cache: FeatureCache, source: Source) -> list[Note]:
    """Return a note where a random network keeps the BatchNorm statistics of a first run on few images."""
    few, now = len(cache.images), len(source.images)
    if not cache.spec.backbone.get("calibrated") or few >= min(BATCH_SIZE, now):
        return []
    text = (
        f"The random network keeps the BatchNorm statistics of its first run, which had {few} images; now "
        f"there are {now:,}. Write another cache with -o to take them from up to {BATCH_SIZE}."
    )
    return [Note("batchnorm-statistics-kept", text, True, {"images": few})]


def open_trunk(settings: Settings) -> Trunk:
    """Return the trunk of an extraction. For a new cache the network is loaded at once."""
    calibrations = {name: node.calibration for name, node in settings.cached.items()}
    if settings.spec is not None:
        preprocess = Preprocess.from_json(settings.spec.preprocess)
        load = partial(_load_recorded, settings.spec.backbone, settings.path, settings.config)
        return Trunk(load, preprocess, settings.engine, settings.spec.backbone, calibrations)
    started = time.perf_counter()
    backbone, config = _load_new(settings.config), settings.config
    preprocess = (settings.preprocess or backbone.preprocess).override(config.image_size, config.crop)
    seconds = time.perf_counter() - started
    return Trunk(lambda: backbone, preprocess, settings.engine, startup_seconds=seconds)


def _load_new(config: ExtractConfig) -> Backbone:
    from bottleneck.backbones.registry import load_backbone

    return load_backbone(
        config.backbone or DEFAULT_BACKBONE,
        weights=config.weights,
        seed=config.seed or 0,
        in_channels=config.in_channels or 3,
        depth=config.depth,
        image_size=None if config.backbone == SMALL_CNN else config.image_size,
        trust_code=config.trust_code,
    )


def _load_recorded(recipe: dict[str, Any], path: Path, config: ExtractConfig) -> Backbone:
    """Load the network that the cache at `path` was made with."""
    from bottleneck.backbones.batchnorm import read_statistics
    from bottleneck.backbones.registry import load_from_recipe

    statistics = read_statistics(path) if recipe.get("calibrated") else None
    return load_from_recipe(recipe, LoadOptions(config.weights, config.trust_code), statistics=statistics)


def _describe(settings: Settings, trunk: Trunk, source: Source) -> list[NodeSpec]:
    """Return descriptions of the nodes that the cache lacks."""
    names, precision = settings.added, settings.engine.precision
    if not names:
        return []
    calibration = None
    if precision not in ("fp32", "auto") or resolve_device(settings.engine.device) != "cpu":
        engine = trunk.engine(names, _example(source, trunk.preprocess, CALIBRATION_IMAGES))
        precision, calibration = engine.precision, engine.calibration
    specs = []
    for name in names:
        shape, layout = trunk.backbone.node_shape(name, trunk.preprocess)
        node, _, pool = name.partition("@")
        node = trunk.backbone.resolve(node)
        specs.append(
            NodeSpec(
                node=node,
                aliases=trunk.backbone.aliases(node),
                pool=pool or default_pool(node),
                shape=shape,
                dtype=settings.config.dtype or DTYPES[0],
                precision="fp32" if precision == "auto" else precision,
                layout=layout,
                views=settings.views,
                calibration=calibration,
            )
        )
    return specs


def _example(source: Source, preprocess: Preprocess, count: int) -> np.ndarray:
    """Return pixels (B, H, W, C) of up to `count` readable images, spread evenly over the source."""
    keys = source.images
    spread = [keys[i] for i in np.unique(np.linspace(0, len(keys) - 1, count).astype(int))]
    return readable_pixels(source, spread, preprocess, workers=1)


def read_model_file(config: ExtractConfig) -> tuple[ExtractConfig, Preprocess | None]:
    """Replace a model file given as backbone by the name, weights and preprocessing of its network.

    A file that holds only a head stands for the published weights that it names.
    """
    if config.backbone is None or not config.backbone.endswith(".safetensors"):
        return config, None
    head = load_head(config.backbone)
    recipe, weights = head.backbone, config.backbone
    if not holds_network(config.backbone):
        weights = recipe["weights"]
        if weights in ("none", "file", "module"):
            raise BackboneError(
                f"{config.backbone} holds a head and no network; that of {recipe['name']} is not published.",
                f"Name it: --backbone {recipe['name']} --weights {'none' if weights == 'none' else 'FILE'}.",
            )
    config = replace(
        config,
        backbone=recipe["name"],
        weights=weights,
        in_channels=recipe.get("in_channels"),
        depth=recipe.get("depth"),
    )
    return config, Preprocess.from_json(head.preprocess)
