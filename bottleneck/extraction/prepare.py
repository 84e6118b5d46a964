"""Prepare an extraction: the recipe and the nodes for the cache writer, and the network. Nothing is written.

    flags ──► Settings ──► Trunk ──► descriptions of new nodes ──► Extraction

Shapes: B images of a batch, H × W pixels, C channels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.backbones.model_file import holds_network
from bottleneck.backbones.recipe import LoadOptions, require_recipe
from bottleneck.data.loader import readable_images
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import EXAMPLES, Source, spread
from bottleneck.engines.device import resolve_device
from bottleneck.errors import BackboneError, CacheError, EngineError, Note, counted, verb
from bottleneck.extraction.cached_source import source_of
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.existing import moved_note, open_existing, resplit_notes, statistics_notes
from bottleneck.extraction.pipeline import BATCH_SIZE, Trunk
from bottleneck.extraction.plan_file import ExtractionPlan, kept_note, plan_for, write_plan
from bottleneck.extraction.remembered_network import NodeOutline, RememberedNetwork
from bottleneck.extraction.scaled_decoding import Agreements, measure_decoding
from bottleneck.extraction.settings import ADOPTS, HINT_OTHER_CACHE, Settings, refuse_for_shard, resolve
from bottleneck.heads.artifact import load_head
from bottleneck.names import DEFAULT_BACKBONE, DTYPES, FAST, SCALED, SMALL_CNN, default_pool
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import CacheSpec, NodeSpec, alias_note, require_equal, stored_name

if TYPE_CHECKING:
    from bottleneck.backbones.backbone import Backbone


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


def prepare(
    config: ExtractConfig,
    source: Source,
    path: Path,
    like: FeatureCache | None = None,
) -> Extraction:
    """Resolve the settings, and describe the new nodes. Writes nothing but a plan file that does not exist.

    like : another cache, with whose rows those of a new one compare. It gives the network with BatchNorm's
        statistics, and how the nodes that are named are computed, with their calibration.

    A new cache or a new node needs the network; an int8 network is calibrated here, before any row. A node
    whose rows in the precision of the existing cache are out of its bound is computed in fp32, with a note.

    Raises
    ------
    FingerprintError
        A flag differs from what the cache was made with, or the source from that of the plan file.
    BackboneError, EngineError, SourceError, CacheError, ArtifactError
    """
    config, preprocess = read_model_file(config)
    file = config.plan_file
    if file is None:
        return _prepare(config, preprocess, source, path, _plan_like(like, config, source), like)
    with plan_for(file, source) as plan:
        extraction = _prepare(config, preprocess, source, path, plan)
        if plan is not None:
            note = kept_note(file, plan)
        else:
            spec = extraction.spec
            statistics = extraction.statistics or _statistics_of(spec, path)  # these of a cache that exists
            note = write_plan(file, ExtractionPlan.of(source, spec, extraction.nodes, statistics))
    return replace(extraction, notes=(note, *extraction.notes))


def _prepare(
    config: ExtractConfig,
    preprocess: Preprocess | None,
    source: Source,
    path: Path,
    plan: ExtractionPlan | None = None,
    like: FeatureCache | None = None,
) -> Extraction:
    """Prepare an extraction as `prepare` does. plan : stands for a cache that does not exist yet."""
    cache, moved, notes = open_existing(path), None, list[Note]()
    spec, known = (None, {}) if plan is None else (plan.spec, {node.name: node for node in plan.nodes})
    if cache is not None:
        with cache:
            spec, known = cache.spec, cache.nodes | known
            moved = moved_note(cache, source, config.source_moved)
            notes += resplit_notes(cache, source)
            if plan is None:
                notes += statistics_notes(cache, source)
            elif config.plan_file is not None:
                plan.require_cache(cache, config.plan_file)
            else:
                require_equal(spec.to_json(), plan.spec.to_json(), f"The cache {path}", HINT_OTHER_CACHE)
    settings = resolve(config, path, spec, known, preprocess)
    if plan is not None and config.plan_file is not None:
        plan.require_nodes([*(node.name for node in settings.nodes), *settings.added], config.plan_file)
    if settings.engine.precision == "int8":
        refuse_for_shard(source, config, "An int8 network's calibration")
    network = RememberedNetwork(_request(settings.config)) if settings.spec is None else None
    trunk = open_trunk(settings, network, plan.statistics if plan is not None else None)
    if settings.spec is None:
        spec, new_statistics = _new_recipe(trunk, source, config)
    else:
        spec = settings.spec
        new_statistics = {} if plan is None or cache is not None else plan.statistics
    described, found = _describe(settings, trunk, source, network)
    notes += found
    if any(node.calibration for node in described):
        refuse_for_shard(source, config, f"The measured agreement of {trunk.engine_name} with float32")
    if config.plan_file is not None:
        trunk.calibrated_on = lambda _: _example(source, trunk.preprocess, EXAMPLES)[0]
    elif like is not None:
        trunk.calibrated_on = partial(_calibration_images, like.path, trunk.preprocess, None)
    elif moved is not None:
        trunk.calibrated_on = partial(_calibration_images, path, trunk.preprocess, source)
    nodes = (*settings.nodes, *described)
    stored = {node.name: node for node in nodes}
    given = [(name, stored_name(stored, name)) for name in config.node_names]
    notes += [alias_note(name, found) for name, found in given if found not in (None, name)]
    if settings.spec is not None and config.engine.precision == FAST and settings.engine.precision == "fp32":
        of = f"plan {config.plan_file}" if cache is None and config.plan_file else f"cache {path}"
        message = f"--precision fast is not used: the features of the {of} are fp32, and new ones are too."
        notes.append(Note("precision-of-cache", message))
    return Extraction(path, source, config, spec, nodes, trunk, new_statistics, moved, tuple(notes))


def _plan_like(like: FeatureCache | None, config: ExtractConfig, source: Source) -> ExtractionPlan | None:
    """Return the recipe of a cache whose nodes are computed as those of `like` are, without their views."""
    if like is None:
        return None
    nodes = tuple(replace(like.node(name), views=None) for name in config.node_names)
    return ExtractionPlan.of(source, like.spec, nodes, _statistics_of(like.spec, like.path))


def _statistics_of(spec: CacheSpec, path: Path) -> Mapping[str, np.ndarray]:
    """Return BatchNorm's statistics by name, beside the cache at `path`, of a random network; else none."""
    if not spec.backbone.get("calibrated"):
        return {}
    from bottleneck.backbones.batchnorm import read_statistics

    return read_statistics(path)


def _new_recipe(
    trunk: Trunk, source: Source, config: ExtractConfig
) -> tuple[CacheSpec, Mapping[str, np.ndarray]]:
    """Return the recipe of a new cache, and the BatchNorm statistics of a random network, which it gets from
    the first images.
    """
    if trunk.recipe is not None:
        return CacheSpec(backbone=dict(trunk.recipe), preprocess=trunk.preprocess.to_json()), {}
    backbone, statistics = trunk.backbone, dict[str, np.ndarray]()
    if backbone.recipe["weights"] == "none":
        from bottleneck.backbones import batchnorm

        refuse_for_shard(source, config, "BatchNorm statistics of a random network")
        example, _ = _example(source, trunk.preprocess, BATCH_SIZE)
        batchnorm.calibrate_batchnorm(backbone, example, trunk.preprocess)
        statistics = batchnorm.statistics(backbone)
    return CacheSpec(backbone=backbone.recipe, preprocess=trunk.preprocess.to_json()), statistics


def open_trunk(
    settings: Settings,
    network: RememberedNetwork | None = None,
    statistics: Mapping[str, np.ndarray] | None = None,
) -> Trunk:
    """Return the trunk of an extraction. For a new cache the network is loaded at once unless it is known.

    network : what is known of it, for a new cache.
    statistics : BatchNorm's, of a recorded random network; those beside the cache by default.
    """
    calibrations = {name: node.calibration for name, node in settings.cached.items()}
    precisions = {name: node.precision for name, node in settings.cached.items()}
    if settings.spec is not None:
        preprocess = Preprocess.from_json(settings.spec.preprocess)
        load = partial(_load_recorded, settings.spec.backbone, settings.path, settings.config, statistics)
        recipe, images = settings.spec.backbone, partial(_calibration_images, settings.path, preprocess, None)
        return Trunk(
            load, preprocess, settings.engine, recipe, calibrations, precisions, calibrated_on=images
        )
    config, request = settings.config, _request(settings.config)
    if network is not None and network.recipe is not None:
        preprocess = _sized(settings.preprocess or network.preprocess, config)
        load = partial(_load_known, network, request)
        return Trunk(load, preprocess, settings.engine, network.recipe)
    started = time.perf_counter()
    backbone = _load_new(request)
    preprocess = _sized(settings.preprocess or backbone.preprocess, config)
    seconds = time.perf_counter() - started
    return Trunk(lambda: backbone, preprocess, settings.engine, startup_seconds=seconds)


def _sized(preprocess: Preprocess, config: ExtractConfig) -> Preprocess:
    """Return the preprocessing of a new cache."""
    return preprocess.override(config.image_size, config.crop, config.decoding)


def _request(config: ExtractConfig) -> dict[str, Any]:
    """Return the arguments of `load_backbone` for a new cache."""
    return {
        "name": config.backbone or DEFAULT_BACKBONE,
        "weights": config.weights,
        "seed": config.seed or 0,
        "in_channels": config.in_channels or 3,
        "depth": config.depth,
        "image_size": None if config.backbone == SMALL_CNN else config.image_size,
        "trust_code": config.trust_code,
    }


def _load_new(request: dict[str, Any]) -> Backbone:
    from bottleneck.backbones.registry import load_backbone

    return load_backbone(**request)


def _load_known(network: RememberedNetwork, request: dict[str, Any]) -> Backbone:
    return network.require_same(_load_new(request))


def _load_recorded(
    recipe: dict[str, Any],
    path: Path,
    config: ExtractConfig,
    statistics: Mapping[str, np.ndarray] | None = None,
) -> Backbone:
    """Load the network that the cache at `path` was made with. statistics : those beside it by default."""
    from bottleneck.backbones.registry import load_from_recipe

    if statistics is None:
        statistics = _statistics_of(CacheSpec(recipe, {}), path) or None
    return load_from_recipe(recipe, LoadOptions(config.weights, config.trust_code), statistics=statistics)


def _describe(
    settings: Settings, trunk: Trunk, source: Source, network: RememberedNetwork | None
) -> tuple[list[NodeSpec], list[Note]]:
    """Return descriptions of the nodes that the cache lacks, and notes on their precision and decoding."""
    asked, precision = settings.added, settings.engine.precision
    if not asked:
        return [], []
    # By their names in the cache, by which graphs and calibrations are found; two names may be of one node.
    plain = {node.name: node for node in (_node_of(name, settings, trunk, network) for name in asked)}
    names = tuple(plain)
    calibration, calibrated_on, notes = None, tuple[str, ...](), list[Note]()
    if precision not in ("fp32", "auto") or resolve_device(settings.engine.device) != "cpu":
        example, digests = _example(source, trunk.preprocess, EXAMPLES)
        try:
            engine = trunk.engine(names, example)
        except EngineError as error:
            if settings.spec is None or precision == "fp32" or settings.config.engine.precision not in ADOPTS:
                raise
            notes.append(_in_fp32(names, precision, error))
            trunk.precisions |= dict.fromkeys(names, "fp32")
            engine = trunk.engine(names, example)
        precision, calibration = engine.precision, engine.calibration
        if calibration is not None and "pixels_sha256" in calibration:
            calibrated_on = tuple(map(bytes.hex, digests))
        if calibration is not None:  # no engine that these nodes share with others may take its place
            trunk.calibrations = {**trunk.calibrations, **dict.fromkeys(names, calibration)}
    agreements: Agreements = {}
    if trunk.preprocess.decoding == SCALED:
        agreements, note = measure_decoding(trunk, names, source)
        notes.append(note)
    if network is not None and trunk.is_loaded:
        network.keep(trunk.backbone, asked, trunk.preprocess)
    described = [
        replace(
            node,
            precision="fp32" if precision == "auto" else precision,
            calibration=calibration,
            calibrated_on=calibrated_on,
            decoding_agreement=agreements.get(node.name),
        )
        for node in plain.values()
    ]
    return described, notes


def _node_of(name: str, settings: Settings, trunk: Trunk, network: RememberedNetwork | None) -> NodeSpec:
    """Return the description of a new node, as it is in float32."""
    outline = network.node(name, trunk.preprocess) if network is not None else None
    outline = outline or NodeOutline.of(trunk.backbone, name, trunk.preprocess)
    return NodeSpec(
        node=outline.node,
        aliases=outline.aliases,
        pool=name.partition("@")[2] or default_pool(outline.node),
        shape=outline.shape,
        dtype=settings.config.dtype or DTYPES[0],
        precision="fp32",
        layout=outline.layout,
        views=settings.views,
    )


def _in_fp32(names: Sequence[str], precision: str, error: EngineError) -> Note:
    are = "are" if len(names) > 1 else "is"
    text = (
        f"{' and '.join(names)} {are} computed in fp32, the cache's other features in {precision}: "
        f"{error.message}"
    )
    return Note("node-in-fp32", text, details={"nodes": list(names), "precision": precision})


def _calibration_images(path: Path, preprocess: Preprocess, source: Source | None, pixels: str) -> np.ndarray:
    """Return pixels (B, H, W, C) of the images on which nodes of the cache at `path` were calibrated.

    source : where the images of the cache are now; None where it says. pixels : sha256 of them. A cache of an
    earlier release does not name the images: others are returned where some were added since.

    Raises CacheError, SourceError where they cannot be had.
    """
    with FeatureCache(path) as cache:
        source = source or source_of(cache)
        named = (
            node.calibrated_on
            for node in cache.nodes.values()
            if node.calibrated_on and (node.calibration or {}).get("pixels_sha256") == pixels
        )
        digests = [bytes.fromhex(each) for each in next(named, ())]
        if not digests:
            return _example(source, preprocess, EXAMPLES)[0]
        wanted, cached = set(digests), zip(map(bytes, cache.images.digest), cache.images.key, strict=True)
        key_of = {digest: key for digest, key in cached if digest in wanted}
    several = counted(len(digests), "calibration image")
    if removed := len(wanted - key_of.keys()):
        raise CacheError(f"{removed} of {several} {verb(removed)} no longer in {path}.")
    found, read = readable_images(source, [key_of[each] for each in digests], preprocess, workers=1)
    wanted -= set(read)
    if changed := [key_of[each] for each in digests if each in wanted]:
        raise CacheError(
            f"{len(changed)} of {several} {verb(len(changed), 'is', 'are')} gone from {source.root} or "
            f"{verb(len(changed), 'has', 'have')} changed; the first is {changed[0]}."
        )
    return found


def _example(source: Source, preprocess: Preprocess, count: int) -> tuple[np.ndarray, list[bytes]]:
    """Return pixels (B, H, W, C) and sha256 of up to `count` readable images, spread over the source."""
    keys = spread(source.examples or source.images, count)
    return readable_images(source, keys, preprocess, workers=1)


def read_model_file(config: ExtractConfig) -> tuple[ExtractConfig, Preprocess | None]:
    """Replace a model file given as backbone by the name, weights and preprocessing of its network.

    A file that holds only a head stands for the published weights that it names.
    """
    if config.backbone is None or not config.backbone.endswith(".safetensors"):
        return config, None
    head = load_head(config.backbone)
    recipe, weights = head.backbone, config.backbone
    require_recipe(recipe, f"The recipe in {config.backbone},")
    if not holds_network(config.backbone):
        weights = recipe["weights"]
        flags = {
            "none": f"--weights none --seed {recipe.get('seed', 0)}",
            "file": "--weights FILE",
            "module": "--trust-code",
        }
        if weights in flags:
            raise BackboneError(
                f"{config.backbone} holds a head and no network; that of {recipe['name']} is not published.",
                f"Name it: --backbone {quote(recipe['name'])} {flags[weights]}.",
            )
    config = replace(
        config,
        backbone=recipe["name"],
        weights=weights,
        in_channels=recipe.get("in_channels"),
        depth=recipe.get("depth"),
    )
    return config, Preprocess.from_json(head.preprocess)
