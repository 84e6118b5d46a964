"""The images of a study: decoded once into an array on disk, split into train and val.

Shapes: N images, S pixels a side, C channels, K classes.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.data.config import ReadConfig
from bottleneck.data.loader import load_images
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source, read_source
from bottleneck.errors import BottleneckError, SourceError
from bottleneck.progress import SILENT, Reporter
from bottleneck.threads import thread_budget

VAL_FRACTION = 0.25  # of train, where the source sets nothing aside for val
FEWEST_TRAIN, FEWEST_VAL = 4, 2  # images of every class


@dataclass(frozen=True)
class StudyImages:
    """What a study trains on.

    pixels : (N, S, S, C) uint8. codes : (N,) int64, −1 where the image could not be read.
    val : (N,) bool, else train. class_names : K names. digest : sha256 hex of all images, labels and splits.
    """

    pixels: np.ndarray
    codes: np.ndarray
    val: np.ndarray
    class_names: tuple[str, ...]
    digest: str

    @property
    def failed(self) -> int:
        """Images that could not be read."""
        return int((self.codes < 0).sum())

    def of_classes(self, classes: np.ndarray, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the train and of the val images of `classes`, in ascending order.

        share : of every class's train images, the first ones in the source's order; at least one.
        """
        train, val = [], []
        for code in classes:
            of_class = np.flatnonzero(self.codes == code)
            learnt = of_class[~self.val[of_class]]
            train.append(learnt[: max(1, round(share * len(learnt)))])
            val.append(of_class[self.val[of_class]])
        return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))

    def labels(self, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Codes of `rows` as positions in the sorted `classes`."""
        return np.searchsorted(classes, self.codes[rows])

    def require_enough(self, halves: dict[str, np.ndarray]) -> None:
        """Raise SourceError naming a class of a half that has too few images."""
        for half, classes in halves.items():
            for code in classes:
                train = int((~self.val[self.codes == code]).sum())
                val = int(self.val[self.codes == code].sum())
                if train < FEWEST_TRAIN or val < FEWEST_VAL:
                    raise SourceError(
                        f"Class {self.class_names[code]!r} of half {half} has {train} images to train on "
                        f"and {val} for validation; expected {FEWEST_TRAIN} and {FEWEST_VAL} or more.",
                        "Add images, or leave the class out of the halves.",
                    )


def read_images(
    source: str | Path, preprocess: Preprocess, folder: Path, *, reporter: Reporter = SILENT, **reading: Any
) -> StudyImages:
    """Decode the labelled images of `source` into a temporary file in `folder`.

    reading : fields of `ReadConfig`. Test images are left unseen. Without val images a quarter of
        train is set aside, by class.

    Raises
    ------
    SourceError
        There are no labels of classes, or samples have several images.
    """
    config = ReadConfig(**reading)
    found = read_source(source, config)
    if not (found.samples.split == "val").any():
        found = read_source(source, replace(config, val_fraction=VAL_FRACTION))
    names, chosen, codes = _labelled(found)
    keys = [found.images[i] for i in found.samples.image[chosen, 0]]
    splits = found.samples.split[chosen]
    shape = (len(keys), preprocess.size, preprocess.size, preprocess.channels)
    pixels = temporary_array(folder, shape, np.uint8)
    digest, first = hashlib.sha256(), {}
    with reporter.step("Reading", total=len(keys), unit="images") as advance:
        for i, image in enumerate(load_images(found, keys, preprocess, workers=thread_budget().decode)):
            if image.error is None:
                row = first.setdefault(image.digest, i)  # the loader hands a copy over without pixels
                pixels[i] = pixels[row] if image.pixels is None else image.pixels
                digest.update(image.digest + f"{names[codes[i]]}\0{splits[i]}\n".encode())
            else:
                codes[i] = -1
            advance(1)
    return StudyImages(pixels, codes, splits == "val", names, digest.hexdigest())


def temporary_array(
    folder: Path, shape: tuple[int, ...], dtype: type, filled: int | None = None
) -> np.ndarray:
    """An array in a file without a name in `folder`, which goes with it, however the process ends.

    filled : rows that will be written; all by default. Raises BottleneckError where the disk lacks the room.
    """
    rows = shape[0] if filled is None else filled
    needed = rows * int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BottleneckError(
            f"The study needs {needed / 2**30:.1f} GiB in {folder}, and {free / 2**30:.1f} GiB are free.",
            "Free some, use a smaller --image-size, or --limit the samples.",
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def _labelled(found: Source) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Class names, the samples of train and val that have a class, and their codes."""
    samples = found.samples
    target = next((target for target in samples.targets.values() if target.kind == "class"), None)
    if target is None:
        raise SourceError(
            f"{found.root} has no classes to split into halves.",
            "Name a folder with one subfolder a class, or a --label-column of a manifest.",
        )
    if samples.image.shape[1] != 1:
        raise SourceError(f"Samples have {samples.image.shape[1]} images each; the study takes one each.")
    chosen = np.flatnonzero(target.labelled & (samples.split != "test"))
    return target.class_names, chosen, target.values[chosen]
