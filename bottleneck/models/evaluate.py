"""Measure a head or model on one split of a cache or of images: metrics, intervals, figures by class.

    samples of a split ──► scores: by the head on cached features, by the fine-tuned layers on a cached map,
    or by the whole network on images ──► metrics

Shapes: S samples of the source, n measured samples, M images per sample, P covariates, K classes, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.backbones.section import Section, find_cut
from bottleneck.data.config import ReadConfig
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source, read_source
from bottleneck.data.table_file import csv_lines
from bottleneck.errors import ArtifactError, BottleneckError, FingerprintError, Note
from bottleneck.extraction.cached_source import require_images, source_of
from bottleneck.extraction.config import EngineConfig
from bottleneck.files import require_file_name, write_whole
from bottleneck.fitting.labels import relabelled
from bottleneck.heads.artifact import HeadArtifact, apply_link
from bottleneck.heads.metrics import measure
from bottleneck.models.classifier import Classifier, open_model
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from
from bottleneck.samples import UNLABELLED, SampleTable, Target
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import differences

CACHE_SUFFIXES = (".h5", ".hdf5", ".parts")
DEFAULT_SPLITS = ("test", "val", "train")  # the first with labelled samples is measured
BLOCK = 4096  # samples whose features are in memory at once
PASS = 64  # samples that pass the fine-tuned layers at once


def evaluate(
    model: str | Path | Classifier,
    source: str | Path | Source,
    *,
    split: str | None = None,
    labels: str | Path | None = None,
    errors: str | Path | None = None,
    raw: bool = False,
    image_columns: Sequence[str] = ReadConfig.image_columns,
    label_columns: Sequence[str] = ReadConfig.label_columns,
    split_column: str | None = ReadConfig.split_column,
    group_column: str | None = ReadConfig.group_column,
    sample_column: str | None = ReadConfig.sample_column,
    covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
    classes: Sequence[str] = ReadConfig.classes,
    regression: Sequence[str] = ReadConfig.regression,
    label_separator: str | None = ReadConfig.label_separator,
    val_fraction: float = ReadConfig.val_fraction,
    test_fraction: float = ReadConfig.test_fraction,
    seed: int = ReadConfig.seed,
    limit: int | None = ReadConfig.limit,
    weights: str | None = None,
    trust_code: bool = False,
    engine: str = EngineConfig.engine,
    precision: str = EngineConfig.precision,
    device: str = EngineConfig.device,
    batch_size: int | None = EngineConfig.batch_size,
    workers: int | None = EngineConfig.workers,
    force: bool = EngineConfig.force,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Measure a head or model on a feature cache or on images with labels.

    Parameters
    ----------
    model : path of a head or model file, or an open Classifier
    source : a cache (.h5), or anything that `extract` takes
    split : {"train", "val", "test"}, optional
        By default test, else val, else train; the last is noted in the result.
    labels : path of a table with labels that replace those of the source (`fitting.labels`), optional
    errors : path of a CSV file to write the misclassified samples to, optional
    raw : write texts to `errors` as they are, also those that a spreadsheet would execute (`data.table_file`)
    image_columns … limit : how images are read, see `ReadConfig`; a cache needs none of them
    weights, trust_code : needed to load some backbones, see `load_model`
    engine … force : how the network is run, see `EngineConfig`; an open Classifier keeps its own

    Returns
    -------
    dict
        The metrics of `bottleneck.heads.metrics.measure`, `split`, `failed` [{image, error}], `notes`, and
        `unknown_classes` {name: samples}: classes that the head does not know; no metric includes them.

    Raises
    ------
    FingerprintError
        The cache's features are not those that the head was fitted on.
    ArtifactError
        The source lacks the head's target, or has none of its classes.
    BottleneckError
        The split has no labelled sample, or `errors` is given for a target without classes.
    """
    reading = config_from(ReadConfig, locals())
    running = config_from(EngineConfig, locals())
    classifier = open_model(model, LoadOptions(weights, trust_code), running)
    head = classifier.head
    if errors is not None and head.target_kind != "class":
        raise BottleneckError(
            f"--errors lists misclassified samples; the target is a {head.target_kind} one."
        )
    reading = replace(reading, head_target=(head.target, head.target_kind))
    if errors is not None:
        require_file_name(Path(errors))
    with _opened(source, reading) as opened:
        keys = _image_keys(opened)
        samples, notes = relabelled(opened.samples, keys, labels, (head.target,), config=reading.labels)
        if isinstance(opened, Source):
            notes = [*opened.notes, *notes]
        selection = _select(head, samples, split)
        # A folder without splits is all "train", which says nothing of what the head was fitted on.
        without_splits = isinstance(opened, Source) and bool((samples.split == "train").all())
        if isinstance(opened, FeatureCache):
            scored = _score_cache(classifier, opened, selection.rows, reporter)
        else:
            scored = _score_images(classifier, opened, selection.rows, reporter)
    answers = selection.answers[scored.index]
    if not len(answers):
        raise BottleneckError(f"No image of the {selection.split} split could be read.")
    if errors is not None:
        write_whole(Path(errors), _errors_csv(scored, answers, head.class_names, raw))
    return {
        **measure(head.target_kind, answers, scored.scores, head.class_names),
        "split": selection.split,
        "unknown_classes": selection.unknown,
        "failed": [{"image": key, "error": reason} for key, reason in scored.failed.items()],
        "notes": [*head.notes, *notes, *_notes(head, selection, without_splits)],
    }


@contextmanager
def _opened(source: str | Path | Source, reading: ReadConfig) -> Iterator[FeatureCache | Source]:
    """Open the cache or read the source; a cache is closed on leaving."""
    if not isinstance(source, Source) and str(source).lower().endswith(CACHE_SUFFIXES):
        with FeatureCache(source) as cache:
            yield cache
    else:
        yield read_source(source, reading)


def _image_keys(opened: FeatureCache | Source) -> np.ndarray:
    """(I,) keys of all images."""
    return opened.images.key if isinstance(opened, FeatureCache) else np.array(opened.images, object)


# ---------------------------------------------------------------- which samples, and their true answers


@dataclass(frozen=True)
class _Selection:
    """Samples of a split that the head can be measured on.

    rows : (n,) indices of the source's samples.
    answers : (n,) codes, (n, L) labels or (n,) numbers, in the head's order of classes.
    unknown : number of samples of each class that the head does not know.
    """

    split: str
    rows: np.ndarray
    answers: np.ndarray
    unknown: dict[str, int]


def _select(head: HeadArtifact, samples: SampleTable, split: str | None) -> _Selection:
    """Return the labelled samples of the named split, or of the first default split that has any.

    Raises ArtifactError if the head knows no class of that split, BottleneckError if no sample is labelled.
    """
    target = _target_of(head, samples)
    for name in [split] if split else DEFAULT_SPLITS:
        rows = np.flatnonzero(target.labelled & (samples.split == name))
        if len(rows):
            answers, known, unknown = _in_codes_of(head, target.take(rows))
            if not known.any():
                raise ArtifactError(
                    f"The head knows none of the classes of the {name} split: {_listed(unknown)}.",
                    f"It knows {len(head.class_names)}: {', '.join(head.class_names[:8])} …",
                )
            return _Selection(name, rows[known], answers[known], unknown)
    counts = {name: int((samples.split == name).sum()) for name in np.unique(samples.split.astype(str))}
    raise BottleneckError(
        f"No labelled sample is in the {split or 'test, val or train'} split; samples by split: {counts}.",
        "Choose another --split, or extract with --val-fraction 0.2.",
    )


def _target_of(head: HeadArtifact, samples: SampleTable) -> Target:
    """Return the target that the head predicts; ArtifactError if it is missing or of another kind."""
    target = samples.targets.get(head.target)
    if target is None:
        known = ", ".join(samples.targets) or "none"
        raise ArtifactError(
            f"The head predicts target {head.target!r}; the source has: {known}.",
            "Give the labels with --labels FILE, or name their column with --label-column.",
        )
    if head.target_kind == "regression" and target.kind == "class":
        target = target.as_numbers()
    if target.kind != head.target_kind:
        raise ArtifactError(
            f"The head predicts a {head.target_kind} target; {target.name!r} is a {target.kind} one here.",
            "Give --label-separator if a cell holds several labels."
            if head.target_kind == "multilabel"
            else "",
        )
    return target


def _in_codes_of(head: HeadArtifact, target: Target) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Translate the answers of labelled samples to the head's class codes.

    Returns
    -------
    answers : (n,) codes, (n, L) labels or (n,) numbers
    known : (n,) bool, True where the head knows the sample's class, or any class of the target
    unknown : number of samples of each class that the head does not know
    """
    n = len(target.values)
    if target.kind == "regression":
        return target.values, np.ones(n, bool), {}
    code_of = {name: code for code, name in enumerate(head.class_names)}
    codes = np.array([code_of.get(name, UNLABELLED) for name in target.class_names], np.int64)
    if target.kind == "class":
        answers = codes[target.values]
        known, counts = answers != UNLABELLED, np.bincount(target.values, minlength=len(codes))
    else:
        shared = codes != UNLABELLED
        answers = np.zeros((n, len(head.class_names)), np.uint8)
        answers[:, codes[shared]] = target.values[:, shared]
        known, counts = np.full(n, shared.any()), (target.values == 1).sum(axis=0)
    classes = zip(target.class_names, codes, counts.tolist(), strict=True)
    return answers, known, {name: count for name, code, count in classes if code == UNLABELLED and count}


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class _Scored:
    """Scores of the selected samples that could be computed.

    index : (n,) which of the selected samples they are.
    images : n keys of their first images.
    scores : probabilities (n, K) or (n, L), or values (n,) of a regression.
    failed : reason by image key.
    """

    index: np.ndarray
    images: Sequence[str]
    scores: np.ndarray
    failed: dict[str, str]


def _score_cache(
    classifier: Classifier, cache: FeatureCache, rows: np.ndarray, reporter: Reporter
) -> _Scored:
    """Score the samples `rows` of a cache from its features, from a map, or else from the images."""
    head = classifier.head
    recipe = {"backbone": head.backbone, "preprocess": head.preprocess}
    fields = differences(cache.spec.to_json(), recipe)
    if head.node_fingerprint:
        _require_fitted_on(head, cache, fields)
        blocks = _cached_inputs(cache, head.node, rows)
    else:  # The network was trained: no cache has its features, but one may have the map that training took.
        node = head.settings.get("finetuned", {}).get("input")
        if fields or node not in cache.nodes:
            source = source_of(cache)
            require_images(source, rows, "A trained network is measured on images", cache.path)
            return _score_images(classifier, source, rows, reporter)
        blocks = _inputs_from_map(classifier, cache, node, rows)
    scores = []
    with reporter.step("Evaluating", total=len(rows), unit="samples") as advance:
        for block in blocks:
            scores.append(head.probabilities(block))
            advance(len(block))
    images = cache.images.key[cache.samples.image[rows, 0]]
    return _Scored(np.arange(len(rows)), images, np.concatenate(scores), {})


def _require_fitted_on(head: HeadArtifact, cache: FeatureCache, fields: list[str]) -> None:
    """Raise FingerprintError if the head was fitted on other features than the cache has."""
    if cache.vector_fingerprint(head.node) != head.node_fingerprint:
        fields = fields or ["dtype or precision"]
        raise FingerprintError(
            f"The head was fitted on other features than {cache.path} holds; {', '.join(fields)} differ.",
            f"Fit a head on this cache: bottleneck fit-head {quote(str(cache.path))}",
            fields=tuple(fields),
        )


def _cached_inputs(cache: FeatureCache, node: str, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the head's inputs of the samples `rows` from cached features, (B, M·D + P)."""
    reader = cache.sample_rows(node, rows)
    for start in range(0, len(rows), BLOCK):
        yield reader.read(start, min(start + BLOCK, len(rows)))


def _inputs_from_map(
    classifier: Classifier, cache: FeatureCache, node: str, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """Run the layers above a cached map; yield the head's inputs of the samples `rows`, (B, M·D + P) float32.

    node : NODE@none of the map, below the head's node. The layers below it are those that made the cache.
    """
    backbone, head = classifier.trunk.backbone, classifier.head
    start = backbone.operation(node.removesuffix("@none"))
    cut = replace(find_cut(backbone, head.node, 1), node=node, start=start)
    section = Section(backbone, cut, head.node, Preprocess.from_json(head.preprocess))
    maps, samples = cache.features(node), cache.samples.take(rows)
    for first in range(0, len(rows), PASS):
        block = slice(first, first + PASS)
        image = samples.image[block]
        with torch.inference_mode():
            features = section(torch.from_numpy(maps.take(image.ravel()))).numpy()
        inputs = [features.reshape(len(image), -1), samples.covariates[block]]
        yield np.concatenate(inputs, axis=1, dtype=np.float32)


def _score_images(classifier: Classifier, source: Source, rows: np.ndarray, reporter: Reporter) -> _Scored:
    """Score the samples `rows` by running the whole network on their images."""
    chosen = source.take(rows)
    outputs = classifier.outputs(chosen, reporter)
    images = [chosen.images[image] for image in chosen.samples.image[outputs.rows, 0]]
    scores = np.zeros(0)
    if len(outputs.rows):
        scores = apply_link(outputs.decisions, classifier.head.link, classifier.head.temperature)
    return _Scored(outputs.rows, images, scores, outputs.failed)


# ---------------------------------------------------------------- what is said beside the metrics


def _notes(head: HeadArtifact, selection: _Selection, without_splits: bool) -> list[Note]:
    """Say which classes were left out and what the split was used for before."""
    notes: list[Note] = []
    if selection.unknown:
        several = head.target_kind == "multilabel"
        what, out = ("Labels", "left out") if several else ("Classes", "left out with their samples")
        text = f"{what} that the head does not know were {out}: {_listed(selection.unknown)}."
        notes.append(Note("unknown-classes", text, True, {"classes": selection.unknown}))
    if selection.split == "train":
        if not without_splits:
            text = "The head was fitted on the train split: these figures say nothing of new images."
            notes.append(Note("measured-on-train", text))
    elif selection.split in head.settings.get("chosen_on", ()):
        text = (
            f"The {selection.split} split was used to choose this model: expect a little less on new images."
        )
        notes.append(Note("split-chose-the-model", text))
    return notes


def _listed(counts: dict[str, int]) -> str:
    """Name the most frequent classes with their counts."""
    names = sorted(counts, key=lambda name: counts[name], reverse=True)
    return ", ".join(f"{name!r} ({counts[name]})" for name in names[:5]) + (" …" if len(names) > 5 else "")


def _errors_csv(scored: _Scored, answers: np.ndarray, class_names: Sequence[str], raw: bool) -> bytes:
    """Return the misclassified samples as CSV, the most confident mistakes first."""
    predicted, confidence = scored.scores.argmax(axis=1), scored.scores.max(axis=1)
    wrong = np.flatnonzero(predicted != answers)
    lines = [("image", "true", "predicted", "confidence")]
    for row in wrong[np.argsort(-confidence[wrong], kind="stable")]:
        names = (class_names[answers[row]], class_names[predicted[row]])
        lines.append((scored.images[row], *names, f"{confidence[row]:.4f}"))
    return "".join(csv_lines(lines, raw)).encode()
