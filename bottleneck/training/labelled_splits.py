"""The labelled samples by split: which are trained on, which choose the epoch, which are only reported.

Shapes: S samples of the cache, n of a set, M images per sample, P covariates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from bottleneck.data.splits import set_aside
from bottleneck.errors import FitError, Note, SourceError, counted, quoted, verb
from bottleneck.fitting.training_set import with_training_classes
from bottleneck.names import SPLITS
from bottleneck.samples import SampleTable
from bottleneck.training.batches import SampleSet
from bottleneck.training.config import ALL, TrainingConfig


@dataclass(frozen=True)
class LabelledSplits:
    """The labelled samples of a table by their split.

    table : SampleTable
    labels : (S,) codes of the target
    rows : {split: (n,) indices into the table}; "train" and "val" always, "test" where there is one.
    carved : whether val was taken from train, because the cache has none.
    notes : what was left out or set aside.
    """

    table: SampleTable
    labels: np.ndarray
    rows: dict[str, np.ndarray]
    carved: bool
    notes: tuple[Note, ...] = ()

    def samples(self) -> dict[str, SampleSet]:
        """Return the samples of each split."""
        return {
            split: SampleSet(self.table.image[rows], self.table.covariates[rows], self.labels[rows])
            for split, rows in self.rows.items()
        }

    def without(self, unread: Mapping[int, str]) -> LabelledSplits:
        """Return the splits without the samples of some images. unread : by image, why it has no row.

        Raises FitError where no sample to train on or to choose by is left.
        """
        lost = np.asarray(np.isin(self.table.image, list(unread)).any(axis=1))
        rows = {split: indices[~lost[indices]] for split, indices in self.rows.items()}
        empty = [split for split in ("train", "val") if not len(rows[split])]
        if empty:
            n, reason = len(self.rows[empty[0]]), next(iter(unread.values()))
            raise FitError(
                f"None of the {n} {empty[0]} samples has images that can be read: {reason}.",
                "Put the images back where the cache names them.",
            )
        return replace(self, rows={split: indices for split, indices in rows.items() if len(indices)})

    def counts(self) -> dict[str, int]:
        """Return the number of samples of each split."""
        return {split: len(rows) for split, rows in self.rows.items()}


def labelled_splits(
    table: SampleTable,
    target: str,
    *,
    val_fraction: float = TrainingConfig.val_fraction,
    seed: int = TrainingConfig.seed,
) -> LabelledSplits:
    """Return the samples that have a label of the class target `target`, by split.

    Where there is no val split, `val_fraction` of train becomes one: stratified by class, groups kept whole.

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
    unlabelled = int((~table.targets[target].labelled).sum())
    table, notes = with_training_classes(table, (target,))
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
            f"All {counted(len(rows['train']), 'train sample is', 'train samples are')} of one class of "
            f"{target!r}; training needs two."
        )
    rows = {split: indices for split, indices in rows.items() if len(indices)}
    if unlabelled:
        text = (
            f"{unlabelled:,} of {counted(len(table), 'sample')} {verb(unlabelled, 'has', 'have')} no "
            f"label of target {target!r} and {verb(unlabelled)} not used."
        )
        notes.append(Note("samples-unlabelled", text, details={"target": target, "samples": unlabelled}))
    if carved:
        val, train = len(rows["val"]), len(rows["train"])
        text = (
            f"There was no val split: {val:,} of {counted(val + train, 'train sample')} became it, and "
            "nothing was "
            "fitted on them. --val-fraction sets their share."
        )
        notes.append(Note("val-taken-from-train", text, details={"val": val, "train": train}))
    return LabelledSplits(table, chosen.values, rows, carved, tuple(notes))


def _carve(
    table: SampleTable, target: str, train: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `train` that stay train, and those that become val."""
    part = table.take(train)
    part = replace(part, targets={target: part.targets[target]})
    try:
        split = set_aside(part, val_fraction=fraction, seed=seed)
    except SourceError as error:
        raise FitError(
            f"There is no val split, and {counted(len(train), 'train sample')} cannot give one: "
            f"{error.message}",
            "Extract with --val-fraction, or bring more samples.",
        ) from None
    # Whole groups may have taken all samples of a class from train, which must learn every class.
    labels = part.targets[target].values
    back = (split == "val") & ~np.isin(labels, labels[split == "train"])
    if part.group is not None:
        back = (split == "val") & np.isin(part.group.astype(str), part.group[back].astype(str))
    split[back] = "train"
    if not (split == "val").any():
        raise FitError(
            f"There is no val split, and none can be taken from {counted(len(train), 'train sample')}: "
            "each group has a "
            f"class of {target!r} that no other group has.",
            "Extract with a val split, or bring more samples.",
        )
    return train[split == "train"], train[split == "val"]


def shots_notes(splits: LabelledSplits, target: str, shots: int | str) -> list[Note]:
    """Return a note where a class has fewer than `shots` train samples, so that all of them are taken."""
    counts = np.bincount(splits.labels[splits.rows["train"]])
    names = splits.table.targets[target].class_names
    fewer = {names[code]: int(n) for code, n in enumerate(counts) if shots != ALL and n < int(shots)}
    if not fewer:
        return []
    text = f"Fewer than {counted(int(shots), 'train sample')} of {quoted(fewer)}: all of them are taken."
    return [Note("fewer-shots", text, True, {"shots": shots, "classes": fewer})]


def few_shots(splits: LabelledSplits, shots: int | str, seed: int) -> LabelledSplits:
    """The splits with `shots` train samples of each class, drawn by `seed`; "all" changes nothing."""
    if shots == ALL:
        return splits
    generator = np.random.default_rng([seed, int(shots)])
    train = generator.permutation(splits.rows["train"])
    labels = splits.labels[train]
    drawn = [train[labels == code][: int(shots)] for code in np.unique(labels)]
    return replace(splits, rows={**splits.rows, "train": np.sort(np.concatenate(drawn))})
