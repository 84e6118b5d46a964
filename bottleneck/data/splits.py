"""Train, val and test: the names that users give them, and fractions of train set aside.

A hash of the seed and the sample's key decides its split, which therefore does not depend on the order of the
samples; adding samples moves few others.

Shapes: S samples, G groups, T splits (val, test, train).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from bottleneck.data.class_names import lost_classes
from bottleneck.errors import Note, SourceError, counted, quoted
from bottleneck.samples import SampleTable, Target

ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_named(name: str) -> str | None:
    """Return the split that a folder or a cell names, in any case; None where it names none."""
    return ALIASES.get(name.strip().casefold())


def merged_notes(names: Iterable[str]) -> list[Note]:
    """Return a note for each split that folders or cells name by several words, such as val and dev."""
    words: dict[str, set[str]] = {}
    for name in names:
        if (split := split_named(name)) is not None:
            words.setdefault(split, set()).add(name.strip().casefold())
    return [
        Note(
            "splits-merged",
            f"{' and '.join(map(repr, sorted(merged)))} are one split, {split!r}.",
            True,
            {"split": split, "names": sorted(merged)},
        )
        for split, merged in sorted(words.items())
        if len(merged) > 1
    ]


def set_aside(
    samples: SampleTable, val_fraction: float = 0.0, test_fraction: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Return the (S,) split of each sample after fractions of the train samples are set aside.

    Stratified by the first class target; unlabelled samples are a stratum of their own. Each class gives its
    share to within one sample, and keeps at least one in train. Where there are groups, whole groups move, so
    that each split comes as near to its share of every class as the groups allow; each class keeps a group in
    train, unless this leaves no group for a split (`classes_set_aside` then names the class).

    Raises
    ------
    SourceError
        A fraction is out of range, the split exists already, or the fraction amounts to no sample.
    """
    fractions = {"val": val_fraction, "test": test_fraction}
    split = samples.split.copy()
    wanted = {name: fraction for name, fraction in fractions.items() if fraction}
    if not wanted:
        return split
    _check(wanted, split)
    rows = np.flatnonzero(split == "train")
    rows = np.array(sorted(rows, key=lambda row: _rank(seed, str(samples.key[row]))), np.int64)
    stratum = strata(samples)[rows]
    if samples.group is None:
        chosen = _stratified(stratum, list(wanted.values()))
    else:
        groups = samples.group[rows]
        chosen = _grouped(stratum, groups, list(wanted.values()), seed, keep=True)
        if len(np.unique(chosen)) <= len(wanted):
            chosen = _grouped(stratum, groups, list(wanted.values()), seed, keep=False)
    for index, (name, fraction) in enumerate(wanted.items()):
        if not (chosen == index).any():
            unit = "samples" if samples.group is None else "samples in whole groups"
            raise SourceError(
                f"A {name} fraction of {fraction:g} is impossible: {len(rows)} train {unit} give it none.",
                f"Use a larger --{name}-fraction or more samples.",
            )
        split[rows[chosen == index]] = name
    if not (split == "train").any():
        raise SourceError("The fractions for val and test leave no train sample.", "Use smaller fractions.")
    return split


def strata(samples: SampleTable) -> np.ndarray:
    """Return the (S,) int64 stratum of each sample: its class in the first class target, 0 without one."""
    for target in samples.targets.values():
        if target.kind == "class":
            return target.values
    return np.zeros(len(samples), np.int64)


def classes_set_aside(before: SampleTable, after: SampleTable) -> list[Note]:
    """Return notes on the classes, of any target, that had train samples before and have none after."""
    first, second = (
        {name: target.take(samples.split == "train") for name, target in samples.targets.items()}
        for samples in (before, after)
    )
    why = "they were set aside for val and test; use smaller fractions, more groups or a manifest with splits"
    return lost_classes(first, second, "classes-without-train-samples", "train", why)


def classes_thinned(before: SampleTable, after: SampleTable) -> list[Note]:
    """Return a note on the classes, of any target, of which one train sample is left and more were before."""
    few = []
    for name, target in after.targets.items():
        if target.kind == "class":
            had, has = (_counts(samples.targets[name], samples.split) for samples in (before, after))
            few += [name for name, n, left in zip(target.class_names, had, has, strict=True) if n > left == 1]
    if not few:
        return []
    text = (
        f"Only one train sample is left of {quoted(few)}: cross-validation cannot learn such a class and "
        "judge it too. Use smaller fractions for val and test."
    )
    return [Note("one-train-sample-left", text, True, {"classes": few})]


def _counts(target: Target, split: np.ndarray) -> np.ndarray:
    """Return the number of train samples (K,) of each class."""
    values = target.values[target.labelled & (split == "train")]
    return np.bincount(values, minlength=len(target.class_names))


def _check(wanted: dict[str, float], split: np.ndarray) -> None:
    """Raise SourceError for fractions out of range, or of a split that exists."""
    for name, fraction in wanted.items():
        if not 0 < fraction < 1:
            raise SourceError(f"--{name}-fraction is {fraction:g}; expected a number between 0 and 1.")
        if present := int((split == name).sum()):
            raise SourceError(
                f"--{name}-fraction is given, but the source has {counted(present, f'{name} sample')} "
                "of its own.",
                f"Leave --{name}-fraction out.",
            )
    if sum(wanted.values()) >= 1:
        raise SourceError("--val-fraction and --test-fraction together are 1 or more; expected less.")


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest()


def _stratified(stratum: np.ndarray, fractions: list[float]) -> np.ndarray:
    """Return the (S,) index of the fraction of each sample, -1 for train; samples come in random order.

    Largest remainders: every class gives its quota rounded down, then the classes with the largest remainders
    give one more until the total is met. One sample of each class stays in train.
    """
    chosen = np.full(len(stratum), -1)
    _, code, sizes = np.unique(stratum, return_inverse=True, return_counts=True)
    order = np.argsort(code, kind="stable")
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])  # in `order`, of the samples not yet chosen
    quotas = np.outer(fractions, sizes)  # (fractions, classes)
    floors = np.floor(quotas + 1e-9).astype(np.int64)
    available = sizes - 1
    for index, fraction in enumerate(fractions):
        counts = np.minimum(floors[index], available)
        spare = available - counts - floors[index + 1 :].sum(axis=0)  # beyond what later fractions need
        missing = round(len(stratum) * fraction) - counts.sum()
        by_remainder = np.argsort(counts - quotas[index], kind="stable")
        counts[by_remainder[spare[by_remainder] > 0][: max(missing, 0)]] += 1
        for first, count in zip(start, counts, strict=True):
            chosen[order[first : first + count]] = index
        start += counts
        available -= counts
    return chosen


def _grouped(
    stratum: np.ndarray, groups: np.ndarray, fractions: list[float], seed: int, keep: bool
) -> np.ndarray:
    """Return the (S,) index of the fraction of each sample's group, -1 for train.

    Groups are assigned from the largest to the smallest (by hash among equals), each to the split where the
    squared differences of the class counts from their shares, relative to the class sizes, grow least. With
    `keep`, the last group of a class that has none in train goes there.
    """
    classes, code, sizes = np.unique(stratum, return_inverse=True, return_counts=True)
    names, member, group_sizes = np.unique(groups.astype(object), return_inverse=True, return_counts=True)
    shares = np.array([*fractions, 1 - sum(fractions)])
    goals = shares[:, None] * np.append(sizes, len(stratum))  # (T, classes + 1), the last column is the total
    scale = np.append(sizes, len(stratum) / len(classes)).astype(float)
    have = np.zeros_like(goals)
    rows_of = np.split(np.argsort(member, kind="stable"), np.cumsum(group_sizes)[:-1])
    in_turn = sorted(
        range(len(names)), key=lambda index: (-group_sizes[index], _rank(seed, str(names[index])))
    )
    chosen = np.empty(len(stratum), np.int64)
    left = np.bincount(np.unique(np.stack([code, member]), axis=1)[0], minlength=len(classes))
    for index in in_turn:
        rows = rows_of[index]
        present = np.unique(code[rows])
        left[present] -= 1
        columns, counts = np.unique(code[rows], return_counts=True)
        columns, counts = np.append(columns, len(classes)), np.append(counts, len(rows))
        growth = (counts * (counts + 2 * (have[:, columns] - goals[:, columns])) / scale[columns]).sum(axis=1)
        last = keep and bool(((left[present] == 0) & (have[-1, present] == 0)).any())
        best = len(fractions) if last else int(np.argmin(growth))
        have[best, columns] += counts
        chosen[rows] = best if best < len(fractions) else -1
    return chosen
