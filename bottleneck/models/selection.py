"""Choose the samples that a head is measured on, and translate their labels to the head's classes.

Shapes: S samples of the source, n measured samples, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bottleneck.errors import ArtifactError, BottleneckError, Note
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.samples import UNLABELLED, SampleTable, Target

DEFAULT_SPLITS = ("test", "val", "train")  # the first with labelled samples is measured


@dataclass(frozen=True)
class Selection:
    """Samples of a split that the head can be measured on.

    rows : (n,) indices of the source's samples.
    answers : (n,) codes, (n, L) labels or (n,) numbers, in the head's order of classes.
    unknown : number of samples of each class that the head does not know.
    """

    split: str
    rows: np.ndarray
    answers: np.ndarray
    unknown: dict[str, int]


def select(head: HeadArtifact, samples: SampleTable, split: str | None) -> Selection:
    """Return the labelled samples of the named split, or of the first default split that has any.

    Raises ArtifactError if the head knows no class of that split, BottleneckError if no sample is labelled.
    """
    target = _target_of(head, samples)
    for name in [split] if split else DEFAULT_SPLITS:
        rows = np.flatnonzero(target.labelled & (samples.split == name))
        if len(rows):
            answers, known, unknown = _in_codes_of(head, target.take(rows))
            if not known.any():
                raise ArtifactError(
                    f"The head knows none of the classes of the {name} split: {listed(unknown)}.",
                    f"It knows {len(head.class_names)}: {', '.join(head.class_names[:8])} …",
                )
            return Selection(name, rows[known], answers[known], unknown)
    counts = {name: int((samples.split == name).sum()) for name in np.unique(samples.split.astype(str))}
    raise BottleneckError(
        f"No labelled sample is in the {split or 'test, val or train'} split; samples by split: {counts}.",
        "Choose another --split, or extract with --val-fraction 0.2.",
    )


def with_target_of(
    head: HeadArtifact, samples: SampleTable, named: tuple[str, ...], from_file: bool
) -> tuple[SampleTable, list[Note]]:
    """Return the samples with the head's target, and a note where it is the only one, by another name.

    That is so for the one column that the user named, and for a folder whose classes the head knows.

    named : label columns that the user named. from_file : the labels are those of a table.
    """
    if head.target in samples.targets or len(samples.targets) != 1 or from_file:
        return samples, []
    (target,) = samples.targets.values()
    by_user = named == (target.name,)
    known = target.kind == head.target_kind == "class" and set(target.class_names) <= set(head.class_names)
    if not by_user and not (known and not samples.columns):
        return samples, []
    message = f"{target.name!r} of the source is measured as {head.target!r}, which the head predicts."
    note = Note("target-by-other-name", message, not by_user, {"target": target.name, "used_as": head.target})
    return replace(samples, targets={head.target: replace(target, name=head.target)}), [note]


def _target_of(head: HeadArtifact, samples: SampleTable) -> Target:
    """Return the target that the head predicts; ArtifactError if it is missing or of another kind."""
    target = samples.targets.get(head.target)
    if target is None:
        known = ", ".join(samples.targets) or "none"
        raise ArtifactError(
            f"The head predicts target {head.target!r}; the source has: {known}.",
            "Give the labels with --labels FILE, or name their column with --label-column.",
        )
    if head.target_kind == "regression" and target.kind == "class":
        target = target.as_numbers()
    if target.kind != head.target_kind:
        raise ArtifactError(
            f"The head predicts a {head.target_kind} target; {target.name!r} is a {target.kind} one here.",
            "Give --label-separator if a cell holds several labels."
            if head.target_kind == "multilabel"
            else "",
        )
    return target


def _in_codes_of(head: HeadArtifact, target: Target) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Translate the answers of labelled samples to the head's class codes.

    Returns
    -------
    answers : (n,) codes, (n, L) labels or (n,) numbers
    known : (n,) bool, True where the head knows the sample's class, or any class of the target
    unknown : number of samples of each class that the head does not know
    """
    n = len(target.values)
    if target.kind == "regression":
        return target.values, np.ones(n, bool), {}
    code_of = {name: code for code, name in enumerate(head.class_names)}
    codes = np.array([code_of.get(name, UNLABELLED) for name in target.class_names], np.int64)
    if target.kind == "class":
        answers = codes[target.values]
        known, counts = answers != UNLABELLED, np.bincount(target.values, minlength=len(codes))
    else:
        shared = codes != UNLABELLED
        answers = np.zeros((n, len(head.class_names)), np.uint8)
        answers[:, codes[shared]] = target.values[:, shared]
        known, counts = np.full(n, shared.any()), (target.values == 1).sum(axis=0)
    classes = zip(target.class_names, codes, counts.tolist(), strict=True)
    return answers, known, {name: count for name, code, count in classes if code == UNLABELLED and count}


def listed(counts: dict[str, int]) -> str:
    """Name the most frequent classes with their counts."""
    names = sorted(counts, key=lambda name: counts[name], reverse=True)
    return ", ".join(f"{name!r} ({counts[name]})" for name in names[:5]) + (" …" if len(names) > 5 else "")
