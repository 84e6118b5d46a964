"""What is wrong with the data of a cache: labels, copies, leaks between splits, outliers, hopeless classes.

    held-out probabilities ──► label errors, classes that cannot be told apart
    distances of features  ──► copies, leaks between splits, outliers

Nothing is changed: the result names what a person should look at.

Shapes: n judged samples, I images, K classes, L labels of a multi-label target.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import FitError, Note, distinct, refuse_strict
from bottleneck.files import require_file_name
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import Result, config_from
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.audit.classes import confusable_classes, thin_classes
from bottleneck.studies.audit.copies import (
    Compared,
    Issue,
    compared,
    duplicates_of,
    find_copies,
    labels_note,
    leaking_copies,
    leaks_of,
    node_notes,
    splits_of_images,
    with_labels,
)
from bottleneck.studies.audit.images import NEIGHBOURS, beyond_fence, outlier_scores
from bottleneck.studies.audit.judged import Judged, fitted, from_head
from bottleneck.studies.audit.label_issues import label_issues_of
from bottleneck.studies.audit.odd_images import odd_images
from bottleneck.studies.audit.repair import relabelled_task, repaired, require_classes, write_fix
from bottleneck.studies.audit.self_test import self_test
from bottleneck.studies.study_config import AuditConfig
from bottleneck.trials.task import Task, task_of

THRESHOLDS = ("doubt", "precision", "cosine", "ratio", "fence", "confusion", "thin")


@dataclass(frozen=True)
class AuditResult(Result):
    """Result of `audit`. The fields of issues are dicts with `flag`, the number of flagged ones, and `items`.

    label_issues : items {sample, split, given, suggested, score, wrong, flag, neighbours}, the worst first;
        `score` is the held-out probability of the given label, of all its mean; `wrong` the probability that
        the label is wrong, and `share` the estimated share of wrong labels (`label_noise`). `self_test`
        counts labels that were changed at random, and those of them that would be flagged.
    duplicates : items {images, exact, cosine}: pairs of images that are the same or nearly; with `labels`
        where the two have different ones.
    leaks : pairs of them in two splits, and groups in two; with the accuracy on test with and without them.
    outliers : items {image, split, score}: the mean distance to the nearest images of train.
    confusable : items {classes, score, interval}: the share of the two classes' samples that are held for the
        other one.
    thin : items {class, score}: classes with few samples in train; `score` is their number.
    odd : items {image, split, kinds, score, scores}: dark, light, blank, blurred, tiny, oblong images, with a
        score for each kind (`odd_images`).
    failures : reason by image that gave no row.
    repair : what the labels of `--repair` brought; None without them.
    """

    cache: str
    target: str
    node: str
    samples: int
    label_issues: Issue
    duplicates: Issue
    leaks: Issue
    outliers: Issue
    confusable: Issue
    thin: Issue
    odd: Issue
    failures: dict[str, str]
    thresholds: dict[str, float]
    repair: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    notes: list[Note] = field(default_factory=list)


def audit(
    cache: str | os.PathLike[str],
    *,
    head: str | os.PathLike[str] | None = None,
    target: str | None = AuditConfig.target,
    node: str = AuditConfig.node,
    doubt: float = AuditConfig.doubt,
    precision: float = AuditConfig.precision,
    cosine: float = AuditConfig.cosine,
    ratio: float = AuditConfig.ratio,
    fence: float = AuditConfig.fence,
    confusion: float = AuditConfig.confusion,
    thin: int = AuditConfig.thin,
    odd: Mapping[str, float] | None = None,
    cv: int = AuditConfig.cv,
    seed: int = AuditConfig.seed,
    fix: str | os.PathLike[str] | None = None,
    repair: str | os.PathLike[str] | None = None,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> AuditResult:
    """Look for wrong labels, copies, leaks between splits, outliers, odd images, hopeless classes in a cache.

    Parameters
    ----------
    cache : path of a feature cache.
    head : head file with its out-of-fold file beside it, whose probabilities judge the labels. Without one, a
        logistic head is fitted with cross-validation on `node`.
    target, node, doubt, precision, cosine, ratio, fence, confusion, thin, odd, cv, seed : see `AuditConfig`.
    fix : .csv file to write: every sample with its label, the suggested one where the label is flagged. After
        a person has looked, `fit-head --labels` and `repair` take it.
    repair : labels file, as `fit-head --labels` takes it. Heads with the old and with these labels are
        compared on the test samples, both with these labels.
    strict : refuse decisions that change what is measured.

    Raises
    ------
    CacheError
        There is no such cache or node.
    FitError
        The labels cannot be judged: none, one class, a regression, too few samples for folds.
    ArtifactError
        The head has no out-of-fold file, or was fitted on other features or other samples.
    """
    started = time.perf_counter()
    config = config_from(AuditConfig, locals(), odd=odd or {})
    with FeatureCache(cache) as opened:
        if head is None and not opened.samples.targets:
            opened.require_rows()
            if fix is not None or repair is not None:
                raise FitError(f"{cache} has no labels to fix or to repair.", "Give labels when extracting.")
            result = _audited(opened, None, config, reporter)
        else:
            result = _judged(opened, head, config, fix, repair, strict, reporter)
    return replace(result, seconds=time.perf_counter() - started)


def _judged(
    cache: FeatureCache,
    head: str | os.PathLike[str] | None,
    config: AuditConfig,
    fix: str | os.PathLike[str] | None,
    repair: str | os.PathLike[str] | None,
    strict: bool,
    reporter: Reporter,
) -> AuditResult:
    """Audit a cache with labels, which a given head or a new one judges; arguments as of `audit`."""
    judge = None if head is None else load_head(head)
    task = _task(cache, judge, config, strict)
    if fix is not None:
        require_classes(task.target)
        require_file_name(Path(fix))
    labels = None if repair is None else relabelled_task(task, repair)
    refuse_strict(() if labels is None else labels.notes, strict)
    if judge is None or head is None:
        judged = fitted(task, config.node, reporter)
    else:
        judged = from_head(task, judge, Path(head))
    result = _audited(cache, judged, config, reporter)
    if labels is not None:
        notes = distinct([*result.notes, *labels.notes])
        result = replace(result, repair=repaired(labels, judged.node, reporter), notes=notes)
    if fix is not None:
        quality = judged.quality(config.doubt, config.precision)
        result = replace(result, files={"fix": write_fix(judged, quality, Path(fix))})
    return result


def _task(cache: FeatureCache, judge: HeadArtifact | None, config: AuditConfig, strict: bool) -> Task:
    """Return the labels of a cache that are judged. judge : a head that was fitted before."""
    task = task_of(cache, config.target if judge is None else judge.target, cv=config.cv, seed=config.seed)
    if task.target.kind == "regression":
        raise FitError(
            f"Target {task.target.name!r} is a number; an audit judges classes.",
            "Name another target with --target.",
        )
    refuse_strict(task.notes, strict)
    return task


def _audited(
    cache: FeatureCache, judged: Judged | None, config: AuditConfig, reporter: Reporter
) -> AuditResult:
    """Return everything that needs no other labels; of a cache without labels, `judged` is None."""
    node = config.node if judged is None or config.node in cache.nodes else judged.node
    split_of = splits_of_images(cache)
    images = compared(cache, node, split_of, reporter)
    copies = find_copies(cache, images, config)
    if judged is not None:
        copies = with_labels(copies, judged.task)
    odd, notes = odd_images(cache, split_of, config.odd)
    notes += [*node_notes(cache, node), *labels_note(copies)]
    nothing: Issue = {"flag": 0, "score": 0.0, "items": []}
    leaks = leaking_copies(copies, split_of)
    common: dict[str, Any] = {
        "cache": str(cache.path),
        "duplicates": duplicates_of(cache, copies),
        "outliers": _outliers(cache, images, split_of, config),
        "odd": odd,
        "failures": dict(cache.failures),
        "thresholds": {name: getattr(config, name) for name in THRESHOLDS} | dict(config.odd),
    }
    if judged is None:
        text = (
            f"{cache.path} has no labels: only copies, leaks of images, outliers and odd images are sought."
        )
        return AuditResult(
            target="",
            node=node,
            samples=0,
            label_issues=nothing,
            leaks={"flag": len(leaks), "score": len(leaks) / len(cache.images), "items": leaks},
            confusable=nothing,
            thin=nothing,
            notes=[*cache.samples.part_notes(), Note("no-labels", text), *notes],
            **common,
        )
    answers, quality = judged.answers.values, judged.quality(config.doubt, config.precision)
    test = self_test(
        answers, judged.probabilities, config.doubt, config.precision, config.seed, judged.unjudged
    )
    return AuditResult(
        target=judged.task.target.name,
        node=judged.node,
        samples=len(judged.rows),
        label_issues=label_issues_of(judged, quality, reporter) | {"self_test": test.to_json()},
        leaks=leaks_of(judged, leaks, split_of),
        confusable=confusable_classes(judged, config),
        thin=thin_classes(judged.task, config),
        notes=[*judged.task.notes, *judged.notes, *test.notes(judged.accuracy), *notes],
        **common,
    )


def _outliers(
    cache: FeatureCache, images: Compared, split_of: dict[str, set[str]], config: AuditConfig
) -> Issue:
    """Return the images by their distance to those of train, the farthest first."""
    keys = cache.images.key
    if sum("train" in split_of.get(key, ()) for key in keys) <= NEIGHBOURS:
        return {"flag": 0, "score": 0.0, "items": []}
    scores = outlier_scores(images.near_train)[images.content]
    flag = beyond_fence(scores, config.fence)
    items = [
        {
            "image": keys[i],
            "split": "+".join(sorted(split_of.get(keys[i], ()))),
            "score": float(scores[i]),
            "flag": bool(flag[i]),
        }
        for i in np.argsort(-scores, kind="stable")
    ]
    return {"flag": int(flag.sum()), "score": float(scores.mean()), "items": items}
