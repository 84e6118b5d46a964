"""How a source of images is read. This module imports neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bottleneck.errors import SourceError


@dataclass(frozen=True)
class LabelConfig:
    """How columns of labels become targets.

    classes : targets whose cells are names of classes, also where all are numbers.
    regression : targets whose cells are quantities, also where all are whole numbers.
    label_separator : character between the labels of one cell; such columns become multi-label targets.
    """

    classes: tuple[str, ...] = ()
    regression: tuple[str, ...] = ()
    label_separator: str | None = None

    def __post_init__(self) -> None:
        for name in ("classes", "regression"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.label_separator == "":
            raise SourceError("--label-separator is empty; expected a character such as |.")
        if both := set(self.classes) & set(self.regression):
            raise SourceError(
                f"Target {min(both)!r} is named by --classes and by --regression; expected one of them."
            )


@dataclass(frozen=True)
class ReadConfig:
    """Which columns of a manifest mean what, and which samples are taken.

    Columns are found by name, without regard to case and outer spaces.

    image_columns : M columns of image paths; "image", else "file_name", by default.
    label_columns : each a target of its name; "label" by default, where there is one.
    split_column : train, val or test; "split" by default, where there is one; else all is train.
    group_column : samples with equal values stay on one side of every split and fold.
    sample_column : unique sample keys; by default the image's key, several joined by "|".
    covariate_columns : P columns of numbers that a head gets beside the features.
    classes, regression : targets whose numbers are names of classes, or quantities (`LabelConfig`).
    label_separator : character between the labels of one cell, such as "|" (`LabelConfig`).
    head_target : name and kind of the target that a head predicts; its column is read as that kind.
    val_fraction, test_fraction : fractions of the train samples to set aside (`splits.set_aside`).
    seed : decides which samples are set aside.
    limit : keep this many samples, spread evenly over splits and classes, without changing a sample's split.
    shard : "I/N" takes the samples of shard I of N, "auto" those that a Slurm array or torchrun assigns
        (`data.shards`).
    cache_images : folder that keeps the files of images which are read over a network (`data.kept_images`).
    remembered : columns by role that a model was made with (`SampleTable.columns`), read where no flag names
        others.
    inputs_only : read images and covariates alone, a sample for each row; no labels, splits or groups unless
        they are named. `Source.cells` then holds the other columns.
    """

    image_columns: tuple[str, ...] = ()
    label_columns: tuple[str, ...] = ()
    split_column: str | None = None
    group_column: str | None = None
    sample_column: str | None = None
    covariate_columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    regression: tuple[str, ...] = ()
    label_separator: str | None = None
    head_target: tuple[str, str] | None = None
    val_fraction: float = 0.0
    test_fraction: float = 0.0
    seed: int = 0
    limit: int | None = None
    shard: str | None = None
    cache_images: str | None = None
    remembered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    inputs_only: bool = False

    def __post_init__(self) -> None:
        for name in ("image_columns", "label_columns", "covariate_columns", "classes", "regression"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.limit is not None and self.limit < 1:
            raise SourceError(f"--limit is {self.limit}; expected 1 or more.")

    @property
    def labels(self) -> LabelConfig:
        """How columns of labels are read."""
        target, kind = self.head_target or ("", "")
        named = {"class": self.classes, "regression": self.regression}
        if kind in named and target not in self.classes + self.regression:
            named[kind] += (target,)
        return LabelConfig(named["class"], named["regression"], self.label_separator)

    @property
    def names_columns(self) -> bool:
        """True where the user named any column of a manifest."""
        named = self.image_columns + self.label_columns + self.covariate_columns
        return any((*named, self.split_column, self.group_column, self.sample_column))
