"""How good a head or model is, on a cache or on images: with intervals, by class, and honest about the split.

Shapes: S samples, C classes.

What a trained network says of a cached map: its upper part runs on what its frozen part said once.

Shapes: n samples, M images per sample, P covariates, D features.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.section import Section, find_cut
from bottleneck.data.config import ReadConfig
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source, read_source, reading_options
from bottleneck.errors import ArtifactError, BottleneckError, FingerprintError
from bottleneck.extraction.cached_source import require_images, source_of
from bottleneck.fitting.labels import relabelled
from bottleneck.heads.artifact import HeadArtifact, apply_link
from bottleneck.heads.metrics import measure
from bottleneck.models.classifier import Classifier, load_model
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import UNLABELLED, SampleTable, Target
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import differences

PASS = 64  # samples that pass the network at once


def head_inputs_from_map(
    backbone: Backbone, head: HeadArtifact, cache: FeatureCache, node: str, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """What the head takes of the samples `rows` (n,), in blocks of float32 (B, M·D + P).

    Parameters
    ----------
    backbone : of the model, whose part below `node` is the one that made the cache
    node : NODE@none of a map in the cache, below the head's node
    """
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


CACHE_SUFFIXES = (".h5", ".hdf5", ".parts")
BLOCK = 4096  # samples whose features are in memory at once


@dataclass(frozen=True)
class _Asked:
    """Samples `rows` (n,) of a split, their answers `values` in the head's codes, and how many samples have
    each class that it does not know."""

    split: str
    rows: np.ndarray
    values: np.ndarray
    unknown: dict[str, int]


@dataclass(frozen=True)
class _Scored:
    """Samples with an answer: their first images, and probabilities (S, C) or values (S,)."""

    images: Sequence[str]
    scores: np.ndarray
    failed: dict[str, str]


def evaluate(
    model: str | Path | Classifier,
    source: str | Path | Source,
    *,
    split: str | None = None,
    labels: str | Path | None = None,
    errors: str | Path | None = None,
    reporter: Reporter = SILENT,
    **options: Any,
) -> dict[str, Any]:
    """Measure a head or model on a feature cache or on images with labels.

    Parameters
    ----------
    model : path of a head or model file, or an open Classifier
    source : a cache (.h5), or anything that `extract` takes
    split : {"train", "val", "test"}, optional
        Without it: test, else val, else train, which a note then says.
    labels : path of a table with the answers, in place of the source's (`labelling.join_labels`), optional
    errors : path of a CSV file for the misclassified samples, optional
    options : arguments of `read_source`, fields of `EngineConfig`, `trust_code`

    Returns
    -------
    dict
        The metrics of `bottleneck.heads.metrics.measure`, `split`, `failed` [{image, error}], `notes`, and
        `unknown_classes` {name: samples}: those that the head does not know, which no figure counts.

    Raises
    ------
    FingerprintError
        The cache's features are not those that the head was fitted on.
    ArtifactError
        The source lacks the head's target, or has none of its classes.
    BottleneckError
        No labelled sample is in the split.
    """
    reading = reading_options(options)
    classifier = model if isinstance(model, Classifier) else load_model(model, **options)
    head = classifier.head
    with _opened(source, reading) as opened:
        cached = isinstance(opened, FeatureCache)
        keys = opened.images.key if cached else np.array(opened.images, object)
        samples, notes = relabelled(opened.samples, keys, labels, (head.target,))
        asked = _choose(head, samples, split)
        scored, kept = (_from_cache if cached else _from_images)(classifier, opened, asked.rows, reporter)
    values = asked.values[kept]
    if not len(values):
        raise BottleneckError(f"No image of the {asked.split} split could be read.")
    result = measure(head.target_kind, values, scored.scores, head.class_names)
    if errors is not None:
        _write_errors(errors, scored, values, head)
    return {
        **result,
        "split": asked.split,
        "unknown_classes": asked.unknown,
        "failed": [{"image": key, "error": reason} for key, reason in scored.failed.items()],
        "notes": [*notes, *_notes(head, asked)],
    }


@contextmanager
def _opened(source: str | Path | Source, reading: ReadConfig) -> Iterator[FeatureCache | Source]:
    """What is measured on; a cache is open until leaving."""
    if isinstance(source, Source):
        yield source
    elif str(source).endswith(CACHE_SUFFIXES):
        with FeatureCache(source) as cache:
            yield cache
    else:
        yield read_source(source, reading)


def _choose(head: HeadArtifact, samples: SampleTable, split: str | None) -> _Asked:
    """The first split with labelled samples, or the one that is named, and what the head can be asked of it.

    Raises ArtifactError where the head knows no class of it, BottleneckError where there is none.
    """
    target = samples.targets.get(head.target)
    if target is None:
        known = ", ".join(samples.targets) or "none"
        raise ArtifactError(
            f"The head answers target {head.target!r}; the source has: {known}.",
            "Give the labels with --labels FILE, or name their column with --label-column.",
        )
    target = _of_the_kind(head, target)
    for name in [split] if split else ["test", "val", "train"]:
        rows = np.flatnonzero(target.labelled & (samples.split == name))
        if len(rows):
            values, known, unknown = _in_codes_of(head, target.take(rows))
            if not known.any():
                raise ArtifactError(
                    f"The head knows none of the classes of the {name} split: {_listed(unknown)}.",
                    f"It knows {len(head.class_names)}: {', '.join(head.class_names[:8])} …",
                )
            return _Asked(name, rows[known], values[known], unknown)
    found = {name: int((samples.split == name).sum()) for name in np.unique(samples.split.astype(str))}
    raise BottleneckError(
        f"No labelled sample is in the {split or 'test, val or train'} split; samples by split: {found}.",
        "Choose another --split, or extract with --val-fraction 0.2.",
    )


def _of_the_kind(head: HeadArtifact, target: Target) -> Target:
    """The target, as numbers where the head answers with numbers; ArtifactError where it is another kind."""
    if head.target_kind == "regression" and target.kind == "class":
        target = target.as_numbers()
    if target.kind != head.target_kind:
        raise ArtifactError(
            f"The head answers a {head.target_kind} target; {target.name!r} is a {target.kind} one here."
        )
    return target


def _in_codes_of(head: HeadArtifact, target: Target) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """What labelled samples say, as the head would say it.

    Returns
    -------
    values : (n,) codes, (n, L) labels or (n,) numbers
    known : (n,) which of them the head can be held against
    unknown : how many samples have each class that it does not know
    """
    everywhere = np.ones(len(target.values), bool)
    if target.kind == "regression":
        return target.values, everywhere, {}
    code_of = {name: code for code, name in enumerate(head.class_names)}
    codes = np.array([code_of.get(name, UNLABELLED) for name in target.class_names], np.int64)
    if target.kind == "class":
        values = codes[target.values]
        known, carried = values != UNLABELLED, np.bincount(target.values, minlength=len(codes))
    else:
        values, here = np.zeros((len(everywhere), len(head.class_names)), np.uint8), codes != UNLABELLED
        values[:, codes[here]] = target.values[:, here]
        known, carried = everywhere & here.any(), (target.values == 1).sum(axis=0)
    counts = zip(target.class_names, codes, carried.tolist(), strict=True)
    return values, known, {name: n for name, code, n in counts if code == UNLABELLED and n}


def _listed(unknown: dict[str, int]) -> str:
    """The commonest classes with their counts."""
    names = sorted(unknown, key=unknown.get, reverse=True)
    return ", ".join(f"{name!r} ({unknown[name]})" for name in names[:5]) + (" …" if len(names) > 5 else "")


def _from_cache(
    classifier: Classifier, cache: FeatureCache, rows: np.ndarray, reporter: Reporter
) -> tuple[_Scored, np.ndarray]:
    """Scores of the samples `rows`, and which of them have one: from features, a map, or the images."""
    head = classifier.head
    theirs = {"backbone": head.backbone, "preprocess": head.preprocess}
    fields = differences(cache.spec.to_json(), theirs)
    if head.node_fingerprint:
        _require_fitted_on(head, cache, fields)
        reader = cache.sample_rows(head.node, rows)
        blocks = (reader.read(at, min(at + BLOCK, len(rows))) for at in range(0, len(rows), BLOCK))
    else:  # the network was trained: no cache has its features, but perhaps what its frozen part says
        node = head.settings.get("finetuned", {}).get("input")
        if fields or node not in cache.nodes:
            source = source_of(cache)
            require_images(source, rows, "A trained network is measured on images", cache.path)
            return _from_images(classifier, source, rows, reporter)

        blocks = head_inputs_from_map(classifier.trunk.backbone, head, cache, node, rows)
    scores = []
    with reporter.step("Evaluating", total=len(rows), unit="samples") as advance:
        for block in blocks:
            scores.append(head.probabilities(block))
            advance(len(block))
    images = cache.images.key[cache.samples.image[rows, 0]]
    return _Scored(images, np.concatenate(scores), {}), np.arange(len(rows))


def _require_fitted_on(head: HeadArtifact, cache: FeatureCache, fields: list[str]) -> None:
    """Raise FingerprintError where the cache's rows are not those that the head was fitted on."""
    if cache.node(head.node).fingerprint(cache.spec) != head.node_fingerprint:
        fields = fields or ["dtype or precision"]
        raise FingerprintError(
            f"The head was fitted on other features than {cache.path} holds; {', '.join(fields)} differ.",
            f"Fit a head on this cache: bottleneck fit-head {quote(str(cache.path))}",
            fields=tuple(fields),
        )


def _from_images(
    classifier: Classifier, source: Source, rows: np.ndarray, reporter: Reporter
) -> tuple[_Scored, np.ndarray]:
    """Scores of the samples `rows`, and which of them have one."""
    chosen = source.take(rows)
    outputs = classifier.outputs(chosen, reporter)
    head = classifier.head
    images = [chosen.images[image] for image in chosen.samples.image[outputs.rows, 0]]
    if not len(outputs.rows):
        return _Scored(images, np.zeros(0), outputs.failed), outputs.rows
    scores = apply_link(outputs.decisions, head.link, head.temperature)
    return _Scored(images, scores, outputs.failed), outputs.rows


def _notes(head: HeadArtifact, asked: _Asked) -> list[str]:
    """What a reader has to know to take the figures for what they are."""
    notes, split = [], asked.split
    if asked.unknown:
        several = head.target_kind == "multilabel"
        what, out = ("Labels", "left out") if several else ("Classes", "left out with their samples")
        notes.append(f"{what} that the head does not know were {out}: {_listed(asked.unknown)}.")
    if split == "train":
        notes.append("The head was fitted on the train split: these figures say nothing of new images.")
    elif split in head.settings.get("chosen_on", ()):
        notes.append(f"The {split} split was used to choose this model: expect a little less on new images.")
    return notes


def _write_errors(path: str | Path, scored: _Scored, values: np.ndarray, head: HeadArtifact) -> None:
    """The misclassified samples as CSV, the most confident mistakes first."""
    if head.target_kind != "class":
        raise BottleneckError(
            f"--errors lists misclassified samples; the target is a {head.target_kind} one."
        )
    predicted = scored.scores.argmax(axis=1)
    confidence = scored.scores.max(axis=1)
    wrong = np.flatnonzero(predicted != values)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "true", "predicted", "confidence"])
        for row in wrong[np.argsort(-confidence[wrong], kind="stable")]:
            names = (head.class_names[values[row]], head.class_names[predicted[row]])
            writer.writerow([scored.images[row], *names, f"{confidence[row]:.4f}"])
