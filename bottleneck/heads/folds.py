"""Folds of cross-validation: stratified, groups kept together, missing labels left out.

Shapes: n samples, F folds, L labels.
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from bottleneck.errors import FitError
from bottleneck.heads.tasks import NO_FOLD
from bottleneck.samples import Target


def assign_folds(target: Target, count: int, groups: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """(n,) int16, the fold that holds each sample out; NO_FOLD where it has no label.

    Classes are spread evenly over the folds, as far as their samples and groups go: a class with fewer
    samples than folds is in some folds' training sets only. Multi-label targets are stratified by their
    rarest label, regression targets by their quintiles.

    Raises
    ------
    FitError
        Fewer labelled samples, or groups, than folds.
    """
    labelled = np.flatnonzero(target.labelled)
    units = len(labelled) if groups is None else len(np.unique(groups[labelled]))
    if units < count:
        what = "labelled samples" if groups is None else "groups of labelled samples"
        raise FitError(
            f"Target {target.name!r} has {units} {what} to train on, fewer than the {count} folds.",
            f"Use --cv {units}." if units > 1 else "Cross-validation needs at least two.",
        )
    strata = _strata(target.take(labelled))
    fold = np.full(len(target.values), NO_FOLD, np.int16)
    for number, (_, held) in enumerate(
        _splits(strata, count, None if groups is None else groups[labelled], seed)
    ):
        fold[labelled[held]] = number
    return fold


def _splits(strata: np.ndarray, count: int, groups: np.ndarray | None, seed: int):
    """Index pairs of every fold; plain folds where no stratum is large enough to be spread."""
    spread = np.bincount(strata).max() >= count
    if groups is None:
        kind = StratifiedKFold if spread else KFold
        splitter = kind(count, shuffle=True, random_state=seed)
    elif spread:
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    else:
        splitter = GroupKFold(count)
    with warnings.catch_warnings():  # "the least populated class has only …": it is named by `select`
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter.split(strata, strata, groups))


def _strata(target: Target) -> np.ndarray:
    """(n,) int, which samples are alike for stratification."""
    values = target.values
    if target.kind == "regression":
        edges = np.quantile(values, (0.2, 0.4, 0.6, 0.8))
        return np.unique(np.searchsorted(edges, values), return_inverse=True)[1]
    if target.kind == "multilabel":
        counts = values.sum(axis=0, dtype=np.int64)
        rarity = np.where(values == 1, np.where(counts > 0, counts, 1), np.iinfo(np.int64).max)
        rarest = np.where(values.any(axis=1), rarity.argmin(axis=1), values.shape[1])
        return np.unique(rarest, return_inverse=True)[1]
    return np.unique(values, return_inverse=True)[1]
