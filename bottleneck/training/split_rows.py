"""Which samples are trained on, which choose the epoch, which are only reported.

Shapes: S samples of the cache, n of a set, M images per sample, P covariates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bottleneck.data.splits import set_aside
from bottleneck.errors import FitError, SourceError
from bottleneck.names import SPLITS
from bottleneck.samples import SampleTable
from bottleneck.training.batches import SampleSet


@dataclass(frozen=True)
class Sets:
    """The labelled samples by their part in training.

    rows : {split: (n,) rows of the sample table}; "train" and "val" always, "test" where there is one.
    carved : whether val was taken from train, because the cache has none.
    """

    table: SampleTable
    labels: np.ndarray
    rows: dict[str, np.ndarray]
    carved: bool

    def samples(self, split: str) -> SampleSet:
        """The samples of a split."""
        rows = self.rows[split]
        return SampleSet(self.table.image[rows], self.table.covariates[rows], self.labels[rows])

    def images(self) -> np.ndarray:
        """Rows of all images that any split needs, ascending."""
        return np.unique(self.table.image[np.concatenate(list(self.rows.values()))])


def labelled_sets(table: SampleTable, target: str, *, val_fraction: float = 0.2, seed: int = 0) -> Sets:
    """Split the samples that carry a label of the class target `target`.

    Where there is no val split, `val_fraction` of train becomes one: stratified by class, groups whole.

    Raises
    ------
    FitError
        No such target, no samples to train on, one class only, or no val possible.
    """
    if target not in table.targets:
        raise FitError(
            f"There is no target {target!r}; there are {', '.join(map(repr, table.targets)) or 'none'}.",
            "Choose one of them, or bring the labels: --labels FILE beside a cache, else --label-column.",
        )
    chosen = table.targets[target]
    if chosen.kind != "class":
        raise FitError(f"Target {target!r} is of kind {chosen.kind}; training needs one of kind class.")
    rows = {split: np.flatnonzero((table.split == split) & chosen.labelled) for split in SPLITS}
    if not len(rows["train"]):
        raise FitError(f"No train sample has a label of target {target!r}.")
    carved = not len(rows["val"])
    if carved:
        rows["train"], rows["val"] = _carve(table, target, rows["train"], val_fraction, seed)
    if len(np.unique(chosen.values[rows["train"]])) < 2:
        raise FitError(
            f"All {len(rows['train'])} train samples are of one class of {target!r}; training needs two."
        )
    kept = {split: found for split, found in rows.items() if len(found)}
    return Sets(table, chosen.values, kept, carved)


def _carve(
    table: SampleTable, target: str, train: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of train and of val, both out of `train`."""
    part = table.take(train)
    part = replace(part, targets={target: part.targets[target]})
    try:
        split = set_aside(part, val_fraction=fraction, seed=seed)
    except SourceError as error:
        raise FitError(
            f"There is no val split, and {len(train)} train samples cannot give one: {error.message}",
            "Extract with --val-fraction, or bring more samples.",
        ) from None
    return train[split == "train"], train[split == "val"]


def few_shots(sets: Sets, shots: int | str, seed: int) -> Sets:
    """The same sets with `shots` train samples of each class, drawn by `seed`; "all" keeps every one."""
    if shots == "all":
        return sets
    generator = np.random.default_rng([seed, int(shots)])
    train = generator.permutation(sets.rows["train"])
    labels = sets.labels[train]
    kept = [train[labels == code][: int(shots)] for code in np.unique(labels)]
    return replace(sets, rows={**sets.rows, "train": np.sort(np.concatenate(kept))})
