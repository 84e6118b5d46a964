#!/usr/bin/env python3
"""What `audit` finds: labels that were flipped, copies that were planted; and its time on many rows.

    python tests/benchmarks/audit.py [FOLDER …] [--rows 50000] [--features 1280]

Digits are judged, and every FOLDER of photographs by class. In each a part of the labels is flipped at
random. In a FOLDER with train/ and val/, 20 changed copies of images of train are put into val: new files,
smaller, cut to 90 %, mirrored, brighter. Takes about three minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import print_machine
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

COPIES = 20


def smaller(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width * 6 // 10), max(1, image.height * 6 // 10)))


def cut(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((width // 20, height // 20, width - width // 20, height - height // 20))


def brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.3)


CHANGES = (Image.Image.copy, smaller, cut, ImageOps.mirror, brighter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=1280)
    options = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as work:
        digits = write_digits(Path(work) / "digits")
        for folder in (digits, *options.folders):
            measure_labels(folder, Path(work) / "labels.h5")
            (Path(work) / "labels.h5").unlink()
        for folder in options.folders:
            measure_copies(folder, Path(work))
    measure_scale(options.rows, options.features)


def measure_labels(folder: Path, cache: Path) -> None:
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
            flag = judged.quality(AuditConfig.doubt).flag
            hits = (flag & np.isin(judged.rows, flipped)).sum()
            print(
                f"{folder.name}: {len(flipped)} of {len(every)} labels flipped, {flag.sum()} flagged "
                f"({flag.mean():.2%}), {hits} of them flipped"
            )


def measure_copies(folder: Path, work: Path) -> None:
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
    print(f"{folder.name}: {found} of {COPIES} planted copies found, {len(pairs) - found} other pairs")


def measure_scale(n: int, features: int) -> None:
    """Time and memory of the comparison of all rows."""
    draw = np.random.default_rng(0)
    rows = np.empty((n, features), np.float16)
    kinds = draw.normal(size=(100, features)).astype(np.float32)
    for start in range(0, n, 4096):
        part = rows[start : start + 4096]
        part[:] = kinds[draw.integers(0, 100, len(part))] + draw.standard_normal(part.shape, dtype=np.float32)
    before, started = peak_megabytes(), time.perf_counter()
    near_pairs(neighbourhood(centred(ArrayRows(rows))), AuditConfig.cosine, AuditConfig.ratio)
    print(
        f"Copies among {n:,} rows of {features:,} features: {time.perf_counter() - started:.0f} s, "
        f"{peak_megabytes() - before:.0f} MB"
    )


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
