"""Predict the labels of images: one record per sample, as a table (.csv, .jsonl, .parquet) too if wanted.

    image, [images], [sample], label, confidence, [novelty, known, predicted], [set], [p_CLASS …], then the
    columns of the manifest

In .jsonl each line is a record as `predict` returns it. In the others a column of the manifest that has the
name of one of ours is called NAME_given.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.config import ReadConfig
from bottleneck.data.read_source import read_sources
from bottleneck.data.source import Source
from bottleneck.data.table_file import csv_lines
from bottleneck.errors import BottleneckError, Note, counted, refuse_strict
from bottleneck.extraction.config import EngineConfig
from bottleneck.files import require_file_name, write_whole
from bottleneck.models.classifier import Classifier, open_model
from bottleneck.models.config import TrustConfig
from bottleneck.models.trust import Trust
from bottleneck.names import TOP_CLASSES
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from, plain
from bottleneck.store.exchange import import_pyarrow

# Between several labels or images in one cell; the first that none contains.
SEPARATORS = ("|", ";", ",", "\t", "\n")
Records = list[dict[str, Any]]
Columns = dict[str, list[Any]]


def predict(
    model: str | Path | Classifier,
    *sources: str | Path | Source,
    output: str | Path | None = None,
    raw: bool = False,
    top: int = TOP_CLASSES,
    probabilities: bool = False,
    flip: bool = False,
    reject: float | None = TrustConfig.reject,
    coverage: float | None = TrustConfig.coverage,
    image_columns: Sequence[str] = ReadConfig.image_columns,
    label_columns: Sequence[str] = ReadConfig.label_columns,
    split_column: str | None = ReadConfig.split_column,
    group_column: str | None = ReadConfig.group_column,
    sample_column: str | None = ReadConfig.sample_column,
    covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
    classes: Sequence[str] = ReadConfig.classes,
    regression: Sequence[str] = ReadConfig.regression,
    label_separator: str | None = ReadConfig.label_separator,
    cache_images: str | None = ReadConfig.cache_images,
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
    """Classify the images of `sources`.

    Parameters
    ----------
    model : path of a head or model file, or an open Classifier
    sources : images, folders, manifests, shards, URLs, or read `Source`s
    output : path of a .csv, .jsonl or .parquet file to write, optional
    raw : write texts to .csv as they are, also those that a spreadsheet would execute (`data.table_file`)
    top : classes listed per sample, the likeliest first
    probabilities : add the probabilities of all classes or labels
    flip : average the probabilities of each image and of its mirror image, of a regression the values
    reject, coverage : call samples unknown, and add sets of classes; see `TrustConfig`
    image_columns … label_separator : columns of a manifest, see `ReadConfig`. Columns of images, covariates
        and sample names that are not given are those that the head was made with; labels, splits and groups
        are not needed.
    cache_images : folder that keeps images read over a network, see `ReadConfig`
    strict : refuse decisions on the sources that change the result (`errors.refuse_strict`)
    weights, trust_code : needed to load some backbones, see `load_model`
    engine … force : how the network is run, see `EngineConfig`; an open Classifier keeps its own

    Returns
    -------
    dict
        `predictions`: per sample `image` (its first), `images` (all, if there are several), `sample` (its
        name), `label`, `confidence` (probability after temperature scaling) and `top` [{label, confidence}].
        The label of a regression is its value, that of a multi-label head a list. With `reject` also
        `novelty`, how far it is from the training samples, `known`, whether that is near enough, and
        `predicted`, the label in any case. `label` is "unknown" where `known` is false; confidence and `top`
        stay. With `coverage` also `set`, the classes of the set, the likeliest first. Where wanted
        `probabilities` {class: probability}; of a manifest `columns` {name: cell}, all columns beside those
        of images, one record for each row in the order of the rows. `failed`: [{image, error}]. `flip`, where
        given `reject` with `novelty_threshold`, and `coverage`; `output`, `seconds`, `images_per_second`,
        `engines` that computed, [{engine, precision, nodes}], `precisions` {node: precision} of the features,
        `notes` on how the sources were read and on images. Image files keep the names they were given by;
        images of a folder or manifest have the path below it, or the whole path if there are several sources.

    Raises
    ------
    ArtifactError, SourceError, BackboneError, StrictError
    BottleneckError
        None of the images could be read, or `output` has another suffix.
    """
    if output is not None:
        require_writable(Path(output))
    reading = config_from(ReadConfig, locals())
    running = config_from(EngineConfig, locals())
    classifier = open_model(model, LoadOptions(weights, trust_code), running)
    classifier.require_probabilities(probabilities)
    trust = Trust.of(classifier.head, TrustConfig(reject, coverage))
    flip_notes = [*classifier.flip_notes(flip), *trust.notes(flip)]
    started, startup = time.perf_counter(), classifier.trunk.startup_seconds
    opened = read_sources(sources, classifier.reading(reading, inputs_only=True))
    notes = [note for source in opened for note in source.notes]
    refuse_strict(notes, strict)
    images = sum(len(source.images) for source in opened)
    predictions, failed = _classified(
        opened, lambda source: classifier.classify(source, top, probabilities, flip, trust, reporter)
    )
    notes += _failure_notes(failed, images, bool(predictions))
    refuse_strict(notes, strict)
    if output is not None:
        notes += write_table(Path(output), predictions, raw)
    seconds = time.perf_counter() - started - (classifier.trunk.startup_seconds - startup)
    return {
        "predictions": predictions,
        "failed": failed,
        "flip": flip or classifier.flips,
        **trust.to_json(),
        "output": None if output is None else str(output),
        "seconds": seconds,
        "images_per_second": (images - len(failed)) / seconds,
        "engines": classifier.trunk.engines_used,
        "precisions": classifier.trunk.precisions_used,
        "notes": [*classifier.head.notes, *flip_notes, *notes, *classifier.trunk.notes],
    }


def _classified(
    sources: Sequence[Source], classify: Callable[[Source], tuple[list[dict[str, Any]], dict[str, str]]]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the records of all samples, and [{image, error}] of the images that failed."""
    predictions: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for source in sources:
        records, reasons = classify(source)
        predictions += records
        failed += [{"image": name, "error": reason} for name, reason in reasons.items()]
    return predictions, failed


def _failure_notes(failed: Sequence[dict[str, str]], images: int, any_predicted: bool) -> list[Note]:
    """Return a note on failed images; BottleneckError if none of `images` has a prediction."""
    first = "".join(f"{each['image']}: {each['error']}" for each in failed[:1])
    if not any_predicted:
        reason = f"; the first: {first}" if first else ""
        raise BottleneckError(f"None of {counted(images, 'image')} could be classified{reason}.")
    text = f"Images without a prediction, and so without a row: {len(failed):,}; the first is {first}."
    details = {"failed": len(failed)}
    return [Note("images-without-prediction", text, True, details)] if failed else []


def write_table(path: Path, predictions: Records, raw: bool) -> list[Note]:
    """Write the records of `predict`, and return notes on how.

    raw : leave texts in .csv as they are (`data.table_file`).
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        lines = (json.dumps(plain(record), ensure_ascii=False) + "\n" for record in predictions)
        write_whole(path, "".join(lines).encode())
        return []
    columns, notes = _columns(predictions)
    write_whole(path, _as_csv(columns, raw) if suffix == ".csv" else _as_parquet(columns))
    return notes


def _as_csv(columns: Columns, raw: bool) -> bytes:
    rows = zip(*([_text(value) for value in values] for values in columns.values()), strict=True)
    return "".join(csv_lines([columns, *rows], raw)).encode()


def _as_parquet(columns: Columns) -> bytes:
    arrow, parquet = import_pyarrow(), import_pyarrow("pyarrow.parquet")
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = arrow.array(values)
        except arrow.ArrowException:  # cells of several types
            arrays[name] = arrow.array([None if value is None else _text(value) for value in values])
    data = io.BytesIO()
    parquet.write_table(arrow.table(arrays), data)
    return data.getvalue()


def _columns(predictions: Records) -> tuple[Columns, list[Note]]:
    """Return the table {column: values}, and notes on columns of the manifest that are renamed."""
    columns: Columns = {"image": [record["image"] for record in predictions]}
    notes: list[Note] = []
    if any("images" in record for record in predictions):
        several = [record.get("images", [record["image"]]) for record in predictions]
        columns["images"] = _joined(several, "images", notes)
    if any(record["sample"] != record["image"] for record in predictions):
        columns["sample"] = [record["sample"] for record in predictions]
    columns["label"] = _labels([record["label"] for record in predictions], notes)
    columns["confidence"] = [record["confidence"] for record in predictions]
    if "predicted" in predictions[0]:
        columns |= {name: [record[name] for record in predictions] for name in ("novelty", "known")}
        columns["predicted"] = _labels([record["predicted"] for record in predictions], notes)
    if "set" in predictions[0]:
        columns["set"] = _joined([record["set"] for record in predictions], "classes", notes)
    for name in predictions[0].get("probabilities", {}):
        columns[f"p_{name}"] = [record["probabilities"][name] for record in predictions]
    given = dict.fromkeys(name for record in predictions for name in record.get("columns", {}))
    renamed = {}
    for name in given:
        free = name
        while free in columns or (free != name and free in given):
            free += "_given"
        if free != name:
            renamed[name] = free
        columns[free] = [record.get("columns", {}).get(name) for record in predictions]
    if renamed:
        shown = ", ".join(f"{name!r} is {free!r}" for name, free in renamed.items())
        message = f"Columns of the manifest whose names are taken by predictions: {shown}."
        notes.append(Note("columns-renamed", message, details={"columns": renamed}))
    return columns, notes


def _labels(labels: list[Any], notes: list[Note]) -> list[str]:
    """Return labels as texts, several of a sample as one."""
    several = any(isinstance(label, list) for label in labels)
    return _joined(labels, "labels", notes) if several else [_text(label) for label in labels]


def _joined(cells: Iterable[list[str]], what: str, notes: list[Note]) -> list[str]:
    """Return the texts of each list as one, between them a separator that none contains."""
    lists = list(cells)
    used = {mark for mark in SEPARATORS if any(mark in text for texts in lists for text in texts)}
    separator = next((mark for mark in SEPARATORS if mark not in used), None)
    if separator is None:
        notes.append(Note("joined-as-json", f"Several {what} of a sample are written as JSON lists."))
        return [json.dumps(texts, ensure_ascii=False) for texts in lists]
    if separator != SEPARATORS[0]:
        message = f"Several {what} of a sample are written with {separator!r} between them: some contain '|'."
        notes.append(Note("joined-by-other-separator", message, details={"separator": separator}))
    return [separator.join(texts) for texts in lists]


def _text(value: Any) -> Any:
    """Return a cell as text; None as it is."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | dict | bool):
        return json.dumps(plain(value), ensure_ascii=False)
    return str(value)


SUFFIXES = (".csv", ".jsonl", ".parquet")


def require_writable(path: Path) -> None:
    """Raise before the computation if the output cannot be written after it."""
    if path.suffix.lower() not in SUFFIXES:
        raise BottleneckError(
            f"The output {path} has no known suffix; expected one of {', '.join(SUFFIXES)}."
        )
    if path.suffix.lower() == ".parquet":
        import_pyarrow()
    require_file_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass
