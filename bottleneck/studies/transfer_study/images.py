"""The images of a study: decoded once into an array on disk, split into train and val.

Shapes: N images, S pixels a side, K classes.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bottleneck.data.config import ReadConfig
from bottleneck.data.loader import fill_pixels
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source, read_source
from bottleneck.errors import BottleneckError, SourceError
from bottleneck.progress import SILENT, Reporter

VAL_FRACTION = 0.25  # of train, where the source sets nothing aside for val
FEWEST_TRAIN, FEWEST_VAL = 4, 2  # images of every class


@dataclass(frozen=True)
class StudyImages:
    """The images of a study with their classes and splits.

    pixels : (N, S, S, channels) uint8. codes : (N,) int64, −1 where the image could not be read.
    val : (N,) bool; the others are train. class_names : K names.
    digest : sha256 of all images, labels and splits, in hexadecimal.
    """

    pixels: np.ndarray
    codes: np.ndarray
    val: np.ndarray
    class_names: tuple[str, ...]
    digest: str

    @property
    def failed(self) -> int:
        """Number of images that could not be read."""
        return int((self.codes < 0).sum())

    def of_classes(self, classes: np.ndarray, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the train and of the val images of `classes`, in ascending order.

        share : of every class's train images, the first ones in the source's order; at least one.
        """
        train, val = [], []
        for code in classes:
            of_class = np.flatnonzero(self.codes == code)
            all_train = of_class[~self.val[of_class]]
            train.append(all_train[: max(1, round(share * len(all_train)))])
            val.append(of_class[self.val[of_class]])
        return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))

    def labels(self, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the class of each of `rows` as an index into the sorted `classes`."""
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
    source: str | Path,
    preprocess: Preprocess,
    folder: Path,
    config: ReadConfig,
    *,
    reporter: Reporter = SILENT,
) -> StudyImages:
    """Decode the labelled images of `source` into a temporary file in `folder`.

    Test images are not read. Without val images a quarter of train is set aside, stratified by class.

    Raises
    ------
    SourceError
        There are no labels of classes, or samples have several images.
    """
    listed = read_source(source, config)
    if not (listed.samples.split == "val").any():
        listed = read_source(source, replace(config, val_fraction=VAL_FRACTION))
    names, chosen, codes = _labelled(listed)
    keys = [listed.images[i] for i in listed.samples.image[chosen, 0]]
    splits = listed.samples.split[chosen]
    shape = (len(keys), preprocess.size, preprocess.size, preprocess.channels)
    pixels = temporary_array(folder, shape, np.uint8)
    digest = hashlib.sha256()
    with reporter.step("Reading", total=len(keys), unit="images") as advance:
        images = fill_pixels(pixels, listed, keys, preprocess, advance=advance)
    for i, image in enumerate(images):
        if image.digest is None or image.error is not None:
            codes[i] = -1
        else:
            digest.update(image.digest + f"{names[codes[i]]}\0{splits[i]}\n".encode())
    return StudyImages(pixels, codes, splits == "val", names, digest.hexdigest())


def temporary_array(
    folder: Path, shape: tuple[int, ...], dtype: type, filled: int | None = None
) -> np.ndarray:
    """Return an array in an unnamed file in `folder`. The system deletes it with the array or the process.

    filled : number of rows that will be written; all by default. Raises BottleneckError if the disk is full.
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


def _labelled(source: Source) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return the class names, the rows of train and val samples that have a class, and their codes."""
    samples = source.samples
    target = next((target for target in samples.targets.values() if target.kind == "class"), None)
    if target is None:
        raise SourceError(
            f"{source.root} has no classes to split into halves.",
            "Name a folder with one subfolder a class, or a --label-column of a manifest.",
        )
    if samples.image.shape[1] != 1:
        raise SourceError(f"Samples have {samples.image.shape[1]} images each; the study takes one each.")
    chosen = np.flatnonzero(target.labelled & (samples.split != "test"))
    return target.class_names, chosen, target.values[chosen]
