"""Measure a head or model on one split of a cache or of images: metrics, intervals, figures by class.

    samples of a split ──► scores: by the head on cached features, by the fine-tuned layers on a cached map,
    or by the whole network on images ──► metrics

Shapes: S samples of the source, n measured samples, M images per sample, P covariates, K classes, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.config import LabelConfig, ReadConfig
from bottleneck.data.read_source import read_source
from bottleneck.data.source import Source
from bottleneck.data.table_file import csv_lines
from bottleneck.errors import BottleneckError, Note, counted, refuse_strict, unread_notes
from bottleneck.extraction.config import EngineConfig
from bottleneck.files import require_file_name, write_whole
from bottleneck.fitting.labels import relabelled
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.metrics import measure, one_answer_notes
from bottleneck.heads.trained_on import TrainedOn
from bottleneck.models.classifier import Classifier, Outputs, open_model
from bottleneck.models.config import REJECT, TrustConfig
from bottleneck.models.scoring import Selection, listed, score, select, where_of, with_target_of
from bottleneck.models.trust import Trust
from bottleneck.models.unknown import measure_unknown
from bottleneck.names import ALL_SAMPLES, is_cache
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from
from bottleneck.samples import SampleTable
from bottleneck.store.reader import FeatureCache


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
    cache_images: str | None = ReadConfig.cache_images,
    flip: bool = False,
    reject: float | None = TrustConfig.reject,
    coverage: float | None = TrustConfig.coverage,
    unknown: str | Path | Source | None = None,
    strict: bool = False,
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
    image_columns … cache_images : how images are read, see `ReadConfig`; a cache needs none of them. Columns
        that are not named are those that the head was made with.
    flip : average the probabilities of each image and of its mirror image (of a regression the values), from
        the mirrored views of a cache where it has them
    reject, coverage : measure how many samples of known classes would be called unknown, and how many sets
        of classes contain the true one; see `TrustConfig`
    unknown : a cache or images of none of the head's classes, of which labels are not read: how well they are
        told from the measured samples. `reject` is then 0.05 unless it is given.
    strict : refuse decisions that change what is measured (`errors.refuse_strict`)
    weights, trust_code : needed to load some backbones, see `load_model`
    engine … force : how the network is run, see `EngineConfig`; an open Classifier keeps its own

    Returns
    -------
    dict
        The metrics of `bottleneck.heads.metrics.measure`, `split` ("all" for a source without splits on whose
        images the head was not fitted), `failed` [{image, error}], `notes`, `unknown_classes` {name:
        samples}: classes that the head does not know, which no metric includes, and `trained_on`: the number
        of measured images that the head was fitted on, None where its file does not say. `flip` as given.
        `engines` that computed images, [{engine, precision, nodes}], none where the cache has the features;
        `precisions` {node: precision} of the features of the measured samples.
        With `reject` also `reject`, `novelty_threshold`, `rejected` (share of the measured samples) with
        `rejected_ci95`; with `coverage` also `coverage`, `measured_coverage` with `measured_coverage_ci95`,
        `mean_set_size` and `set_sizes` {size: samples}; with `unknown` also what
        `unknown.measure_unknown` returns.

    Raises
    ------
    FingerprintError
        The cache's features are not those that the head was fitted on.
    ArtifactError
        The source lacks the head's target, or has none of its classes.
    BottleneckError
        The split has no labelled sample, or `errors` is given for a target without classes.
    StrictError
        `strict` is given and a note changes the result.
    """
    reading = config_from(ReadConfig, locals())
    running = config_from(EngineConfig, locals())
    classifier = open_model(model, LoadOptions(weights, trust_code), running)
    head = classifier.head
    rate = REJECT if unknown is not None and reject is None else reject
    trust = Trust.of(head, TrustConfig(rate, coverage))
    if errors is not None:
        _require_errors_of(head, Path(errors))
    call = _Call(
        classifier, classifier.reading(reading), flip or classifier.flips, trust, split, strict, reporter
    )
    measured, notes = call.measured(source, labels)
    outputs, answers = measured.outputs, measured.answers
    if errors is not None:
        write_whole(Path(errors), _errors_csv(measured, head.class_names, raw))
    metrics = measure(head.target_kind, answers, outputs.scores, head.class_names)
    notes += one_answer_notes("The head", measured.selection.split, metrics)
    doubts, told = trust.measured(outputs.scores, answers, outputs.novelty, measured.where)
    notes += told
    failed = list(outputs.failed.items())
    if unknown is not None:
        figures, others, told = call.compared_with(unknown, outputs)
        what = "Images given as unknown that are not measured"
        notes += [*told, *unread_notes(what, others)]
        refuse_strict(notes, strict)
        doubts |= figures
        failed += others.items()
    return {
        **metrics,
        **doubts,
        "split": measured.selection.split,
        "unknown_classes": measured.selection.unknown,
        "trained_on": measured.seen.images,
        "flip": call.flip,
        "failed": [{"image": key, "error": reason} for key, reason in failed],
        "engines": classifier.trunk.engines_used,
        "precisions": outputs.precisions,
        "notes": [
            *head.notes,
            *classifier.flip_notes(flip),
            *trust.notes(flip),
            *notes,
            *classifier.trunk.notes,
        ],
    }


def _require_errors_of(head: HeadArtifact, path: Path) -> None:
    """Raise BottleneckError unless a head has mistakes to list, which can be written to `path`."""
    if head.target_kind != "class":
        raise BottleneckError(
            f"--errors lists misclassified samples; the target is a {head.target_kind} one."
        )
    require_file_name(path)


@dataclass(frozen=True)
class _Measured:
    """The n samples that were scored.

    selection : that they are of. answers : (n, …) in the head's codes. samples, images : (n,) their keys, and
    those of their first images. seen : how many of the images the head was fitted on. where : names the
    samples in a sentence.
    """

    selection: Selection
    answers: np.ndarray
    samples: np.ndarray
    images: np.ndarray
    outputs: Outputs
    seen: _Seen
    where: str


@dataclass(frozen=True)
class _Call:
    """How one call measures. split : that the user named."""

    classifier: Classifier
    reading: ReadConfig
    flip: bool
    trust: Trust
    split: str | None
    strict: bool
    reporter: Reporter

    def measured(
        self, source: str | Path | Source, labels: str | Path | None
    ) -> tuple[_Measured, list[Note]]:
        """Choose the samples of a cache or of images, and score them. Errors as from `evaluate`."""
        head = self.classifier.head
        with _opened(source, self.reading) as opened:
            keys = _image_keys(opened)
            samples, notes = self._labelled(opened, keys, labels)
            selection = select(head, samples, self.split)
            refuse_strict(notes, self.strict)
            outputs = score(self.classifier, opened, selection.rows, self.flip, self.reporter, self.trust)
        where = where_of(samples, selection.split, self.split)
        if not len(outputs.rows):
            raise BottleneckError(f"No image of {where} could be read.")
        seen = _Seen.of_head(head, outputs.digests)
        foreign = seen.images == 0 or (seen.images is None and isinstance(opened, Source))
        if self.split is None and foreign and (samples.split == "train").all():
            selection = replace(selection, split=ALL_SAMPLES)
        notes += [*outputs.notes, *_notes(head, selection, seen, self.split is not None)]
        notes += unread_notes("Images that are not measured", outputs.failed)
        refuse_strict(notes, self.strict)
        rows, answers = selection.rows[outputs.rows], selection.answers[outputs.rows]
        images = keys[samples.image[rows, 0]]
        return _Measured(selection, answers, samples.key[rows], images, outputs, seen, where), notes

    def _labelled(
        self, opened: FeatureCache | Source, keys: np.ndarray, labels: str | Path | None
    ) -> tuple[SampleTable, list[Note]]:
        """Return the samples with the target that the head predicts, and notes. keys : (I,) of images."""
        head = self.classifier.head
        samples, notes = relabelled(opened.samples, keys, labels, (head.target,), config=self.reading.labels)
        if isinstance(opened, Source):
            notes = [*opened.notes, *notes]
        else:
            notes += _unused_notes(self.reading, labels is not None)
        samples, renamed = with_target_of(
            head, samples, tuple(self.reading.label_columns), labels is not None
        )
        return samples, [*notes, *renamed]

    def compared_with(
        self, unknown: str | Path | Source, known: Outputs
    ) -> tuple[dict[str, Any], dict[str, str], list[Note]]:
        """Return what `measure_unknown` does of a cache or of images without labels."""
        with _opened(unknown, replace(self.reading, inputs_only=True)) as opened:
            return measure_unknown(self.classifier, opened, known, self.flip, self.trust, self.reporter)


@dataclass(frozen=True)
class _Seen:
    """How many of the measured images the head was fitted on.

    images : None where the head's file does not say. of : different images. exact : or estimated.
    """

    images: int | None
    of: int
    exact: bool = True

    @classmethod
    def of_head(cls, head: HeadArtifact, digests: np.ndarray) -> _Seen:
        """Compare the digests (I, 32) of the measured images with those that the head remembers."""
        if not head.trained_on:
            return cls(None, len(digests))
        return cls(*TrainedOn.from_json(head.trained_on).shared_with(digests))


def _unused_notes(reading: ReadConfig, with_labels: bool) -> list[Note]:
    """Return a note on reading options that were given for a cache, whose samples are already read."""
    ignored = {"head_target", "remembered", "inputs_only"}
    if with_labels:  # they say how the table of labels is read
        ignored |= {field.name for field in fields(LabelConfig)}
    plain = ReadConfig()
    given = [
        field.name
        for field in fields(ReadConfig)
        if field.name not in ignored and getattr(reading, field.name) != getattr(plain, field.name)
    ]
    if not given:
        return []
    message = f"A cache keeps the samples and splits that it was made with; not used: {', '.join(given)}."
    return [Note("options-unused", message, True, {"options": given})]


@contextmanager
def _opened(source: str | Path | Source, reading: ReadConfig) -> Iterator[FeatureCache | Source]:
    """Open the cache or read the source; a cache is closed on leaving."""
    if not isinstance(source, Source) and is_cache(source):
        with FeatureCache(source) as cache:
            yield cache
    else:
        yield read_source(source, reading)


def _image_keys(opened: FeatureCache | Source) -> np.ndarray:
    """(I,) keys of all images."""
    return opened.images.key if isinstance(opened, FeatureCache) else np.array(opened.images, object)


# ---------------------------------------------------------------- what is said beside the metrics


def _notes(head: HeadArtifact, selection: Selection, seen: _Seen, stated: bool) -> list[Note]:
    """Say which classes were left out, and what the images were used for before.

    stated : the user named the split.
    """
    notes: list[Note] = []
    if selection.unknown:
        several = head.target_kind == "multilabel"
        what, out = ("Labels", "left out") if several else ("Classes", "left out with their samples")
        text = f"{what} that the head does not know were {out}: {listed(selection.unknown)}."
        notes.append(Note("unknown-classes", text, True, {"classes": selection.unknown}))
    if seen.images:
        about = "" if seen.exact else "about "
        worth = "say nothing of" if seen.images == seen.of else "are better than on"
        text = (
            f"The head was fitted on {about}{seen.images:,} of the "
            f"{counted(seen.of, 'image that is', 'images that are')} measured: "
            f"these figures {worth} new images."
        )
        asked = stated and selection.split == "train"
        notes.append(Note("trained-on", text, not asked, {"images": seen.images, "of": seen.of}))
    elif seen.images is None and selection.split == "train":
        text = "The head was fitted on the train split: these figures say nothing of new images."
        notes.append(Note("measured-on-train", text))
    elif seen.images is None and selection.split == ALL_SAMPLES:
        text = "Whether the head was fitted on these images is not known: its file does not list them."
        notes.append(Note("training-images-unknown", text))
    if selection.split in head.settings.get("chosen_on", ()):
        text = (
            f"The {selection.split} split was used to choose this model: expect a little less on new images."
        )
        notes.append(Note("split-chose-the-model", text))
    return notes


def _errors_csv(measured: _Measured, class_names: Sequence[str], raw: bool) -> bytes:
    """Return the misclassified samples as CSV, the most confident mistakes first.

    Their names are a column where they are others than those of their images.
    """
    scores, answers = measured.outputs.scores, measured.answers
    predicted, confidence = scores.argmax(axis=1), scores.max(axis=1)
    wrong = np.flatnonzero(predicted != answers)
    named = not np.array_equal(measured.samples, measured.images)
    lines: list[tuple[str, ...]] = [
        ("image", "true", "predicted", "confidence", *(["sample"] if named else []))
    ]
    for row in wrong[np.argsort(-confidence[wrong], kind="stable")]:
        names = (class_names[answers[row]], class_names[predicted[row]])
        sample = [measured.samples[row]] if named else []
        lines.append((measured.images[row], *names, f"{confidence[row]:.4f}", *sample))
    return "".join(csv_lines(lines, raw)).encode()
