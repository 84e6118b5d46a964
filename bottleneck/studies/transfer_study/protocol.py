"""What the transfer study trains, run by run, in the terms of Yosinski et al. 2014.

The classes are split into halves A and B, and networks are trained on either half.

    base      all layers are trained on one half (baseA, baseB)
    BnB       selffer: the first n layers are copied from the base of B and frozen, the others are initialised
              anew and trained on B. It shows the loss from separating layers that were trained together.
    AnB       transfer: as BnB, but the first n layers come from the base of A. What it loses beyond BnB shows
              how specific the layers are to A.
    BnB+ AnB+ as above, but all layers are trained: the copied ones are fine-tuned
    random    the first n layers are frozen with their random weights

The published numbers are here too, to be drawn beside the user's.
The images are decoded once into an array on disk, split into train and val.

Shapes: N images, S pixels a side, K classes.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bottleneck.data.config import ReadConfig
from bottleneck.data.loader import fill_pixels
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.read_source import read_source
from bottleneck.data.source import Source
from bottleneck.errors import BottleneckError, Note, SourceError, counted, listed, verb
from bottleneck.progress import SILENT, Reporter
from bottleneck.studies.study_config import StudyConfig
from bottleneck.training.inputs import unread_note

BASES = ("baseA", "baseB")
COPIES = ("BnB", "BnB+", "AnB", "AnB+", "random")
KINDS = (*BASES, *COPIES)
FEWEST_CLASSES = 4

Halves = tuple[Sequence[str], Sequence[str]]  # class names of A and of B

LEGEND = (
    "base B: a network trained on B. BnB, a “selffer”: its first n layers are copied from base B, and the "
    "rest is trained anew. AnB: they are copied from a network trained on A. Copied layers are frozen; "
    "with +, they are fine-tuned."
)

# Yosinski, Clune, Bengio & Lipson, "How transferable are features in deep neural networks?", NeurIPS 2014:
# ImageNet, halves of 500 classes, an eight-layer AlexNet. Top-1 validation accuracies in percent, the mean of
# the ten highest validation points in the authors' published logs; those logs mix targets.
PUBLISHED_BASE = 62.5
PUBLISHED = {  # n = 1 … 7
    "BnB": (62.7, 62.4, 62.1, 60.5, 59.4, 61.9, 62.3),
    "BnB+": (61.8, 62.2, 63.1, 62.9, 63.0, 62.8, 62.7),
    "AnB": (62.8, 62.4, 61.9, 60.0, 57.8, 58.1, 54.3),
    "AnB+": (63.7, 63.6, 64.3, 64.0, 64.5, 64.6, 64.7),
}
PUBLISHED_SOURCE = (
    "Yosinski et al. 2014, ImageNet: mean of the ten highest validation points in the authors' logs"
)
VAL_FRACTION = 0.25  # of train, where the source sets nothing aside for val
FEWEST_TRAIN, FEWEST_VAL = 4, 2  # images of every class


@dataclass(frozen=True)
class Run:
    """One training.

    kind : one of `KINDS`. n : number of copied layers, 0 for a base.
    share : of A's images that the base of A was trained on.
    """

    seed: int
    kind: str
    n: int = 0
    share: float = 1.0

    @property
    def name(self) -> str:
        """Stem of its files: `seed0-AnB+-3`, `seed0-AnB+-7-share0.25`."""
        layers = f"-{self.n}" if self.n else ""
        share = f"-share{self.share:g}" if self.share < 1 else ""
        return f"seed{self.seed}-{self.kind}{layers}{share}"

    @property
    def frozen(self) -> bool:
        """Whether the copied layers are frozen."""
        return self.n > 0 and not self.kind.endswith("+")

    @property
    def source(self) -> Run | None:
        """The base run from which layers are copied; None if none are."""
        if self.kind in BASES or self.kind == "random":
            return None
        return Run(self.seed, f"base{self.kind[0]}", share=self.share)

    @property
    def half(self) -> str:
        """The half, "A" or "B", that it is trained and measured on."""
        return "A" if self.kind == "baseA" else "B"


def plan_runs(config: StudyConfig, layers: int) -> list[Run]:
    """List all runs for a network with L `layers`, each after the run that it copies from."""
    runs = []
    for seed in range(config.seeds):
        runs += [Run(seed, kind) for kind in BASES]
        runs += [Run(seed, kind, n) for n in range(1, layers) for kind in COPIES]
        for share in config.shares:
            runs += [Run(seed, "baseA", share=share), Run(seed, "AnB+", layers - 1, share)]
    return runs


def class_halves(names: Sequence[str], seed: int, given: Halves | None = None) -> dict[str, np.ndarray]:
    """Return the class codes of A and of B, sorted: two halves drawn with `seed`, or the `given` names.

    Raises
    ------
    SourceError
        Fewer than four classes, fewer than two in a half, or names that are unknown or in both halves.
    """
    if len(names) < FEWEST_CLASSES:
        raise SourceError(
            f"The study splits the classes into two halves of at least two; the source has {len(names)}.",
            "Name a source of four classes or more, better of dozens.",
        )
    if given is None:
        order = np.random.default_rng(seed).permutation(len(names))
        return {"A": np.sort(order[: len(names) // 2]), "B": np.sort(order[len(names) // 2 :])}
    code = {name: i for i, name in enumerate(names)}
    unknown = [name for half in given for name in half if name not in code]
    if unknown:
        raise SourceError(
            f"The source has no class {unknown[0]!r}; its classes are {listed(names, 12)}.",
            "Write one class a line into the files of the halves.",
        )
    a, b = (np.array(sorted({code[name] for name in half}), dtype=np.int64) for half in given)
    shared = np.intersect1d(a, b)
    if len(shared):
        raise SourceError(f"Class {names[shared[0]]!r} is in both halves; expected it in one.")
    if min(len(a), len(b)) < 2:
        raise SourceError(
            f"The halves have {len(a)} and {counted(len(b), 'class', 'classes')}; expected 2 or more each."
        )
    return {"A": a, "B": b}


@dataclass(frozen=True)
class StudyImages:
    """The images of a study with their classes and splits.

    pixels : (N, S, S, channels) uint8. codes : (N,) int64, −1 where the image could not be read.
    val : (N,) bool; the others are train. class_names : K names.
    digest : sha256 of all images, labels and splits, in hexadecimal. notes : on the source.
    """

    pixels: np.ndarray
    codes: np.ndarray
    val: np.ndarray
    class_names: tuple[str, ...]
    digest: str
    notes: tuple[Note, ...] = ()

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
                        f"Class {self.class_names[code]!r} of half {half} has {counted(train, 'image')} "
                        "to train on "
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
    carved = not (listed.samples.split == "val").any()
    if carved:
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
    failures = {image.key: image.error for image in images if image.error is not None}
    decided = _notes(listed, len(keys), failures, carved)
    notes = (*listed.notes, *decided, *listed.reading_notes())
    return StudyImages(pixels, codes, splits == "val", names, digest.hexdigest(), notes)


def _notes(source: Source, used: int, failures: dict[str, str], carved: bool) -> Iterator[Note]:
    """Yield what was decided on the images of a source, of which `used` have a label and are not test."""
    if carved:
        text = f"There was no val split: {VAL_FRACTION:.0%} of train, stratified by class, became it."
        yield Note("val-taken-from-train", text, details={"fraction": VAL_FRACTION})
    if unused := len(source.samples) - used:
        text = (
            f"{unused:,} of {counted(len(source.samples), 'sample')} {verb(unused)} not "
            "used: they are test, or have no label."
        )
        yield Note("samples-not-used", text, details={"samples": unused})
    if failures:
        yield unread_note(failures)


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
        raise SourceError(
            f"Samples have {counted(samples.image.shape[1], 'image')} each; the study takes one each."
        )
    chosen = np.flatnonzero(target.labelled & (samples.split != "test"))
    return target.class_names, chosen, target.values[chosen]
