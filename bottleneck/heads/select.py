"""Fit one target's head with C chosen by cross-validation (first version, on scikit-learn's solver).

Shapes: n samples, D features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from bottleneck.errors import FitError
from bottleneck.heads.artifact import apply_link
from bottleneck.heads.metrics import log_loss

AUTO_C = tuple(np.logspace(-6, 0, 13))


@dataclass(frozen=True)
class Selected:
    """coef (C, D), intercept (C,) on raw features; out_of_fold (n, C) logits at the chosen C; cv scores."""

    coef: np.ndarray
    intercept: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    C: float
    temperature: float
    out_of_fold: np.ndarray
    fold: np.ndarray
    cv: dict


def select(x, codes, classes: int, *, C="auto", cv=5, groups=None, class_weight=None, seed=0) -> Selected:
    """Choose C by cross-validation, refit on all rows. x : (n, D), codes : (n,) int."""
    if len(np.unique(codes)) < 2:
        raise FitError("All training samples are of one class.", "A head needs at least two.")
    mean, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    scale[scale < 1e-7] = 1
    z = ((x - mean) / scale).astype(np.float32)
    grid = AUTO_C if C == "auto" else tuple(np.atleast_1d(C).astype(float))
    fold = folds_of(codes, cv, groups, seed)
    oof = np.zeros((len(grid), len(codes), classes))
    for k in np.unique(fold):
        for i, c in enumerate(grid):
            coef, intercept = _fit(z[fold != k], codes[fold != k], classes, c, class_weight)
            oof[i, fold == k] = z[fold == k] @ coef.T + intercept
    hits = oof.argmax(axis=2) == codes
    per_fold = np.array([[hit[fold == k].mean() for k in np.unique(fold)] for hit in hits])
    losses = [log_loss(codes, apply_link(logits, "softmax")) for logits in oof]
    best = max(range(len(grid)), key=lambda i: (hits[i].mean(), -losses[i]))
    coef, intercept = _fit(z, codes, classes, grid[best], class_weight)
    cv_report = {
        "C": list(grid),
        "accuracy": hits.mean(axis=1).tolist(),
        "log_loss": losses,
        "folds": per_fold.tolist(),
    }
    return Selected(
        coef=(coef / scale).astype(np.float32),
        intercept=(intercept - coef @ (mean / scale)).astype(np.float32),
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        C=float(grid[best]),
        temperature=temperature(oof[best], codes),
        out_of_fold=oof[best].astype(np.float32),
        fold=fold,
        cv=cv_report,
    )


def folds_of(codes, count, groups, seed) -> np.ndarray:
    """(n,) fold of each sample, stratified, groups kept together."""
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    if groups is not None:
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    fold = np.zeros(len(codes), int)
    for k, (_, held) in enumerate(splitter.split(codes, codes, groups)):
        fold[held] = k
    return fold


def temperature(logits: np.ndarray, codes: np.ndarray) -> float:
    """The divisor of the logits that makes held-out log loss least (Guo et al. 2017)."""
    found = minimize_scalar(
        lambda t: log_loss(codes, apply_link(logits, "softmax", np.exp(t))), bounds=(-5, 5), method="bounded"
    )
    return float(np.exp(found.x))


def _fit(z, codes, classes, C, class_weight):
    """(C, D) and (C,); a binary logit is given as the two halves of a softmax."""
    model = LogisticRegression(C=C, max_iter=2000, class_weight=class_weight).fit(z, codes)
    coef, intercept = model.coef_, model.intercept_
    if len(coef) == 1:
        coef, intercept = np.vstack([-coef, coef]) / 2, np.r_[-intercept, intercept] / 2
    full, offset = np.zeros((classes, z.shape[1])), np.full(classes, -30.0)
    full[model.classes_], offset[model.classes_] = coef, intercept
    return full, offset
