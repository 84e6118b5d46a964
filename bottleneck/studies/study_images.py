"""The images of a study: decoded once into a plain array on disk, split into train and val.

Shapes: N images, S pixels a side, C channels, K classes.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.data.loader import load_images
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.samples import Source, read_source
from bottleneck.errors import BottleneckError, SourceError
from bottleneck.progress import Progress, silent
from bottleneck.threads import thread_budget

VAL_FRACTION = 0.25  # of train, where the source sets nothing aside for val
FEWEST_TRAIN, FEWEST_VAL = 4, 2  # images of every class


class ArrayRows:
    """Rows of an array, in memory or mapped from a file, one per image (`training.rows.Rows`)."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def take(self, images: np.ndarray) -> np.ndarray:
        """Rows of `images`, in that order."""
        return self.values[images]


@dataclass(frozen=True)
class StudyImages:
    """What a study trains on.

    pixels : (N, S, S, C) uint8. codes : (N,) int64. val : (N,) bool, else train. class_names : K names.
    digest : sha256 hex over all images, labels and splits. failed : images that could not be read.
    """

    pixels: np.ndarray
    codes: np.ndarray
    val: np.ndarray
    class_names: tuple[str, ...]
    digest: str
    failed: int

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
    source: str | Path, preprocess: Preprocess, folder: Path, *, progress: Progress = silent, **reading: Any
) -> StudyImages:
    """Decode the labelled images of `source` into `folder/pixels.npy`.

    reading : keyword arguments of `read_source`. Test images are left unseen. Without val images a quarter of
        train is set aside, by class.

    Raises
    ------
    SourceError
        There are no labels of classes, or samples have several images.
    """
    found = read_source(source, **reading)
    if not (found.samples.split == "val").any():
        found = read_source(source, **{**reading, "val_fraction": VAL_FRACTION})
    names, chosen, codes = _labelled(found)
    keys = [found.images[i] for i in found.samples.image[chosen, 0]]
    splits = found.samples.split[chosen]
    pixels = create_array(
        folder / "pixels.npy", (len(keys), preprocess.size, preprocess.size, preprocess.channels), np.uint8
    )
    kept = np.zeros(len(keys), bool)
    digest, first = hashlib.sha256(), {}
    with progress("Reading", total=len(keys), unit="images") as advance:
        for i, image in enumerate(load_images(found, keys, preprocess, workers=thread_budget().decode)):
            if image.error is None:
                row = first.setdefault(image.digest, i)  # the loader hands a copy over without pixels
                pixels[i] = pixels[row] if image.pixels is None else image.pixels
                kept[i] = True
                digest.update(image.digest + f"{names[codes[i]]}\0{splits[i]}\n".encode())
            advance(1)
    rows = pixels if kept.all() else pixels[kept]
    return StudyImages(
        rows, codes[kept], splits[kept] == "val", names, digest.hexdigest(), int((~kept).sum())
    )


def create_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A new .npy file, mapped into memory; BottleneckError where the disk lacks the room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
    if needed > free:
        raise BottleneckError(
            f"{path} would take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free.",
            "Free some, use a smaller --image-size, or --limit the samples.",
        )
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


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
