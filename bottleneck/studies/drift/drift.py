"""Are new images like those that a cache learnt from?

    old and new images ──► a head between them: AUC, p ──► verdict
                      ├──► predicted classes: shares old and new
                      └──► distance to the nearest old images ──► the most foreign ones

Old images are those of the train split. Drift says that images differ, not that predictions are worse.

Shapes: n old images, m new images, K classes or labels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.config import ReadConfig
from bottleneck.errors import CacheError, FitError, Note, counted, distinct, verb
from bottleneck.extraction.config import EngineConfig
from bottleneck.fitting.config import FitConfig
from bottleneck.fitting.head_files import blockwise
from bottleneck.heads.artifact import apply_link
from bottleneck.heads.metrics import wilson_interval
from bottleneck.heads.row_blocks import SelectedRows
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import Result, config_from
from bottleneck.samples import ArrayRows, RowReader
from bottleneck.store.reader import FeatureCache
from bottleneck.store.rows import SideBySide
from bottleneck.store.tables import as_bytes
from bottleneck.studies.audit.images import neighbourhood, outlier_scores
from bottleneck.studies.class_task import sole_target
from bottleneck.studies.drift.domain import FIGURES, Domain, tell_apart
from bottleneck.studies.new_images import NewImages, new_images
from bottleneck.studies.study_config import DriftConfig
from bottleneck.studies.suggest.selector import Space
from bottleneck.threads import one_thread
from bottleneck.trials.heads import artifact_of, fit_on
from bottleneck.trials.task import task_of

MOST = 2000  # old images, and new ones, that the head is fitted on
FEWEST = 20  # images on either side for a head between them
ALPHA = 0.05
CLEAR, PLAIN = 0.7, 0.9  # AUC from which images differ clearly, and from which nearly each is told
FOREIGN = 0.99  # quantile of the old images' distances beyond which a new one is foreign


@dataclass(frozen=True)
class DriftResult(Result):
    """Result of `drift`.

    verdict : in words. auc, auc_ci95, p_value, chance : see `Domain`; None with too few images.
    classes : {class, old, new, difference, interval, flag}: shares of the predicted classes.
    foreign : {image, score, beyond}, the most foreign first: the mean distance to the ten nearest old images,
        and the share of old images that are nearer to theirs.
    foreign_share : of new images that are farther than 99 in 100 old ones are.
    old, new : images compared. copies : images of NEW that are in the cache, left out.
    engines : that computed images of NEW, each {"engine", "precision", "nodes"}; none where all had rows.
    precisions : of the features, by node.
    """

    cache: str
    features: str
    node: str
    target: str | None
    verdict: str
    auc: float | None
    auc_ci95: tuple[float, float] | None
    p_value: float | None
    chance: float | None
    classes: list[dict[str, Any]]
    foreign: list[dict[str, Any]]
    foreign_share: float
    old: int
    new: int
    copies: int
    failed: list[dict[str, str]]
    permutations: int
    seed: int
    seconds: float = 0.0
    extract_seconds: float = 0.0
    engines: list[dict[str, Any]] = field(default_factory=list)
    precisions: dict[str, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def drift(
    cache: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    target: str | None = DriftConfig.target,
    node: str = DriftConfig.node,
    n: int = DriftConfig.n,
    permutations: int = DriftConfig.permutations,
    seed: int = DriftConfig.seed,
    weights: str | None = LoadOptions.weights,
    trust_code: bool = LoadOptions.trust_code,
    engine: str = EngineConfig.engine,
    precision: str = EngineConfig.precision,
    device: str = EngineConfig.device,
    batch_size: int | None = EngineConfig.batch_size,
    workers: int | None = EngineConfig.workers,
    force: bool = EngineConfig.force,
    image_columns: Sequence[str] = ReadConfig.image_columns,
    sample_column: str | None = ReadConfig.sample_column,
    covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
    reporter: Reporter = SILENT,
) -> DriftResult:
    """Compare new images with those of the train split of a cache.

    Parameters
    ----------
    cache : path of a feature cache; labels are not needed.
    new : a cache of the same network, or a folder or other source of images, whose features are computed and
        kept (`new_images`).
    target, node, n, permutations, seed : see `DriftConfig`.
    weights, trust_code, engine, precision, device, batch_size, workers, force
        As in `extract`, for images whose features have to be computed.
    image_columns, sample_column, covariate_columns
        Columns of a manifest, see `ReadConfig`; those of `cache` by default.

    Raises
    ------
    CacheError
        One of the two has no images, or all new ones are in the cache.
    FingerprintError
        The features of `new` were computed in another way.
    FitError
        There are several targets and none is named.
    SourceError, BackboneError, EngineError
    """
    started = time.perf_counter()
    config = config_from(DriftConfig, locals())
    load, run = config_from(LoadOptions, locals()), config_from(EngineConfig, locals())
    reading = config_from(ReadConfig, locals(), seed=0)  # `seed` is of the study, not of splits
    with FeatureCache(cache) as opened:
        opened.require_rows()
        name = sole_target(opened, target)
        with new_images(opened, new, node, load, run, reading, reporter) as other:
            result = _compared(opened, other, name, config, reporter)
    spent = time.perf_counter() - started - other.startup_seconds - other.extract_seconds
    return replace(result, cache=str(cache), seconds=spent)


def _compared(
    old: FeatureCache, other: NewImages, target: str | None, config: DriftConfig, reporter: Reporter
) -> DriftResult:
    """Compare the images of two caches. target : whose predicted classes are counted; None without labels."""
    new = other.cache
    old_rows, new_rows, copies, notes = _rows_to_compare(old, new)
    known, fresh = _features(old, config.node, old_rows), _features(new, config.node, new_rows)
    space = Space.of(known, fresh)  # of both alike, so that chance treats them alike
    x, y = space.project(known), space.project(fresh)
    with reporter.step("Telling new from old"), one_thread():
        domain = _domain(x, y, config, notes)
    foreign, share = _foreign(x, y, new.images.key[new_rows], config.n, reporter)
    classes = _shares(old, fresh, target, config, notes, reporter)
    lacking = [*old.samples.part_notes(), *new.samples.part_notes()]
    return DriftResult(
        cache=str(old.path),
        features=str(new.path),
        node=config.node,
        target=target if classes else None,
        verdict=_verdict(domain, len(x), len(y)),
        **(dict.fromkeys(FIGURES) if domain is None else domain.to_json()),
        classes=classes,
        foreign=foreign,
        foreign_share=share,
        old=len(x),
        new=len(y),
        copies=copies,
        failed=other.failed,
        permutations=config.permutations,
        seed=config.seed,
        extract_seconds=other.extract_seconds,
        engines=list(other.engines),
        precisions=old.precisions_of(config.node),
        notes=distinct([*lacking, *other.notes, *notes]),
    )


def _features(cache: FeatureCache, node: str, rows: np.ndarray) -> SelectedRows:
    """Return the rows (n, D) of images at a node, or at several side by side."""
    parts = [cache.features(each.name) for each in cache.vectors(node)]
    return SelectedRows(parts[0] if len(parts) == 1 else SideBySide(parts), rows)


def _rows_to_compare(old: FeatureCache, new: FeatureCache) -> tuple[np.ndarray, np.ndarray, int, list[Note]]:
    """Return rows of old and of new images, each content once, and the number of new ones in the cache."""
    notes: list[Note] = []
    known, contents = as_bytes(old.images.digest), as_bytes(new.images.digest)
    rows = np.arange(len(known))
    if len(old.samples):
        rows = np.unique(old.samples.image[old.samples.split == "train"])
    if not len(rows):
        raise CacheError(f"{old.path} has no image in train to compare with.")
    rows = rows[np.sort(np.unique([known[i] for i in rows], return_index=True)[1])]
    first = np.sort(np.unique(contents, return_index=True)[1])
    if len(first) < len(contents):
        repeats = counted(len(contents) - len(first), "image")
        text = f"Left out: {repeats} of {new.path} with the bytes of others of it."
        notes.append(Note("repeats-left-out", text, details={"images": len(contents) - len(first)}))
    seen = set(known)
    fresh = np.array([i for i in first if contents[i] not in seen], np.int64)
    copies = len(first) - len(fresh)
    if copies:
        text = f"{copies:,} of {counted(len(first), 'image')} of {new.path} {verb(copies)} in {old.path} "
        text += "and left out."
        notes.append(Note("copies-left-out", text, details={"images": copies}))
    if not len(fresh):
        raise CacheError(
            f"All {counted(len(first), 'image')} of {new.path} are in {old.path}; none is new.",
            "Name images that the cache does not have.",
        )
    return rows, fresh, copies, notes


def _domain(x: np.ndarray, y: np.ndarray, config: DriftConfig, notes: list[Note]) -> Domain | None:
    """Tell new images y (m, d) from old ones x (n, d); None where either are too few."""
    if min(len(x), len(y)) < FEWEST:
        return None
    if max(len(x), len(y)) > 5 * min(len(x), len(y)):
        text = (
            f"{len(x):,} old and {counted(len(y), 'new image is', 'new images are')} compared: the "
            "smaller number limits what is seen."
        )
        notes.append(Note("sizes-differ", text, details={"old": len(x), "new": len(y)}))
    random, drawn = np.random.default_rng(config.seed), []
    for rows in (x, y):
        drawn.append(rows[np.sort(random.permutation(len(rows))[:MOST])])
    if len(drawn[0]) + len(drawn[1]) < len(x) + len(y):
        text = f"The head between old and new is fitted on {len(drawn[0]):,} old and {len(drawn[1]):,} new "
        notes.append(Note("samples-drawn", text + "images, drawn at random."))
    new = np.repeat([False, True], [len(rows) for rows in drawn])
    return tell_apart(np.concatenate(drawn), new, permutations=config.permutations, seed=config.seed)


def _foreign(
    x: np.ndarray, y: np.ndarray, keys: np.ndarray, n: int, reporter: Reporter
) -> tuple[list[dict[str, Any]], float]:
    """Return the `n` new images y (m, d) that are farthest from old ones x, and the share of foreign ones."""
    if len(x) > MOST:
        x = x[np.unique(np.linspace(0, len(x) - 1, MOST).astype(int))]
    near = neighbourhood(ArrayRows(np.concatenate([x, y])), np.arange(len(x)), reporter)
    distance = outlier_scores(near)
    scores, ordinary = distance[len(x) :], np.sort(distance[: len(x)])
    beyond = np.searchsorted(ordinary, scores) / len(ordinary)
    farthest = np.argsort(-scores, kind="stable")[:n]
    foreign = [{"image": keys[i], "score": float(scores[i]), "beyond": float(beyond[i])} for i in farthest]
    return foreign, float((beyond >= FOREIGN).mean())


def _shares(
    old: FeatureCache,
    new: RowReader,
    target: str | None,
    config: DriftConfig,
    notes: list[Note],
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Return the share of each class among the predictions for old and new images."""
    reason = ""
    if target is None:
        reason = "the cache has no labels"
    elif old.samples.targets[target].kind == "regression":
        reason = f"target {target!r} is a number"
    elif old.samples.image.shape[1] > 1 or old.samples.covariate_names:
        reason = "a sample of the cache is more than one image"
    else:
        try:
            task = task_of(old, target, cv=FitConfig.cv, seed=config.seed)
        except FitError as error:
            reason = error.message.rstrip(".")
    if not reason:
        problem = task.problem()
        fit = fit_on(task, config.node, task.rows["train"], problem, reporter=reporter)
        held, logits = fit.held_out()
        if len(held):
            head = artifact_of(task, config.node, task.rows["train"], fit, problem)
            before = apply_link(logits, head.link)
            after = blockwise(new, head.probabilities)
            return _compare_shares(_answers(before, head.link), _answers(after, head.link), head.class_names)
        reason = "there was no cross-validation"
    notes.append(Note("class-shares-left-out", f"Shares of predicted classes are left out: {reason}."))
    return []


def _answers(probabilities: np.ndarray, link: str) -> np.ndarray:
    """Return (n, K) bool, the predicted class or labels."""
    if link == "sigmoid":
        return probabilities > 0.5
    return probabilities.argmax(axis=1)[:, None] == np.arange(probabilities.shape[1])


def _compare_shares(old: np.ndarray, new: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the shares of each class, the largest difference first.

    The intervals of the differences are Newcombe's (1998) of two Wilson intervals, for all K together 95 %
    (Bonferroni).
    """
    level, shares = 1 - (1 - 0.95) / len(names), []
    for k, name in enumerate(names):
        (p, low_p, high_p), (q, low_q, high_q) = (
            (float(hits.mean()), *wilson_interval(float(hits.sum()), len(hits), level))
            for hits in (old[:, k], new[:, k])
        )
        low = q - p - float(np.hypot(q - low_q, high_p - p))
        high = q - p + float(np.hypot(high_q - q, p - low_p))
        shares.append(
            {
                "class": name,
                "old": p,
                "new": q,
                "difference": q - p,
                "interval": (low, high),
                "flag": low > 0 or high < 0,
            }
        )
    return sorted(shares, key=lambda each: -abs(each["difference"]))


def _verdict(domain: Domain | None, old: int, new: int) -> str:
    """Say what the head between old and new images shows."""
    if domain is None:
        return f"Too few images for a verdict: {old:,} old and {new:,} new (expected {FEWEST} of each)."
    (low, high), p = domain.interval, domain.p
    figures = f"AUC {domain.auc:.3f}, 95 % interval {low:.3f} … {high:.3f}, p = {p:.3f}"
    if p > ALPHA:
        return (
            f"No difference is shown: a head tells new images from old ones no better than chance does "
            f"({figures}). Chance reaches {domain.chance:.3f} in one of twenty trials."
        )
    if domain.auc >= PLAIN:
        return f"The new images are unlike the old ones: a head tells nearly each of them ({figures})."
    degree = "clearly" if domain.auc >= CLEAR else "a little"
    return (
        f"The new images differ {degree} from the old ones: a head tells them better than chance ({figures})."
    )
