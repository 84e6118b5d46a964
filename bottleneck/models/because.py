"""The training images that pull the predictions for other images most, by the rows of the cache.

Shapes: n training samples, Q explained samples, K outputs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.config import LabelConfig, ReadConfig
from bottleneck.data.read_source import read_sources
from bottleneck.data.source import Source
from bottleneck.errors import ArtifactError, BottleneckError, Note, unread_notes
from bottleneck.extraction.config import EngineConfig
from bottleneck.fitting.head_files import blockwise
from bottleneck.fitting.labels import relabelled
from bottleneck.fitting.training_set import with_training_classes
from bottleneck.heads.artifact import HeadArtifact, apply_link
from bottleneck.heads.influence import Influence, require_linear, require_memory
from bottleneck.heads.metrics import measure
from bottleneck.heads.trained_on import TrainedOn
from bottleneck.models.classifier import Classifier, open_model
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import ArrayRows, SampleTable, Target
from bottleneck.store.reader import FeatureCache

MOST = 10  # training samples that are named of each prediction
OTHER_LABELS = "Give the file of `fit-head --labels` as --labels, or fit a head to the cache's labels."


@dataclass(frozen=True)
class Because:
    """Result of `because`.

    pulls : one dict for each explained sample and class: image, sample, class, against (the strongest other
        class, None of a label or a number), margin (the logit of the class less that of `against`) and
        training: [{sample, image, given, pull}], the strongest first. Without the sample, the margin would be
        lower by `pull`. failed : reason by image.
    """

    cache: str
    exact: bool
    pulls: list[dict[str, Any]]
    failed: dict[str, str]
    seconds: float
    notes: list[Note] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return vars(self)


def because(
    model: str | Path | Classifier,
    *sources: str | Path | Source,
    cache: str | os.PathLike[str],
    class_names: Sequence[str] = (),
    labels: str | os.PathLike[str] | None = None,
    reading: ReadConfig | None = None,
    options: LoadOptions | None = None,
    reporter: Reporter = SILENT,
) -> Because:
    """Name the training images that pull the predictions for images most (`heads.influence`).

    Parameters
    ----------
    model : path of a head, or an open Classifier; logistic or ridge, on cached features.
    sources : as for `explain`. cache : the one that the head was fitted on.
    class_names : classes or labels beside the predicted one.
    labels : labels file that the head was fitted to, as `fit-head --labels` took it.

    Raises
    ------
    ArtifactError
        The head is of another kind, has no such class, or was fitted on other samples than the cache holds.
    BottleneckError
        None of the images could be read.
    """
    started = time.perf_counter()
    classifier = open_model(model, options or LoadOptions(), EngineConfig())
    head = classifier.head
    require_linear(head)
    codes = [head.code_of(name) for name in class_names]
    if not head.node_fingerprint or classifier.flips:
        raise ArtifactError(
            "The model reads a network of its own, or averages mirror images: what its training samples pull "
            "cannot be computed from cached rows.",
            "Give a head that `bottleneck fit-head` wrote.",
        )
    with FeatureCache(cache) as opened:
        samples, notes = relabelled(
            opened.samples, opened.images.key, labels, (head.target,), config=_as_of(head, reading)
        )
        training = _Training.of(head, opened, samples, reporter)
    pulls: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for source in read_sources(sources, classifier.reading(reading or ReadConfig(), inputs_only=True)):
        notes += source.notes
        rows, inputs, bad = classifier.inputs(source, reporter)
        failed |= {source.shown(key): reason for key, reason in bad.items()}
        for row, features in zip(rows, inputs, strict=True):
            image = source.shown(source.images[source.samples.image[row, 0]])
            named = {"image": image, "sample": source.samples.key[row]}
            pulls += [named | pull for pull in training.pulls_on(features, codes)]
    if not pulls:
        first = "".join(f"; the first: {key} {why}" for key, why in [*failed.items()][:1])
        raise BottleneckError(f"None of the images could be explained{first}.")
    seconds = time.perf_counter() - started
    notes = [
        *classifier.trunk.notes,
        *notes,
        *unread_notes("Images that are not explained", failed),
    ]
    return Because(str(cache), head.kind == "ridge", pulls, failed, seconds, notes)


@dataclass(frozen=True)
class _Training:
    """The n samples that a head was fitted on.

    samples, images : (n,) their keys, and those of their first images. target, influence : of these samples.
    """

    head: HeadArtifact
    samples: np.ndarray
    images: np.ndarray
    target: Target
    influence: Influence

    @classmethod
    def of(cls, head: HeadArtifact, cache: FeatureCache, table: SampleTable, reporter: Reporter) -> _Training:
        """Read the samples of a cache; arguments and errors as of `training_rows`."""
        rows, target, samples = training_rows(head, cache, table)
        require_memory(head, len(rows))
        features = cache.sample_rows(head.node, rows).read(0, len(rows))
        _require_its_labels(head, features, target, cache.path)
        with reporter.step("Weighing training samples", unit="samples") as advance:
            influence = Influence(head, features, target)
            advance(len(rows))
        return cls(head, samples.key[rows], cache.images.key[samples.image[rows, 0]], target, influence)

    def pulls_on(self, features: np.ndarray, codes: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield records as in `Because.pulls` for features (D,): of the predicted class, then of `codes`."""
        logits = self.head.decision(features[None])[0]
        for of, label, against in _combinations(self.head, logits, codes):
            pull = self.influence.pulls(features[None], of[None])[0]
            training = [
                {
                    "sample": self.samples[i],
                    "image": self.images[i],
                    "given": self.target.answer(i),
                    "pull": float(pull[i]),
                }
                for i in np.argsort(-np.abs(pull), kind="stable")[:MOST]
            ]
            yield {"class": label, "against": against, "margin": float(logits @ of), "training": training}


def training_rows(
    head: HeadArtifact, cache: FeatureCache, samples: SampleTable
) -> tuple[np.ndarray, Target, SampleTable]:
    """Return the samples (n,) that a head was fitted on, its target on them, and all samples.

    samples : of the cache, with the labels that the head was fitted to

    Raises ArtifactError where there are other features, classes, labels or images than the head was fitted
    on, and CacheError where the cache is of an interrupted extraction.
    """
    samples.require_finished(str(cache.path))
    again = "Give the cache that it was fitted on, or fit it again with `bottleneck fit-head`."
    if cache.vector_fingerprint(head.node) != head.node_fingerprint:
        raise ArtifactError(f"The head was fitted on other features than {cache.path} holds.", again)
    if not head.trained_on:
        raise ArtifactError("The head does not say which images it was fitted on.", again)
    samples, _ = with_training_classes(samples, (head.target,))
    target = samples.targets.get(head.target)
    if target is None or target.kind != head.target_kind or target.class_names != head.class_names:
        raise ArtifactError(
            f"There is no target {head.target!r} with the head's classes: it was fitted to other labels.",
            OTHER_LABELS,
        )
    trained = TrainedOn.from_json(head.trained_on)
    seen = trained.has(cache.images.digest)[0][samples.image].all(axis=1) & target.labelled
    if trained.images > len(trained.starts):  # a part is kept: it names the split, not each image
        seen = target.labelled
    for splits in (("train",), ("train", "val"), ("train", "val", "test")):
        rows = np.flatnonzero(seen & np.isin(samples.split, splits))
        found = TrainedOn.of(cache.images.digest[np.unique(samples.image[rows])]) if len(rows) else None
        if found and found.images == trained.images and np.array_equal(found.starts, trained.starts):
            return rows, target.take(rows), samples
    raise ArtifactError(f"The head was fitted on other images than {cache.path} holds.", again)


def _as_of(head: HeadArtifact, reading: ReadConfig | None) -> LabelConfig:
    """Return how a labels file is read, so that its target is of the head's kind."""
    name = (head.target,)
    return LabelConfig(
        classes=name if head.target_kind == "class" else (),
        regression=name if head.target_kind == "regression" else (),
        label_separator=(reading or ReadConfig()).label_separator,
    )


def _require_its_labels(head: HeadArtifact, features: np.ndarray, target: Target, cache: Path) -> None:
    """Raise ArtifactError where the head's score on train is not the one that its file contains.

    features : (n, D) of the samples that it was fitted on; target : on them
    """
    stored, n = head.metrics.get("train", {}), len(features)
    name = "r2" if target.kind == "regression" else "accuracy"
    if stored.get("n") != n or stored.get(name) is None:
        return
    predicted = apply_link(blockwise(ArrayRows(features), head.decision), head.link, head.temperature)
    score = measure(target.kind, target.values, predicted, target.class_names)[name]
    if abs(score - stored[name]) > max(1e-3, 1.5 / n):
        raise ArtifactError(
            f"On its training samples the head has {name} {stored[name]:.4f} by its file, and {score:.4f} "
            f"by the labels of {cache}: it was fitted to other labels.",
            OTHER_LABELS,
        )


def _combinations(
    head: HeadArtifact, logits: np.ndarray, codes: Sequence[int]
) -> Iterator[tuple[np.ndarray, str, str | None]]:
    """Yield (combination (K,) of the logits, class, other class) of the predicted class, then of `codes`."""
    if head.target_kind == "regression":
        yield np.ones(1), head.target, None
        return
    unit, names, order = np.eye(head.outputs), head.class_names, np.argsort(-logits, kind="stable").tolist()
    for code in dict.fromkeys([order[0], *codes]):
        if head.target_kind == "class":
            other = next(k for k in order if k != code)
            yield unit[code] - unit[other], names[code], names[other]
        else:
            yield unit[code], names[code], None
