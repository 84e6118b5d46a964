"""Which backbone suits the data: caches of the same samples, ranked by scores that need no training.

Shapes: n train samples, D features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.backbones.node_names import stored_nodes
from bottleneck.errors import BackboneError, FitError, Note, distinct, refuse_strict
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.names import BOTTLENECK
from bottleneck.progress import SILENT, Reporter
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.class_task import class_target, source_outputs, target_notes, train_samples
from bottleneck.studies.rank.scores import Scores, score
from bottleneck.studies.study_config import MEASURES, RankConfig


@dataclass(frozen=True)
class Ranked:
    """One cache with its scores.

    accuracy : of a head on val, cross-validated where there is no val; None if not checked.
    """

    cache: str
    node: str
    scores: Scores
    accuracy: float | None

    def to_json(self) -> dict[str, Any]:
        """Return one entry of `scores`."""
        return {"cache": self.cache, "node": self.node, **asdict(self.scores), "accuracy": self.accuracy}


@dataclass(frozen=True)
class Ranking:
    """Caches, the best first by `by`. tau : Kendall's τ of each measure with accuracy, if checked."""

    ranked: list[Ranked]
    by: str
    tau: dict[str, float | None] | None
    seconds: float
    notes: list[Note] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bottleneck rank --json`."""
        return {
            "scores": [each.to_json() for each in self.ranked],
            "order": [each.cache for each in self.ranked],
            "by": self.by,
            "kendall_tau": self.tau,
            "seconds": self.seconds,
            "notes": [note.to_json() for note in self.notes],
        }


def rank(
    caches: Sequence[str | Path],
    *,
    node: str = RankConfig.node,
    target: str | None = RankConfig.target,
    by: str = RankConfig.by,
    check: bool = RankConfig.check,
    output: str | Path = RankConfig.output,
    seed: int = RankConfig.seed,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> Ranking:
    """Score caches of the same samples on their train split, and order them.

    Parameters
    ----------
    caches : paths
        One for each backbone, with the same samples and labels.
    node : str
        Which features are scored.
    target : str, optional
        The first one with classes by default.
    by : "logme", "h_score", "leep" or "knn"
        Larger is better in each. A network without a source classifier has no LEEP and comes last.
    check : bool
        Also fit a head on each, and correlate every measure with its accuracy (Kendall's τ).
    output : path
        Folder of those heads.
    seed : int
        Of the draw of queries for kNN, and of the heads' folds.
    strict : bool
        Refuse decisions that change what is learnt or measured (`errors.refuse_strict`).

    Raises
    ------
    FitError
        The caches hold different samples or labels, or none with classes.
    CacheError
        A cache lacks the node.
    StrictError
        `strict` is given and a note changes the result.
    """
    started = time.perf_counter()
    config = RankConfig(node, target, by, check, output, seed)
    _require_same_samples(caches, target)
    with FeatureCache(caches[0]) as opened:
        notes = target_notes(opened, class_target(opened, target).name, target)
    refuse_strict(notes, strict)
    ranked = []
    with reporter.step("Scoring", total=len(caches), unit="caches") as advance:
        for cache in caches:
            ranked.append(_rank_one(cache, config, notes))
            advance(1)
    ranked.sort(key=lambda each: _sorting_key(getattr(each.scores, by)))
    tau = _tau(ranked) if check else None
    return Ranking(ranked, by, tau, time.perf_counter() - started, distinct(notes))


def _sorting_key(score: float | None) -> float:
    """Largest first, unknown scores last."""
    return np.inf if score is None else -score


def _rank_one(cache: str | Path, config: RankConfig, notes: list[Note]) -> Ranked:
    """Score one cache. notes : is appended to."""
    with FeatureCache(cache) as opened:
        notes += opened.samples.part_notes()
        target = class_target(opened, config.target)
        train = train_samples(opened, target)
        outputs = None
        if BOTTLENECK in opened.nodes and opened.samples.image.shape[1] == 1:
            from bottleneck.training.inputs import backbone_of

            try:
                outputs = source_outputs(backbone_of(opened), opened.sample_rows(BOTTLENECK, train))
            except BackboneError as error:  # only LEEP needs the weights
                text = f"LEEP is not computed for {cache}: its network cannot be loaded. {error.message}"
                notes.append(Note("leep-not-computed", text, details={"cache": str(cache)}))
        (name,), renamed = stored_nodes(opened, [config.node])
        notes += renamed
        rows = opened.sample_rows(name, train)
        scores = score(rows, target.values[train], outputs, seed=config.seed)
    accuracy = None
    if config.check:
        fitted = fit_heads(cache, targets=[target.name], nodes=[name], output=config.output, seed=config.seed)
        notes += fitted.notes
        (head,) = fitted.heads
        accuracy = head["accuracy"].get("val", head["cv_accuracy"])
    return Ranked(str(cache), config.node, scores, accuracy)


def _tau(ranked: Sequence[Ranked]) -> dict[str, float | None]:
    """Kendall's τ-b of each measure with accuracy, over the caches that have it; None for fewer than two."""
    from scipy.stats import kendalltau

    correlations: dict[str, float | None] = {}
    for measure in MEASURES:
        pairs = [(getattr(each.scores, measure), each.accuracy) for each in ranked]
        pairs = [pair for pair in pairs if pair[0] is not None]
        tau = float(kendalltau(*zip(*pairs, strict=True)).statistic) if len(pairs) > 1 else np.nan
        correlations[measure] = tau if np.isfinite(tau) else None
    return correlations


def _require_same_samples(caches: Sequence[str | Path], target: str | None) -> None:
    """Raise FitError where two caches differ in samples, splits or labels. No features are read."""
    first = None
    for cache in caches:
        with FeatureCache(cache) as opened:
            labels = class_target(opened, target)
            names = np.array([*labels.class_names, ""], object)[labels.values]
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
