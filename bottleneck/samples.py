"""The samples of a source (images, split, targets), and the protocol by which their rows are read.

`data` reads a sample table from a folder or a manifest, `store` writes it to the cache. `store`, `heads` and
`training` exchange rows of features, feature maps or pixels as `RowReader` objects. Plain arrays, no torch.

Shapes: I images, S samples, M images per sample, L labels of a multi-label target, P covariates, n rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from bottleneck.errors import CacheError, Note, SourceError, counted
from bottleneck.names import TARGET_KINDS

UNLABELLED = -1
MOST_SHARDS = 1_000_000
FINISH = "Run the same `bottleneck extract` again: it goes on where it was."


class RowReader(Protocol):
    """Rows of numbers, one per image or sample, in memory or in files.

    Attributes
    ----------
    shape : (n, …) of all rows.
    dtype : as `read` and `take` return them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @abstractmethod
    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows `indices` (m,), in that order, as an array (m, …)."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows start … stop−1."""
        return self.take(np.arange(start, stop))


@dataclass(frozen=True)
class InputBlock:
    """Columns start … stop−1 of rows that belong together: a node of one image, or the covariates."""

    name: str
    start: int
    stop: int


class ArrayRows(RowReader):
    """An array (n, …), in memory or mapped from a file, as a row reader."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return a copy of the rows `indices`."""
        return self.array[indices]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows start … stop−1, without a copy."""
        return self.array[start:stop]


@dataclass(frozen=True)
class Target:
    """What is to be predicted of every sample: a class, labels or a number.

    Parameters
    ----------
    name : str
        Column name in a manifest; "label" for a folder.
    kind : {"class", "multilabel", "regression"}
    values : ndarray
        "class": (S,) int64 codes into `class_names`, −1 where unlabelled.
        "multilabel": (S, L) uint8 of 0 and 1; a row of 255 is unlabelled.
        "regression": (S,) float64, NaN where unlabelled.
    class_names : tuple of str
        Names of the codes ("class") or of the L columns ("multilabel"); empty for "regression".
    """

    name: str
    kind: str
    values: np.ndarray
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in TARGET_KINDS:
            raise SourceError(
                f"Target {self.name!r} has kind {self.kind!r}; expected one of {', '.join(TARGET_KINDS)}."
            )

    @property
    def labelled(self) -> np.ndarray:
        """Return (S,) bool, True where the sample has a label."""
        if self.kind == "class":
            return self.values != UNLABELLED
        if self.kind == "multilabel":
            return (self.values != 255).all(axis=1)
        return np.isfinite(self.values)

    def take(self, rows: np.ndarray) -> Target:
        """Return the target of the samples `rows` (indices or a mask)."""
        return replace(self, values=self.values[rows])

    def answer(self, row: int) -> str | float | None:
        """Return the class, number or labels (joined by |) of a sample, None where it is unlabelled."""
        value = self.values[row]
        if not self.take(np.array([row])).labelled[0]:
            return None
        if self.kind == "class":
            return self.class_names[value]
        if self.kind == "regression":
            return float(value)
        return "|".join(self.class_names[k] for k in np.flatnonzero(value == 1))

    def as_numbers(self) -> Target:
        """Return a regression target of the class names. Raise SourceError unless all are numbers.

        A column of whole numbers may name classes (digits) or measure something (ages), which only the user
        knows.
        """
        if self.kind == "regression":
            return self
        try:
            numbers = [float(name) for name in self.class_names]
        except ValueError:
            numbers = []
        if self.kind != "class" or not numbers:
            named = ", ".join(map(repr, self.class_names[:4]))
            raise SourceError(
                f"Target {self.name!r} is a {self.kind} one of {named}; a regression needs numbers."
            )
        return replace(
            self, kind="regression", values=np.array([*numbers, np.nan])[self.values], class_names=()
        )


@dataclass(frozen=True)
class Shard:
    """Which shards of a whole source a table holds.

    of : number of shards of the source. numbers : those that are here, from 1, in order.
    plan : sha256 of each part of the whole source, equal in all its shards (`data.shards.plan_of`).
    """

    of: int
    numbers: tuple[int, ...]
    plan: Mapping[str, str]

    @property
    def missing(self) -> tuple[int, ...]:
        """Return the numbers of the shards that are not here."""
        return tuple(sorted(set(range(1, self.of + 1)) - set(self.numbers)))


@dataclass(frozen=True)
class SampleTable:
    """Samples that point at images by their row in the image table.

    Parameters
    ----------
    key : (S,) object array of str
        Unique name of each sample; the image's key where a sample is one image.
    image : (S, M) int64
        Rows in the image table.
    split : (S,) object array of str
        "train", "val" or "test".
    targets : dict of str to Target
    covariates : (S, P) float64
    covariate_names : tuple of P str
    group : (S,) object array of str, or None
        Samples of one group stay on one side of every split and fold.
    columns : dict of str to tuple of str
        Where the table was read from a manifest: its columns by role ("image", "label", "split", "group",
        "sample", "covariate"), and the "separator" between labels of a cell.
    set_aside : dict of str to number
        Where samples were set aside from train: the fractions of "val" and "test", and the "seed".
    shard : Shard, or None
        Where the table holds some shards of a source; None where it holds all of it.
    position : (S,) int64, or None
        Place of each sample in the whole source, where `shard` is given.
    finished : bool
        False where the extraction was interrupted before it wrote the samples.
    """

    key: np.ndarray
    image: np.ndarray
    split: np.ndarray
    targets: dict[str, Target] = field(default_factory=dict)
    covariates: np.ndarray = None  # type: ignore[assignment]  # becomes (S, 0) below
    covariate_names: tuple[str, ...] = ()
    group: np.ndarray | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    set_aside: Mapping[str, float] = field(default_factory=dict)
    shard: Shard | None = None
    position: np.ndarray | None = None
    finished: bool = True

    def __post_init__(self) -> None:
        if self.covariates is None:
            object.__setattr__(self, "covariates", np.zeros((len(self.key), 0)))
        S = len(self.key)
        columns = {"image": self.image, "split": self.split, "covariates": self.covariates}
        columns |= {f"target {name!r}": target.values for name, target in self.targets.items()}
        if self.group is not None:
            columns["group"] = self.group
        if self.position is not None:
            columns["position"] = self.position
        for name, values in columns.items():
            if len(values) != S:
                raise SourceError(
                    f"The sample table has {counted(S, 'key')} but {counted(len(values), 'row')} of {name}."
                )
        if self.image.ndim != 2:
            raise SourceError(f"The sample table's images have shape {self.image.shape}; expected (S, M).")
        if self.covariates.shape != (S, len(self.covariate_names)):
            raise SourceError(
                f"The covariates have shape {self.covariates.shape} but "
                f"{counted(len(self.covariate_names), 'name')}."
            )

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows: np.ndarray) -> SampleTable:
        """Return the table of the samples `rows` (indices or a mask), in that order."""
        return replace(
            self,
            key=self.key[rows],
            image=self.image[rows],
            split=self.split[rows],
            targets={name: target.take(rows) for name, target in self.targets.items()},
            covariates=self.covariates[rows],
            group=None if self.group is None else self.group[rows],
            position=None if self.position is None else self.position[rows],
        )

    def require_finished(self, cache: str = "The cache") -> None:
        """Raise CacheError, which names `cache`, if an interrupted extraction has not written samples yet."""
        if not self.finished:
            raise CacheError(f"{cache} has no labels and splits yet: its extraction was interrupted.", FINISH)

    def part_notes(self) -> list[Note]:
        """Return a note where the extraction was interrupted, or that names the shards that are missing."""
        if not self.finished:
            text = f"The extraction was interrupted: rows are those of a part of the images. {FINISH}"
            return [Note("extraction-unfinished", text, True)]
        if self.shard is None or not self.shard.missing:
            return []
        missing, of = self.shard.missing, self.shard.of
        shown = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
        text = (
            f"Missing of the {counted(of, 'shard')} of the source: {shown}. Add them with `bottleneck "
            "cache merge`."
        )
        return [Note("shards-missing", text, True, {"missing": list(missing), "of": of})]
