"""Predictions for images: one record per sample, written as a table where one is asked for."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from bottleneck.data.source import Source, read_sources, reading_options
from bottleneck.errors import BottleneckError
from bottleneck.files import write_whole
from bottleneck.models.classifier import Classifier, load_model
from bottleneck.progress import SILENT, Reporter

FORMATS = (".csv", ".jsonl", ".parquet")


def predict(
    model: str | Path | Classifier,
    *sources: str | Path | Source,
    output: str | Path | None = None,
    top: int = 5,
    reporter: Reporter = SILENT,
    **options: Any,
) -> dict[str, Any]:
    """Classify the images of `sources`.

    Parameters
    ----------
    model : path of a head or model file, or an open Classifier
    sources : images, folders, manifests, shards, URLs, or read `Source`s
    output : path of a .csv, .jsonl or .parquet file, optional
    top : int
        Classes listed per sample, the likeliest first.
    options : column arguments of `read_source`, fields of `EngineConfig`, `trust_code`

    Returns
    -------
    dict
        `predictions`: per sample `image` (its first), `images` (all, where several), `label`, `confidence`
        (probability after temperature scaling) and `top` [{label, confidence}]. A regression's label is its
        value, a multi-label head's a list. `failed`: [{image, error}]. `output`, `seconds`,
        `images_per_second`. Image files are called as they were given, the images of a folder or manifest
        by their path below it, and by their whole path where there are several sources.

    Raises
    ------
    ArtifactError, SourceError, BackboneError
    BottleneckError
        None of the images could be read, or `output` has another suffix.
    """
    if output is not None:
        _require_writable(Path(output))
    reading = reading_options(options)
    classifier = model if isinstance(model, Classifier) else load_model(model, **options)
    started = time.perf_counter()
    opened = read_sources(sources, reading)
    images = sum(len(source.images) for source in opened)
    predictions, failed = _classified(classifier, opened, top, reporter)
    if not predictions:
        reason = f"; the first: {failed[0]['image']}: {failed[0]['error']}" if failed else ""
        raise BottleneckError(f"None of {images:,} images could be classified{reason}.")
    if output is not None:
        write_table(predictions, output)
    seconds = time.perf_counter() - started - classifier.trunk.startup_seconds
    return {
        "predictions": predictions,
        "failed": failed,
        "output": None if output is None else str(output),
        "seconds": seconds,
        "images_per_second": images / seconds,
    }


def _classified(
    classifier: Classifier, sources: Sequence[Source], top: int, reporter: Reporter
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Records of all samples, and [{image, error}] of the images that gave none."""
    predictions, failed = [], []
    for source in sources:
        records, reasons = classifier.classify(source, top, reporter)
        failures = [{"image": key, "error": reason} for key, reason in reasons.items()]
        if len(sources) > 1:
            _name_by_whole_path([*records, *failures], source.root)
        predictions += records
        failed += failures
    return predictions, failed


def _name_by_whole_path(records: Iterable[dict[str, Any]], root: str) -> None:
    """Call images by a path that says from which source they are."""
    for record in records:
        record["image"] = _whole_path(root, record["image"])
        if "images" in record:
            record["images"] = [_whole_path(root, key) for key in record["images"]]


def _whole_path(root: str, key: str) -> str:
    return key if "://" in key or key.startswith("/") else f"{root.rstrip('/')}/{key}"


def write_table(predictions: list[dict[str, Any]], path: str | Path) -> None:
    """Write `image`, `label` and `confidence` (.csv, .parquet) or whole records (.jsonl), in one rename."""
    path = Path(path)
    write = {".csv": _as_csv, ".jsonl": _as_lines, ".parquet": _as_parquet}[path.suffix.lower()]
    write_whole(path, write(predictions))


def _as_lines(predictions: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in predictions).encode()


def _as_csv(predictions: list[dict[str, Any]]) -> bytes:
    columns = _columns(predictions)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def _as_parquet(predictions: list[dict[str, Any]]) -> bytes:
    arrow, parquet = _pyarrow()
    data = io.BytesIO()
    parquet.write_table(arrow.table(_columns(predictions)), data)
    return data.getvalue()


def _columns(predictions: list[dict[str, Any]]) -> dict[str, list]:
    """The table by columns; `images` only where a sample has several."""
    columns = {"image": [record["image"] for record in predictions]}
    if any("images" in record for record in predictions):
        columns["images"] = ["|".join(record.get("images", [record["image"]])) for record in predictions]
    columns["label"] = [_text(record["label"]) for record in predictions]
    columns["confidence"] = [record["confidence"] for record in predictions]
    return columns


def _text(label: object) -> str:
    return "|".join(label) if isinstance(label, list) else str(label)


def _require_writable(path: Path) -> None:
    """Raise at once what would else be raised when all is computed."""
    if path.suffix.lower() not in FORMATS:
        raise BottleneckError(f"The output {path} has no known suffix; expected one of {', '.join(FORMATS)}.")
    if path.suffix.lower() == ".parquet":
        _pyarrow()
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
