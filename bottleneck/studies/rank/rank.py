"""Which backbone suits the data: caches of the same samples, ranked by scores that need no training.

Shapes: n train samples, D features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from bottleneck.errors import BackboneError, BottleneckError, FitError
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.names import BOTTLENECK
from bottleneck.progress import SILENT, Reporter
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.advise.subset import class_target
from bottleneck.studies.rank.scores import Scores, score, source_outputs
from bottleneck.training.inputs import backbone_of

MEASURES = ("logme", "h_score", "leep", "knn")


@dataclass(frozen=True)
class Ranked:
    """One cache. accuracy : of its head on val, cross-validated without a val; None if not checked."""

    cache: str
    node: str
    scores: Scores
    accuracy: float | None

    def to_json(self) -> dict[str, Any]:
        """Scores beside the cache's name."""
        return {"cache": self.cache, "node": self.node, **self.scores.to_json(), "accuracy": self.accuracy}


@dataclass(frozen=True)
class Ranking:
    """Caches, the best first by the measure `by`. tau : Kendall's, of each with accuracy, if checked."""

    ranked: list[Ranked]
    by: str
    tau: dict[str, float | None] | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck rank --json`."""
        return {
            "scores": [each.to_json() for each in self.ranked],
            "order": [each.cache for each in self.ranked],
            "by": self.by,
            "kendall_tau": self.tau,
            "seconds": self.seconds,
        }


def rank(
    caches: Sequence[str | Path],
    *,
    node: str = BOTTLENECK,
    target: str | None = None,
    by: str = "logme",
    check: bool = False,
    output: str | Path = "heads",
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Ranking:
    """Score caches of the same samples on their train split, and order them.

    Parameters
    ----------
    caches : paths
        One a backbone; the same samples with the same labels in each.
    node : str
        Which features are scored.
    target : str, optional
        The first one with classes by default.
    by : "logme", "h_score", "leep" or "knn"
        Larger is better in each. LEEP is missing where a network has no source classifier: it comes last.
    check : bool
        Fit a head on each, too, and correlate every measure with its accuracy (Kendall's τ).

    Raises
    ------
    FitError
        The caches hold other samples or labels, or none with classes.
    CacheError
        A cache lacks the node.
    """
    started = time.perf_counter()
    if by not in MEASURES:
        raise BottleneckError(f"Cannot rank by {by!r}; expected one of {', '.join(MEASURES)}.")
    _require_same_samples(caches, target)
    ranked = []
    with reporter.step("Scoring", total=len(caches), unit="caches") as advance:
        for cache in caches:
            scores = _score(cache, node, target, seed)
            accuracy = _accuracy(cache, node, target, output, seed) if check else None
            ranked.append(Ranked(str(cache), node, scores, accuracy))
            advance(1)
    ranked.sort(key=lambda each: _largest_first(getattr(each.scores, by)))
    return Ranking(ranked, by, _tau(ranked) if check else None, time.perf_counter() - started)


def _largest_first(value: float | None) -> float:
    """Sorting key; a score that is not known comes last."""
    return np.inf if value is None else -value


def _score(cache: str | Path, node: str, target: str | None, seed: int) -> Scores:
    with FeatureCache(cache) as opened:
        found = opened.samples.targets[class_target(opened, target)]
        train = np.flatnonzero((opened.samples.split == "train") & found.labelled)
        outputs = None
        if BOTTLENECK in opened.nodes and opened.samples.image.shape[1] == 1:
            try:
                outputs = source_outputs(backbone_of(opened), opened.sample_rows(BOTTLENECK, train))
            except BackboneError:  # its weights cannot be had here; the other scores need none
                outputs = None
        return score(opened.sample_rows(node, train), found.values[train], outputs, seed=seed)


def _accuracy(cache: str | Path, node: str, target: str | None, output: str | Path, seed: int) -> float:
    with FeatureCache(cache) as opened:
        target = class_target(opened, target)
    (head,) = fit_heads(cache, targets=[target], nodes=[node], output=output, seed=seed).heads
    return head["accuracy"].get("val", head["cv_accuracy"])


def _tau(ranked: Sequence[Ranked]) -> dict[str, float | None]:
    """Kendall's τ-b of each measure with accuracy, over the caches that have it; None for fewer than two."""
    found = {}
    for measure in MEASURES:
        pairs = [(getattr(each.scores, measure), each.accuracy) for each in ranked]
        pairs = [pair for pair in pairs if pair[0] is not None]
        tau = float(kendalltau(*zip(*pairs, strict=True)).statistic) if len(pairs) > 1 else np.nan
        found[measure] = tau if np.isfinite(tau) else None
    return found


def _require_same_samples(caches: Sequence[str | Path], target: str | None) -> None:
    """Raise FitError where two caches differ in samples, splits or labels; no features are read."""
    first = None
    for cache in caches:
        with FeatureCache(cache) as opened:
            found = opened.samples.targets[class_target(opened, target)]
            names = np.array([*found.class_names, ""], object)[found.values]
            rows = set(zip(opened.samples.key, opened.samples.split, names, strict=True))
        if first is None:
            first = rows
        elif rows != first:
            key = min(rows ^ first)[0]
            raise FitError(
                f"{cache} and {caches[0]} differ in samples, splits or labels, at {key!r} among others; "
                "backbones are compared on the same samples.",
                "Extract all from the same source, with the same --seed and fractions.",
            )
