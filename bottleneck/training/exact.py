"""A map that is exact enough for a head: in the cache's own type, or in float32 where that is too coarse.

Some features are nearly constant on train. A head gives them large weights, and then the rounding of
a map to float16, which the unfrozen blocks pass on, moves its logits by more than training may start with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.section import Cut, Section
from bottleneck.data.preprocess import Preprocess
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.progress import Progress, silent
from bottleneck.store.reader import FeatureCache
from bottleneck.training.maps import ensure_map
from bottleneck.training.measure import logits_of
from bottleneck.training.network import network_of
from bottleneck.training.run import Inputs, RunConfig, plain_batches
from bottleneck.training.sets import Sets
from bottleneck.training.start import START_BOUND, head_logits, largest_difference


def ensure_exact_map(
    path: Path,
    backbone: Backbone,
    cut: Cut,
    head: HeadArtifact,
    sets: Sets,
    config: RunConfig,
    *,
    views: int = 0,
    weights: str | None = None,
    trust_code: bool = False,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda text: None,
) -> float:
    """See that the cache `path` has the map of `cut`, exact enough for `head`; returns the seconds it took.

    A map in float16 that is too coarse is replaced by one in float32.

    Raises
    ------
    CacheError
        The map has to be extracted, and images are gone, or the disk is full.
    """
    asked = {"views": views, "weights": weights, "trust_code": trust_code, "progress": progress, "tell": tell}
    seconds = ensure_map(path, cut.node, **asked)
    with FeatureCache(path) as cache:
        if cache.node(cut.node).dtype == "float32":
            return seconds
        moved = _difference(cache, backbone, cut, head, sets, config)
        bound = START_BOUND[cache.node(head.node).dtype]
    if moved <= bound:
        return seconds
    tell(
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
