"""Combine the flags of an extraction with the recipe of the cache that exists. No file is read.

Flags left out take the cache's values. Flags that differ are refused, all of them named at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bottleneck.backbones.recipe import request_differences
from bottleneck.data.preprocess import MIRROR, Preprocess, ViewRecipe
from bottleneck.data.source import Source, source_name
from bottleneck.errors import SourceError
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.names import BOTTLENECK, DEFAULT_BACKBONE, FAST
from bottleneck.remote.path import output_path
from bottleneck.store.spec import CacheSpec, NodeSpec, require_equal, stored_name

ADOPTS = ("auto", FAST)  # precisions of the user that take the existing cache's
HINT_OTHER_CACHE = "Leave the flag out to use the cache's own setting, or write another cache with -o."
HINT_OTHER_PLAN = "Leave the flag out to use the plan's setting, or make another plan."


@dataclass(frozen=True)
class Settings:
    """What an extraction has to do, known before any network is loaded.

    path : of the cache.
    config : the flags.
    spec : recipes of the existing cache, or of the plan; None for a new one, which gets them from the loaded
        network.
    preprocess : of a model file, for a new cache; None takes the network's own.
    cached : all nodes of the existing cache, or of the plan, by name.
    nodes : those of them that are requested, with their views.
    added : names of the requested nodes that are not among them.
    views : JSON recipe of the views of added nodes, or None.
    engine : how the network is run for added nodes, in the precision of the existing cache.
    """

    path: Path
    config: ExtractConfig
    spec: CacheSpec | None = None
    preprocess: Preprocess | None = None
    cached: Mapping[str, NodeSpec] = field(default_factory=dict)
    nodes: tuple[NodeSpec, ...] = ()
    added: tuple[str, ...] = ()
    views: dict[str, Any] | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)


def resolve(
    config: ExtractConfig,
    path: Path,
    spec: CacheSpec | None = None,
    cached: Mapping[str, NodeSpec] | None = None,
    preprocess: Preprocess | None = None,
) -> Settings:
    """Return the settings of an extraction into the cache `path`.

    Parameters
    ----------
    spec, cached : recipes and nodes of the existing cache, or of the plan in `config`; None for a new one
    preprocess : of a model file that is given as backbone

    Raises
    ------
    FingerprintError
        Flags differ from what the cache was made with, or its nodes have different views.
    """
    cached = cached or {}
    views = shared_views(cached.values(), path)
    if spec is not None:
        _refuse_differences(config, path, spec, cached, views)
    if config.flip:
        views = MIRROR.to_json()
    elif config.views and views is None:
        views = ViewRecipe(config.views, seed=config.seed or 0).to_json()
    requested_views = views if config.views or config.flip else None
    names = tuple(stored_name(cached, name) or name for name in config.node_names)
    names = tuple(dict.fromkeys(names)) or tuple(cached) or (BOTTLENECK,)
    return Settings(
        path=path,
        config=config,
        spec=spec,
        preprocess=preprocess,
        cached=cached,
        nodes=tuple(
            replace(cached[name], views=cached[name].views or requested_views)
            for name in names
            if name in cached
        ),
        added=tuple(name for name in names if name not in cached),
        views=requested_views,
        engine=replace(config.engine, precision=_precision_of(cached) or config.engine.precision),
    )


def _precision_of(cached: Mapping[str, NodeSpec]) -> str | None:
    """Return the precision of a cache, which new nodes take: that of its first vector. None without nodes.

    A map may have another one, see `prepare`.
    """
    nodes = sorted(cached.values(), key=lambda node: node.is_map)
    return nodes[0].precision if nodes else None


def shared_views(nodes: Iterable[NodeSpec], path: Path) -> dict[str, Any] | None:
    """Return the views recipe that all nodes with views have, or None; FingerprintError where they differ.

    The views of an image are made once and run through the network for all nodes.
    """
    viewed = [node for node in nodes if node.views]
    for node in viewed[1:]:
        require_equal(
            {"views": viewed[0].views},
            {"views": node.views},
            f"Node {viewed[0].name!r} of {path}",
            f"Its node {node.name!r} has other views; extract the two into caches of their own with -o.",
        )
    return viewed[0].views if viewed else None


def _refuse_differences(
    config: ExtractConfig,
    path: Path,
    spec: CacheSpec,
    cached: Mapping[str, NodeSpec],
    views: dict[str, Any] | None,
) -> None:
    """Raise FingerprintError naming every flag that differs from what the cache was made with.

    A node that is new may be stored in another type than the existing ones.
    """
    where, hint = f"The cache {path}", HINT_OTHER_CACHE
    if config.plan_file is not None and not path.exists():
        where, hint = f"The plan {config.plan_file}", HINT_OTHER_PLAN
    preprocess = Preprocess.from_json(spec.preprocess)
    wanted = preprocess.override(config.image_size, config.crop, config.decoding)
    existing: dict[str, Any] = {"preprocess": preprocess.exact.to_json(), "decoding": preprocess.decoding}
    requested: dict[str, Any] = {"preprocess": wanted.exact.to_json(), "decoding": wanted.decoding}

    def compare(name: str, ours: object, theirs: object) -> None:
        existing[name], requested[name] = ours, theirs

    names = [stored_name(cached, name) for name in config.node_names or cached]
    stored = [cached[name].dtype for name in names if name is not None]
    if config.dtype is not None and stored:
        compare("dtype", stored[0], config.dtype)
    if config.engine.precision not in ADOPTS:
        asked = {name: cached[name] for name in names if name is not None} if config.node_names else cached
        compare("precision", _precision_of(asked or cached), config.engine.precision)
    if config.flip and views is not None:
        compare("views", views, MIRROR.to_json())
    if config.views and views is not None:
        seed = views.get("seed", 0) if config.seed is None else config.seed
        compare("views", views, views | {"count": config.views, "seed": seed})
    flags: dict[str, Any] = {
        "name": config.backbone,
        "weights": config.weights,
        "seed": config.seed,
        "in_channels": config.in_channels,
        "depth": config.depth,
    }
    for dotted in request_differences(spec.backbone, **flags):
        name = dotted.removeprefix("backbone.")
        compare(dotted, spec.backbone.get(name), flags[name])
    require_equal(existing, requested, where, hint)


def default_cache(source: Source, config: ExtractConfig) -> Path:
    """`cache/SOURCE--BACKBONE.h5` below the current folder; SOURCE is the source's whole name."""
    backbone = re.sub(r"[^\w.-]+", "-", config.backbone or DEFAULT_BACKBONE)
    return Path("cache") / f"{source_name(source.location)}--{backbone}.h5"


def cache_path(source: Source, cache: str | Path | None, config: ExtractConfig) -> Path:
    """Return the file to write: `cache`, or the default one; each shard has a file of its own."""
    path = output_path(cache) if cache is not None else default_cache(source, config)
    shard = source.samples.shard
    if shard is None:
        return path
    return path.with_name(f"{path.stem}--shard-{shard.numbers[0]}-of-{shard.of}{path.suffix}")


def refuse_for_shard(source: Source, config: ExtractConfig, what: str) -> None:
    """Raise SourceError where `source` is a shard without a plan: what each measures would differ.

    what : is measured on images, such as the calibration of an int8 network; shards of different ones cannot
        be merged.
    """
    if source.samples.shard is not None and config.plan_file is None:
        raise SourceError(
            f"{what} would be of one process, and shards of different ones cannot be merged.",
            "Give all shards one --plan-file, which fixes it; or trained --weights and --precision fp32.",
        )
