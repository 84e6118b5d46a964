"""Choose the samples that heads are fitted on: labelled ones of the train split, with their folds.

Shapes: S samples, n training samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bottleneck.errors import FitError
from bottleneck.heads.cross_validation import assign_folds
from bottleneck.heads.solver.problem import NO_FOLD
from bottleneck.samples import SampleTable, Target

HINT_MORE = "Label more samples, look at how they are split, or name another --target."


def training_samples(
    samples: SampleTable, wanted: Sequence[str] | None, cache: Path
) -> tuple[np.ndarray, list[Target]]:
    """Return the samples of the train split that have labels, and the targets on them.

    Parameters
    ----------
    wanted : names of targets; None takes all.
    cache : path, for messages.

    Returns
    -------
    train : (n,) indices of the samples that have a label of any target.
    requested : the targets, on these samples.

    Raises
    ------
    FitError
        There are no labels or no such target, or all labels of a target in the train split are equal.
    """
    require_labels(samples, cache)
    _require_targets(samples, wanted or ())
    targets = [samples.targets[name] for name in dict.fromkeys(wanted or samples.targets)]
    in_train = samples.split == "train"
    if not in_train.any():
        raise FitError(f"{cache} has no sample in the train split.", "Extract it with other splits.")
    labelled = np.any([target.labelled for target in targets], axis=0) & in_train
    for target in targets:
        _require_answers(target, in_train)
    train = np.flatnonzero(labelled)
    return train, [target.take(train) for target in targets]


def require_labels(samples: SampleTable, cache: Path) -> None:
    """Raise FitError if the samples have no target."""
    if not samples.targets:
        raise FitError(
            f"{cache} holds no labels.", "Give them with --labels FILE, or extract from a folder of classes."
        )


def with_numbers(samples: SampleTable, names: Sequence[str]) -> SampleTable:
    """Return the samples with the targets `names` as regressions. Errors as from `Target.as_numbers`."""
    _require_targets(samples, names)
    numbers = {name: samples.targets[name].as_numbers() for name in names}
    return replace(samples, targets=samples.targets | numbers)


def require_classes(samples: SampleTable, names: Sequence[str]) -> None:
    """Raise FitError unless the targets `names` are classes: numbers in a cache have lost their spelling."""
    _require_targets(samples, names)
    for name in names:
        if samples.targets[name].kind == "regression":
            raise FitError(
                f"--classes names {name!r}, which the cache holds as quantities; their spelling is gone.",
                f"Run extract again with --classes {name}: no image is computed. Or give --labels FILE.",
            )


def _require_targets(samples: SampleTable, names: Sequence[str]) -> None:
    for name in names:
        if name not in samples.targets:
            known = ", ".join(samples.targets) or "none"
            raise FitError(f"There is no target {name!r}; there are {known}.")


def _require_answers(target: Target, in_train: np.ndarray) -> None:
    """Raise FitError if a head cannot be fitted to the labels in the train split."""
    values = target.values[in_train & target.labelled]
    if len(values) < 2:
        raise FitError(
            f"Target {target.name!r} has {len(values)} labelled samples in the train split; 2 are needed.",
            HINT_MORE,
        )
    if target.kind == "class" and len(np.unique(values)) < 2:
        raise FitError(
            f"All {len(values)} labelled samples of target {target.name!r} in the train split are of one "
            f"class, {target.class_names[values[0]]!r}; a head needs two.",
            HINT_MORE,
        )
    if target.kind == "regression" and np.ptp(values) == 0:
        raise FitError(
            f"All values of target {target.name!r} in the train split are {values[0]:g}; a head needs two.",
            HINT_MORE,
        )
    if target.kind == "multilabel" and not target.class_names:
        raise FitError(f"Target {target.name!r} has no label at all.", HINT_MORE)


def folds_of(
    target: Target, samples: SampleTable, train: np.ndarray, cv: int, seed: int, notes: list[str]
) -> np.ndarray:
    """Return (n,) folds of a target on the samples `train`, fewer than `cv` if samples or groups are few.

    What a user has to know about folds, classes and groups is appended to `notes`.
    """
    seen = target.labelled
    groups = None if samples.group is None else samples.group[train]
    units = int(seen.sum()) if groups is None else len(np.unique(groups[seen]))
    most = units
    if target.kind == "class":
        counts = np.bincount(target.values[seen], minlength=len(target.class_names))
        most = min(units, max(int(counts.max()), 2))
        _note_classes(target, counts, cv, notes)
        if groups is not None:
            _note_groups(target, groups, notes)
    count = min(cv, most)
    if count < 2:
        notes.append(f"Target {target.name!r} has one group only: there was no cross-validation.")
        return np.full(len(train), NO_FOLD, np.int16)
    if count < cv:
        notes.append(f"Target {target.name!r} has too few samples for {cv} folds: {count} were used.")
    fold = assign_folds(target, count, groups, seed)
    if target.kind == "class":
        alone = [k for k in range(count) if len(np.unique(target.values[seen & (fold != k)])) < 2]
        if alone:
            notes.append(f"Target {target.name!r} has one class only when fold {alone[0] + 1} is held out.")
    return fold


def _note_classes(target: Target, counts: np.ndarray, cv: int, notes: list[str]) -> None:
    rare = [name for name, count in zip(target.class_names, counts, strict=True) if 0 < count < cv]
    absent = [name for name, count in zip(target.class_names, counts, strict=True) if count == 0]
    for names, what in ((rare, f"fewer than {cv} training samples"), (absent, "no training sample")):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            shown = ", ".join(map(repr, names[:5])) + more
            notes.append(f"Target {target.name!r}: {shown} with {what}.")


def _note_groups(target: Target, groups: np.ndarray, notes: list[str]) -> None:
    """Note classes whose samples are all in one group, so that they are held out together."""
    for code, name in enumerate(target.class_names):
        members = target.values == code
        if members.any() and len(np.unique(groups[members])) == 1:
            notes.append(
                f"Target {target.name!r}: all samples of {name!r} are of one group, so that cross-validation "
                "cannot tell how well it is recognised."
            )
