"""Predict the labels of images: one record per sample, also written as a table if wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.config import ReadConfig
from bottleneck.data.source import Source, read_sources
from bottleneck.errors import BottleneckError, refuse_strict
from bottleneck.extraction.config import EngineConfig
from bottleneck.models.classifier import Classifier, open_model
from bottleneck.models.prediction_table import require_writable, write_table
from bottleneck.names import TOP_CLASSES
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from


def predict(
    model: str | Path | Classifier,
    *sources: str | Path | Source,
    output: str | Path | None = None,
    raw: bool = False,
    top: int = TOP_CLASSES,
    probabilities: bool = False,
    flip: bool = False,
    image_columns: Sequence[str] = ReadConfig.image_columns,
    label_columns: Sequence[str] = ReadConfig.label_columns,
    split_column: str | None = ReadConfig.split_column,
    group_column: str | None = ReadConfig.group_column,
    sample_column: str | None = ReadConfig.sample_column,
    covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
    classes: Sequence[str] = ReadConfig.classes,
    regression: Sequence[str] = ReadConfig.regression,
    label_separator: str | None = ReadConfig.label_separator,
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
    image_columns … label_separator : columns of a manifest, see `ReadConfig`. Columns of images, covariates
        and sample names that are not given are those that the head was made with; labels, splits and groups
        are not needed.
    strict : refuse decisions on the sources that change the result (`errors.refuse_strict`)
    weights, trust_code : needed to load some backbones, see `load_model`
    engine … force : how the network is run, see `EngineConfig`; an open Classifier keeps its own

    Returns
    -------
    dict
        `predictions`: per sample `image` (its first), `images` (all, if there are several), `sample` (its
        name), `label`, `confidence` (probability after temperature scaling) and `top` [{label, confidence}].
        The label of a regression is its value, that of a multi-label head a list. Where wanted
        `probabilities` {class: probability}; of a manifest `columns` {name: cell}, all columns beside those
        of images, one record for each row in the order of the rows. `failed`: [{image, error}]. `flip`,
        `output`, `seconds`, `images_per_second`, `notes` on how the sources were read and on images. Image
        files keep the names they were given by; images of a folder or manifest have the path below it, or the
        whole path if there are several sources.

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
    classifier.trunk.clear_image_notes()
    started = time.perf_counter()
    opened = read_sources(sources, classifier.reading(reading, inputs_only=True))
    notes = [note for source in opened for note in source.notes]
    refuse_strict(notes, strict)
    images = sum(len(source.images) for source in opened)
    predictions, failed = _classified(
        opened, lambda source: classifier.classify(source, top, probabilities, flip, reporter)
    )
    if not predictions:
        reason = f"; the first: {failed[0]['image']}: {failed[0]['error']}" if failed else ""
        raise BottleneckError(f"None of {images:,} images could be classified{reason}.")
    if output is not None:
        notes += write_table(Path(output), predictions, raw)
    seconds = time.perf_counter() - started - classifier.trunk.startup_seconds
    return {
        "predictions": predictions,
        "failed": failed,
        "flip": flip,
        "output": None if output is None else str(output),
        "seconds": seconds,
        "images_per_second": images / seconds,
        "notes": [*classifier.head.notes, *notes, *classifier.trunk.notes],
    }


def _classified(
    sources: Sequence[Source], classify: Callable[[Source], tuple[list[dict[str, Any]], dict[str, str]]]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the records of all samples, and [{image, error}] of the images that failed."""
    predictions: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for source in sources:
        records, reasons = classify(source)
        failures = [{"image": key, "error": reason} for key, reason in reasons.items()]
        if len(sources) > 1:
            _name_by_whole_path([*records, *failures], source.root)
        predictions += records
        failed += failures
    return predictions, failed


def _name_by_whole_path(records: Iterable[dict[str, Any]], root: str) -> None:
    """Name the images of records by their whole paths, which differ between sources."""
    for record in records:
        record["image"] = _whole_path(root, record["image"])
        if "images" in record:
            record["images"] = [_whole_path(root, key) for key in record["images"]]


def _whole_path(root: str, key: str) -> str:
    return key if "://" in key or key.startswith("/") else f"{root.rstrip('/')}/{key}"
