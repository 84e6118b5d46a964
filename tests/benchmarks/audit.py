"""What `audit` finds: labels that were flipped, copies that were planted; and its time on many rows.

    python -m tests.benchmarks.audit [--short] [FOLDER …]

Digits are judged, and every FOLDER of photographs by class. In each a part of the labels is flipped at
random. In a FOLDER with train/ and val/, 20 changed copies of images of train are put into val: new files,
smaller, cut to 90 %, mirrored, brighter. Takes about three minutes on 2 cores.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from bottleneck import audit, extract
from bottleneck.data.storage import SUFFIXES
from bottleneck.demo import write_digits
from bottleneck.progress import SILENT
from bottleneck.samples import ArrayRows
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.audit.images import centred, near_pairs, neighbourhood
from bottleneck.studies.audit.judged import fitted
from bottleneck.studies.study_config import AuditConfig
from bottleneck.trials.task import task_of
from tests.benchmarks.machine import peak_megabytes
from tests.benchmarks.measurement import REPEATS, Row, main

COPIES = 20


def smaller(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width * 6 // 10), max(1, image.height * 6 // 10)))


def cut(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((width // 20, height // 20, width - width // 20, height - height // 20))


def brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.3)


CHANGES = (Image.Image.copy, smaller, cut, ImageOps.mirror, brighter)


def rows(short: bool, folders: tuple[Path, ...] = ()) -> Iterator[Row]:
    """Flipped labels, planted copies, and the comparison of all rows."""
    with tempfile.TemporaryDirectory() as work:
        digits = write_digits(Path(work) / "digits")
        for folder in (digits, *folders):
            yield from labels(folder, Path(work) / "labels.h5")
            (Path(work) / "labels.h5").unlink()
        for folder in folders:
            yield copies(folder, Path(work))
    yield from scale(5000 if short else 50_000, 1280)


def labels(folder: Path, cache: Path) -> Iterator[Row]:
    """Flip labels of a folder's images, and count the flips among the flagged ones."""
    extract(folder, cache, test_fraction=0.2)
    with FeatureCache(cache) as opened:
        task = task_of(opened, None, cv=AuditConfig.cv, seed=0)
        classes, every = len(task.target.class_names), np.concatenate(list(task.rows.values()))
        for share in (0.0, 0.05, 0.1):
            draw = np.random.default_rng(0)
            flipped = draw.choice(every, int(share * len(every)), replace=False)
            values = task.target.values.copy()
            values[flipped] = (values[flipped] + draw.integers(1, classes, len(flipped))) % classes
            noisy = replace(task, target=replace(task.target, values=values))
            judged = fitted(noisy, AuditConfig.node, SILENT)
            flag = judged.quality(AuditConfig.doubt, AuditConfig.precision).flag
            hits = (flag & np.isin(judged.rows, flipped)).sum()
            conditions = f"{flag.sum()} flagged ({flag.mean():.2%}), {hits} of them flipped"
            what = f"{folder.name}: flipped labels found, of {len(flipped)} among {len(every)}"
            yield Row(what, "labels", (int(hits),), conditions=conditions)


def copies(folder: Path, work: Path) -> Row:
    """Plant changed copies of train's images in val, and count the pairs that are found."""
    source = shutil.copytree(folder, work / "planted")
    images = sorted(path for path in (source / "train").rglob("*") if path.suffix.lower() in SUFFIXES)
    chosen = np.random.default_rng(0).choice(len(images), COPIES, replace=False)
    for number, path in enumerate(images[i] for i in chosen):
        image = Image.open(path).convert("RGB")
        to = source / "val" / path.parent.name / f"planted-{number}.jpg"
        CHANGES[number % len(CHANGES)](image).save(to, quality=60 if number % len(CHANGES) == 0 else 90)
    extract(source, work / "planted.h5")
    pairs = [item["images"] for item in audit(work / "planted.h5").leaks["items"]]
    found = sum(any("planted" in image for image in pair) for pair in pairs)
    conditions = f"{len(pairs) - found} other pairs"
    return Row(f"{folder.name}: planted copies found, of {COPIES}", "copies", (found,), conditions=conditions)


def scale(n: int, features: int) -> Iterator[Row]:
    """Time and memory of the comparison of all rows."""
    draw = np.random.default_rng(0)
    rows = np.empty((n, features), np.float16)
    kinds = draw.normal(size=(100, features)).astype(np.float32)
    for start in range(0, n, 4096):
        part = rows[start : start + 4096]
        part[:] = kinds[draw.integers(0, 100, len(part))] + draw.standard_normal(part.shape, dtype=np.float32)
    before, took = peak_megabytes(), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        near_pairs(neighbourhood(centred(ArrayRows(rows))), AuditConfig.cosine, AuditConfig.ratio)
        took.append(time.perf_counter() - started)
    what = f"copies among {n:,} rows of {features:,} features"
    yield Row(what, "s by the clock", tuple(took))
    yield Row(f"{what}: added memory", "MB", (peak_megabytes() - before,))


if __name__ == "__main__":
    main(rows, __doc__)
