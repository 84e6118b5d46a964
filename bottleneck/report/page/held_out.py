"""Predictions of a head for samples that it has not learnt from: of a split, else of folds.

    test, val ──► scored as `evaluate` does, where the head was not fitted on their images
    train     ──► the out-of-fold logits beside the head; without them, folds fitted again at the head's C
    otherwise ──► the samples that it learnt from, which is said

Shapes: S samples of the cache, n judged samples, K classes or labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.errors import ArtifactError, BottleneckError, Note
from bottleneck.extraction.config import EngineConfig
from bottleneck.heads.artifact import HeadArtifact, apply_link
from bottleneck.heads.metrics import measure
from bottleneck.heads.trained_on import TrainedOn
from bottleneck.models.classifier import open_model
from bottleneck.models.scoring import has_mirrors, require_fitted_on, score, select, with_target_of
from bottleneck.names import SPLITS
from bottleneck.progress import Reporter
from bottleneck.samples import SampleTable, Target
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.audit.judged import from_head
from bottleneck.studies.study_config import TrainConfig
from bottleneck.trials.heads import KIND, fit_on
from bottleneck.trials.mirrors import mirrored_folds
from bottleneck.trials.task import Task, task_of

FOLDS = "folds"  # in place of a split: each sample judged by a head that was fitted without it
LEARNT_SHARE = 0.5  # of a split's images in the head's training: then it was fitted on that split
MOST_WORK = 1 << 25  # samples × features that are fitted again


@dataclass(frozen=True)
class Judged:
    """Predictions for n samples. split : of them, or `FOLDS`. learnt : the head was fitted on them.

    rows : (n,) samples. answers, scores : as `heads.metrics.measure` takes them.
    """

    head: HeadArtifact
    split: str
    rows: np.ndarray
    answers: np.ndarray
    scores: np.ndarray
    learnt: bool = False

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The metrics, as `evaluate` reports them."""
        return measure(self.head.target_kind, self.answers, self.scores, self.head.class_names)

    @cached_property
    def predicted(self) -> np.ndarray:
        """(n,) codes of classes, (n, K) bits of labels, or (n,) values."""
        if self.head.target_kind == "class":
            return self.scores.argmax(axis=1)
        return (self.scores > 0.5).astype(np.uint8) if self.head.target_kind == "multilabel" else self.scores

    @cached_property
    def error(self) -> np.ndarray:
        """(n,) how wrong each sample is: 0 or 1, the share of wrong labels, or the distance of the value."""
        if self.head.target_kind == "multilabel":
            return np.asarray((self.predicted != self.answers).mean(axis=1))
        if self.head.target_kind == "regression":
            return np.abs(self.scores - self.answers)
        return (self.predicted != self.answers).astype(float)

    @property
    def of(self) -> str:
        """What was measured, in words."""
        if self.split == FOLDS:
            return "held-out folds of the training images"
        return f"the {self.split} split" + (", which it has learnt from" if self.learnt else "")


def judged(
    path: Path, head: HeadArtifact, cache: FeatureCache, options: LoadOptions, reporter: Reporter
) -> tuple[Judged | None, list[Note]]:
    """Return predictions of the head for samples of the cache, or a note on why there are none."""
    try:
        if head.node_fingerprint:
            require_fitted_on(head, cache)
        samples, notes = with_target_of(head, cache.samples, (), False)
        splits = [split for split in reversed(SPLITS) if _has_labels(head, samples, split)]
        if not splits:
            text = f"{cache.path} has no label of target {head.target!r}, so nothing is measured on it."
            return None, [*notes, Note("model-not-measured", text)]
        fresh = [split for split in splits if split != "train" and not _learnt(head, cache, samples, split)]
        if fresh:
            return _of_split(path, head, cache, samples, fresh[0], options, reporter), notes
        if found := _of_folds(path, head, cache, reporter):
            return found, notes
        worst = _of_split(path, head, cache, samples, splits[0], options, reporter)
        return replace(worst, learnt=True), notes
    except BottleneckError as error:
        text = f"{path.name} is shown by the figures in its file, without images: {error.message}"
        return None, [Note("model-not-measured", text, details={"path": str(path)})]


def _has_labels(head: HeadArtifact, samples: SampleTable, split: str) -> bool:
    target = samples.targets.get(head.target)
    return target is not None and bool((target.labelled & (samples.split == split)).any())


def _learnt(head: HeadArtifact, cache: FeatureCache, samples: SampleTable, split: str) -> bool:
    """Return whether the head was fitted on the split: most of its images are in the head's list."""
    if split in head.settings.get("fitted_on", ()):
        return True
    if not head.trained_on:
        return False
    images = np.unique(samples.image[samples.split == split])
    shared, of, _ = TrainedOn.from_json(head.trained_on).shared_with(cache.images.digest[images])
    return shared > LEARNT_SHARE * of


def _of_split(
    path: Path,
    head: HeadArtifact,
    cache: FeatureCache,
    samples: SampleTable,
    split: str,
    options: LoadOptions,
    reporter: Reporter,
) -> Judged:
    selection = select(head, samples, split)
    classifier = open_model(path, options, EngineConfig())
    found = score(classifier, cache, selection.rows, classifier.flips, reporter)
    return Judged(head, split, selection.rows[found.rows], selection.answers[found.rows], found.scores)


def _of_folds(path: Path, head: HeadArtifact, cache: FeatureCache, reporter: Reporter) -> Judged | None:
    """Return the samples of train that a fold held out; None where that is unknown and costs too much."""
    try:
        task = task_of(cache, head.target, cv=TrainConfig.cv, seed=TrainConfig.seed)
        if head.class_names != task.target.class_names:
            return None
        if head.settings.get("flip"):
            return _of_mirrored_folds(task, head, reporter)
        try:
            stored = from_head(task, head, path)
            train = np.isin(stored.rows, task.rows["train"])
            return _folds(head, task.target, stored.rows[train], stored.probabilities[train])
        except ArtifactError:
            pass
        linear = head.kind == KIND and head.form == "linear" and head.C is not None
        if not linear or len(task.judged) * head.n_features > MOST_WORK:
            return None
        both = "val" in head.settings.get("fitted_on", ())
        rows, problem = task.refit_problem() if both else (task.rows["train"], task.problem())
        scales = head.settings.get("scales") or {}
        fit = fit_on(task, head.node, rows, problem, head.C or "auto", scales, reporter)
    except BottleneckError:
        return None
    held, logits = fit.held_out()
    if not len(held):
        return None
    return _folds(head, task.target, rows[held], apply_link(logits, head.link, head.temperature))


def _of_mirrored_folds(task: Task, head: HeadArtifact, reporter: Reporter) -> Judged | None:
    """Return the samples of train, each judged on the mean of image and mirror image by a head without it."""
    if (
        head.C is None
        or len(task.judged) * head.n_features > MOST_WORK
        or not has_mirrors(task.cache, head.node)
    ):
        return None
    settings = {"C": head.C, "scales": head.settings.get("scales") or {}, "temperature": head.temperature}
    parts = list(mirrored_folds(task, head.node, settings, reporter))
    if not parts:  # all samples of train are of one group
        return None
    rows, outputs = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _folds(head, task.target, rows, apply_link(outputs, head.link, 1.0))


def _folds(head: HeadArtifact, target: Target, rows: np.ndarray, probabilities: np.ndarray) -> Judged:
    return Judged(head, FOLDS, rows, target.values[rows], probabilities)
