"""A small cache to try things on: up to a budget of samples of the user's cache, with features of each block.

The user's cache is only read. Labels and splits are its own; what is tried learns from train, val judges it.

Shapes: S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

import numpy as np

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.recipe import NO_OPTIONS, LoadOptions
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source
from bottleneck.data.splits import set_aside
from bottleneck.errors import BackboneError, FitError
from bottleneck.extraction.cached_source import require_images, source_of
from bottleneck.extraction.extract import extract
from bottleneck.names import BOTTLENECK
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import SampleTable
from bottleneck.store.reader import FeatureCache

VAL_FRACTION = 0.25  # of train, where the cache has no val
SHARES = {"train": 0.7, "val": 0.3, "test": 0.3}  # of the budget; test is only reported
MOST_NODES = 5  # of the probe curve, the bottleneck not counted


def class_target(cache: FeatureCache, name: str | None) -> str:
    """The target to advise on: `name`, or the first one with classes.

    Raises
    ------
    FitError
        There is none, or fewer than two classes have samples to learn from.
    """
    targets = cache.samples.targets
    kinds = {key: target.kind for key, target in targets.items()}
    if name is None:
        name = next((key for key, kind in kinds.items() if kind == "class"), None)
    if name is None or kinds.get(name) != "class":
        known = ", ".join(f"{key} ({kind})" for key, kind in kinds.items())
        wanted = f"target {name!r} with classes" if name else "target with classes"
        hint = "Name one that has classes by --target."
        if "class" not in kinds.values():
            again = f"bottleneck extract SOURCE -o {quote(str(cache.path))}"
            hint = f"Put the images into one folder a class: {again}"
        raise FitError(f"{cache.path} has no {wanted}; its targets are: {known or 'none'}.", hint)
    learnt = targets[name].values[targets[name].labelled & (cache.samples.split == "train")]
    if len(np.unique(learnt)) < 2:
        raise FitError(f"Target {name!r} has {len(np.unique(learnt))} classes in train; expected 2 or more.")
    return name


def trial_source(cache: FeatureCache, target: str, budget: int, seed: int = 0) -> Source:
    """Up to `budget` labelled samples of train and val, and some of test, each class by its share.

    Raises
    ------
    CacheError
        Images that the cache was made from are gone.
    """
    whole = source_of(cache)
    table = whole.samples.take(whole.samples.targets[target].labelled)
    table = replace(table, targets={target: table.targets[target]})
    if not (table.split == "val").any():
        table = replace(table, split=set_aside(table, VAL_FRACTION, seed=seed))
    rows = [_spread(table, target, split, round(share * budget), seed) for split, share in SHARES.items()]
    source = replace(whole, samples=table).take(np.sort(np.concatenate(rows)))
    require_images(source, slice(None), "Advice looks at images", cache.path)
    return source


def _spread(table: SampleTable, target: str, split: str, count: int, seed: int) -> np.ndarray:
    """Up to `count` rows of a split, drawn so that every class gives its share."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(table.split == split))
    codes = table.targets[target].values[rows]
    place = np.empty(len(rows))
    for code in np.unique(codes):
        of_class = np.flatnonzero(codes == code)
        place[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return rows[np.argsort(place, kind="stable")[:count]]


def probe_nodes(backbone: Backbone, preprocess: Preprocess) -> list[str]:
    """Nodes of the probe curve: block ends (maps averaged over a 2 × 2 grid), and the bottleneck."""
    ends = [block.node for block in backbone.blocks[:-1]]
    if len(ends) > MOST_NODES:
        ends = [ends[i] for i in np.linspace(0, len(ends) - 1, MOST_NODES).round().astype(int)]
    return [*(_pooled(backbone, node, preprocess) for node in ends), BOTTLENECK]


def _pooled(backbone: Backbone, node: str, preprocess: Preprocess) -> str:
    try:
        backbone.node_shape(f"{node}@avg2", preprocess)
    except BackboneError:  # not a map of positions
        return node
    return f"{node}@avg2"


def extract_trial(
    cache: FeatureCache,
    source: Source,
    path: Path,
    nodes: Sequence[str],
    *,
    options: LoadOptions = NO_OPTIONS,
    reporter: Reporter = SILENT,
) -> Path:
    """Extract `nodes` of `source` into the cache `path`, by the recipe of `cache`."""
    recipe, preprocess = cache.spec.backbone, Preprocess.from_json(cache.spec.preprocess)
    kept = recipe.get("weights")
    extract(
        source,
        path,
        backbone=recipe["name"],
        weights=options.weights if kept == "file" else kept,
        seed=recipe.get("seed"),
        in_channels=recipe.get("in_channels"),
        nodes=tuple(nodes),
        image_size=preprocess.size,
        crop="squash" if preprocess.squash else preprocess.size / preprocess.resize,
        trust_code=options.trust_code,
        reporter=reporter,
    )
    return path
