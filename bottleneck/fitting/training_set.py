"""Choose what heads are fitted on: labelled samples of the train split, their classes and their folds.

Shapes: S samples, n training samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bottleneck.data.table_file import as_argument
from bottleneck.errors import FitError, Note, counted, quoted, verb
from bottleneck.heads.cross_validation import assign_folds
from bottleneck.heads.head_format import LARGEST
from bottleneck.heads.solver.problem import NO_FOLD
from bottleneck.samples import UNLABELLED, SampleTable, Target

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
    samples.require_finished(str(cache))
    if not samples.targets:
        raise FitError(
            f"{cache} holds no labels.",
            "Extract from a folder of classes or with --label-column, or give --labels FILE to fit-head.",
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
                f"Run extract again with --classes {as_argument(name)}: no image is computed. "
                "Or give --labels FILE.",
            )


def with_training_classes(
    samples: SampleTable, names: Sequence[str] | None = ()
) -> tuple[SampleTable, list[Note]]:
    """Return the samples with the classes and labels that the train split has, and a note on the others.

    A class that no train sample has cannot be learnt: its column of a head has no optimum, and spoils the
    probabilities of the other classes. Samples of such a class become unlabelled, and are counted in the
    note; the column of such a label is removed. This is the one place where classes are left out: every kind
    of head and every training takes its targets from here.

    Parameters
    ----------
    names : of the targets; none takes all. Those that do not exist are skipped.

    Returns
    -------
    samples : with the codes of the remaining classes in their order.
    notes : one per target that lost classes, with `unseen` {class: samples in val and test}.
    """
    in_train = samples.split == "train"
    reduced, notes = dict(samples.targets), []
    for name in names or samples.targets:
        target = samples.targets.get(name)
        if target is None or target.kind == "regression":
            continue
        seen = _counts(target, in_train) > 0
        if seen.all():
            continue
        counts = _counts(target, ~in_train)
        unseen = {target.class_names[code]: int(counts[code]) for code in np.flatnonzero(~seen)}
        kept = tuple(name for name, has in zip(target.class_names, seen, strict=True) if has)
        if target.kind == "class":
            code_of = np.append(np.where(seen, np.cumsum(seen) - 1, UNLABELLED), UNLABELLED)
            values = code_of[target.values]  # UNLABELLED takes the last element
        else:
            values = target.values[:, seen]
        reduced[name] = replace(target, values=values, class_names=kept)
        notes.append(_note_unseen(target, unseen))
    return replace(samples, targets=reduced), notes


def _counts(target: Target, among: np.ndarray) -> np.ndarray:
    """Return the number of labelled samples `among` (S,) bool that have each class or label, (K,)."""
    values = target.values[among & target.labelled]
    if target.kind == "class":
        return np.bincount(values, minlength=len(target.class_names))
    return values.sum(axis=0, dtype=np.int64)


def _note_unseen(target: Target, unseen: dict[str, int]) -> Note:
    left_out = sum(unseen.values())
    noun = ("class", "classes") if target.kind == "class" else ("label", "labels")
    these = verb(len(unseen), f"this {noun[0]} takes", f"these {noun[1]} take")
    answers = counted(left_out, "answer in another split is", "answers in other splits are")
    measured = f", and {answers} not measured" if left_out else ""
    return Note(
        "classes-without-training-samples",
        f"Target {target.name!r}: {quoted(unseen)} with no training sample: {these} no part in the "
        f"fit{measured}. Add train samples of {verb(len(unseen), 'it', 'them')}.",
        changes_result=True,
        details={"target": target.name, "unseen": unseen},
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
            f"Target {target.name!r} has {counted(len(values), 'labelled sample')} in the train split; 2 "
            "are needed.",
            HINT_MORE,
        )
    if target.kind == "class" and len(np.unique(values)) < 2:
        raise FitError(
            f"All {counted(len(values), 'labelled sample')} of target {target.name!r} in the train split "
            "are of one "
            f"class, {target.class_names[values[0]]!r}; a head needs two.",
            HINT_MORE,
        )
    if target.kind == "regression" and np.ptp(values) == 0:
        raise FitError(
            f"All values of target {target.name!r} in the train split are {values[0]:g}; a head needs two.",
            HINT_MORE,
        )
    largest = np.abs(target.values[target.labelled]).max() if target.kind == "regression" else 0
    if largest > LARGEST:
        raise FitError(
            f"Target {target.name!r} has values up to {largest:.3g}; expected at most {LARGEST:g}, as a head "
            "is stored in float32.",
            "Write it in a larger unit, or its logarithm; --classes takes numbers for names.",
        )
    if target.kind == "multilabel" and not target.class_names:
        raise FitError(f"Target {target.name!r} has no label at all.", HINT_MORE)


def folds_of(
    target: Target, samples: SampleTable, train: np.ndarray, cv: int, seed: int, notes: list[Note]
) -> np.ndarray:
    """Return (n,) folds of a target on the samples `train`, fewer than `cv` if samples or groups are few.

    What a user has to know about folds, classes and groups is appended to `notes`.
    """
    seen = target.labelled
    groups = None if samples.group is None else samples.group[train]
    units = int(seen.sum()) if groups is None else len(np.unique(groups[seen]))
    most = units
    if target.kind != "regression":
        _note_classes(target, cv, notes)
    if target.kind == "class":
        most = min(units, max(int(np.bincount(target.values[seen]).max()), 2))
        if groups is not None:
            _note_groups(target, groups, notes)
    count = min(cv, most)
    if count < 2:
        text = (
            f"Target {target.name!r} has one group only: there was no cross-validation, and the largest "
            "C was taken."
        )
        notes.append(Note("no-cross-validation", text, changes_result=True, details={"target": target.name}))
        return np.full(len(train), NO_FOLD, np.int16)
    if count < cv:
        text = f"Target {target.name!r} has too few samples for {counted(cv, 'fold')}: {count} were used."
        notes.append(Note("fewer-folds", text, True, {"target": target.name, "folds": count}))
    fold = assign_folds(target, count, groups, seed)
    if target.kind == "class":
        alone = [k for k in range(count) if len(np.unique(target.values[seen & (fold != k)])) < 2]
        if alone:
            text = f"Target {target.name!r} has one class only when fold {alone[0] + 1} is held out."
            notes.append(
                Note("fold-with-one-class", text, details={"target": target.name, "fold": alone[0] + 1})
            )
    return fold


def _note_classes(target: Target, cv: int, notes: list[Note]) -> None:
    """Note classes and labels with few train samples, and labels that all train samples have."""
    labelled = target.labelled
    counts = dict(zip(target.class_names, _counts(target, labelled).tolist(), strict=True))
    rare = [name for name, count in counts.items() if count < cv]
    if rare:
        text = f"Target {target.name!r}: {quoted(rare)} with fewer than {counted(cv, 'training sample')}."
        few = {name: counts[name] for name in rare}
        notes.append(Note("rare-classes", text, details={"target": target.name, "classes": few}))
    always = [name for name, count in counts.items() if count == labelled.sum()]
    if always:
        text = f"Target {target.name!r}: all training samples have {quoted(always)}; it is predicted always."
        notes.append(Note("labels-of-all-samples", text, details={"target": target.name, "classes": always}))


def _note_groups(target: Target, groups: np.ndarray, notes: list[Note]) -> None:
    """Note classes whose samples are all in one group, so that they are held out together."""
    for code, name in enumerate(target.class_names):
        members = target.values == code
        if members.any() and len(np.unique(groups[members])) == 1:
            text = (
                f"Target {target.name!r}: all samples of {name!r} are of one group, so that cross-validation "
                "cannot tell how well it is recognised."
            )
            notes.append(Note("class-in-one-group", text, details={"target": target.name, "class": name}))
