"""Predict the labels of images: one record per sample, also written as a table if wanted."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.config import ReadConfig
from bottleneck.data.source import Source, read_sources
from bottleneck.data.table_file import csv_lines
from bottleneck.errors import BottleneckError
from bottleneck.extraction.config import EngineConfig
from bottleneck.files import require_file_name, write_whole
from bottleneck.models.classifier import Classifier, open_model
from bottleneck.names import TOP_CLASSES
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from


def predict(
    model: str | Path | Classifier,
    *sources: str | Path | Source,
    output: str | Path | None = None,
    raw: bool = False,
    top: int = TOP_CLASSES,
    image_columns: Sequence[str] = ReadConfig.image_columns,
    label_columns: Sequence[str] = ReadConfig.label_columns,
    split_column: str | None = ReadConfig.split_column,
    group_column: str | None = ReadConfig.group_column,
    sample_column: str | None = ReadConfig.sample_column,
    covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
    classes: Sequence[str] = ReadConfig.classes,
    regression: Sequence[str] = ReadConfig.regression,
    label_separator: str | None = ReadConfig.label_separator,
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
    image_columns … covariate_columns : columns of a manifest, see `ReadConfig`
    weights, trust_code : needed to load some backbones, see `load_model`
    engine … force : how the network is run, see `EngineConfig`; an open Classifier keeps its own

    Returns
    -------
    dict
        `predictions`: per sample `image` (its first), `images` (all, if there are several), `label`,
        `confidence` (probability after temperature scaling) and `top` [{label, confidence}]. The label of a
        regression is its value, that of a multi-label head a list. `failed`: [{image, error}]. `output`,
        `seconds`, `images_per_second`, `notes` on how the sources were read and on images. Image files
        keep the names they were given by; images of a folder or manifest have the path below it, or the whole
        path if there are several sources.

    Raises
    ------
    ArtifactError, SourceError, BackboneError
    BottleneckError
        None of the images could be read, or `output` has another suffix.
    """
    if output is not None:
        _require_writable(Path(output))
    reading = config_from(ReadConfig, locals())
    running = config_from(EngineConfig, locals())
    classifier = open_model(model, LoadOptions(weights, trust_code), running)
    classifier.trunk.clear_image_notes()
    started = time.perf_counter()
    opened = read_sources(sources, reading)
    images = sum(len(source.images) for source in opened)
    predictions, failed = _classified(classifier, opened, top, reporter)
    if not predictions:
        reason = f"; the first: {failed[0]['image']}: {failed[0]['error']}" if failed else ""
        raise BottleneckError(f"None of {images:,} images could be classified{reason}.")
    if output is not None:
        write_whole(Path(output), WRITERS[Path(output).suffix.lower()](predictions, raw))
    seconds = time.perf_counter() - started - classifier.trunk.startup_seconds
    return {
        "predictions": predictions,
        "failed": failed,
        "output": None if output is None else str(output),
        "seconds": seconds,
        "images_per_second": images / seconds,
        "notes": [
            *classifier.head.notes,
            *(note for source in opened for note in source.notes),
            *classifier.trunk.notes,
        ],
    }


def _classified(
    classifier: Classifier, sources: Sequence[Source], top: int, reporter: Reporter
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the records of all samples, and [{image, error}] of the images that failed."""
    predictions: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for source in sources:
        records, reasons = classifier.classify(source, top, reporter)
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


def _as_lines(predictions: list[dict[str, Any]], raw: bool) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in predictions).encode()


def _as_csv(predictions: list[dict[str, Any]], raw: bool) -> bytes:
    columns = _columns(predictions)
    return "".join(csv_lines([columns, *zip(*columns.values(), strict=True)], raw)).encode()


def _as_parquet(predictions: list[dict[str, Any]], raw: bool) -> bytes:
    arrow, parquet = _pyarrow()
    data = io.BytesIO()
    parquet.write_table(arrow.table(_columns(predictions)), data)
    return data.getvalue()


def _columns(predictions: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the table {column: values}; with a column `images` if a sample has several."""
    columns: dict[str, list[Any]] = {"image": [record["image"] for record in predictions]}
    if any("images" in record for record in predictions):
        columns["images"] = ["|".join(record.get("images", [record["image"]])) for record in predictions]
    columns["label"] = [_text(record["label"]) for record in predictions]
    columns["confidence"] = [record["confidence"] for record in predictions]
    return columns


def _text(label: object) -> str:
    return "|".join(label) if isinstance(label, list) else str(label)


WRITERS: dict[str, Callable[[list[dict[str, Any]], bool], bytes]] = {
    ".csv": _as_csv,
    ".jsonl": _as_lines,
    ".parquet": _as_parquet,
}


def _require_writable(path: Path) -> None:
    """Raise before the computation if the output cannot be written after it."""
    if path.suffix.lower() not in WRITERS:
        raise BottleneckError(f"The output {path} has no known suffix; expected one of {', '.join(WRITERS)}.")
    if path.suffix.lower() == ".parquet":
        _pyarrow()
    require_file_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BottleneckError(
            "Writing .parquet needs pyarrow.", "Run: pip install 'bottleneck-features[parquet]'"
        ) from None
    return pyarrow, parquet
