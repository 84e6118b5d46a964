"""Find labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021).

A sample is counted as of class j, whatever its label says, if its held-out probability of j is at least the
mean probability of j among the samples labelled j. Counts by label i and class j, scaled to the number of
labels i, estimate how many labels are wrong. So many samples are flagged: those of which the label has the
lowest probability, among the samples for which another class is the likeliest.

Shapes: n samples, K classes, L labels of a multi-label target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelQuality:
    """How well the labels of n samples agree with held-out probabilities.

    score : (n,) probability of the given label; low is suspicious.
    suggested : (n,) the likeliest class.
    flag : (n,) bool, True for labels that are probably wrong.
    """

    score: np.ndarray
    suggested: np.ndarray
    flag: np.ndarray


def label_quality(labels: np.ndarray, probabilities: np.ndarray) -> LabelQuality:
    """Judge labels (n,) of K classes by probabilities (n, K) from models that have not seen the sample."""
    n = len(labels)
    score = probabilities[np.arange(n), labels].astype(np.float64)
    suggested = probabilities.argmax(axis=1)
    candidates = np.flatnonzero(suggested != labels)
    wrong = min(estimated_errors(labels, probabilities), len(candidates))
    flag = np.zeros(n, bool)
    flag[candidates[np.argsort(score[candidates], kind="stable")[:wrong]]] = True
    return LabelQuality(score, suggested, flag)


def multilabel_quality(labels: np.ndarray, probabilities: np.ndarray) -> LabelQuality:
    """Judge each label of (n, L) bits by itself; the fields of the result are (n, L)."""
    each = [
        label_quality(labels[:, k].astype(np.int64), np.stack([1 - p, p], axis=1))
        for k, p in enumerate(probabilities.T)
    ]
    return LabelQuality(
        *(np.stack([getattr(q, name) for q in each], axis=1) for name in ("score", "suggested", "flag"))
    )


def estimated_errors(labels: np.ndarray, probabilities: np.ndarray) -> int:
    """Return how many labels (n,) are wrong by the confident joint of labels and probabilities (n, K)."""
    joint = confident_joint(labels, probabilities)
    return int(np.rint(joint.sum() - np.trace(joint)))


def confident_joint(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return counts (K, K) of samples by their label and their confident class.

    A row adds to the number of samples with the label; a class without a sample has a row of zeros.
    """
    n, classes = probabilities.shape
    counts = np.bincount(labels, minlength=classes)
    sums = np.zeros(classes)
    np.add.at(sums, labels, probabilities[np.arange(n), labels])
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    above = np.where(probabilities >= thresholds - 1e-6, probabilities, -1.0)
    confident = above.max(axis=1) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[confident], above[confident].argmax(axis=1)), 1)
    # A class of which no sample is confident keeps its labels.
    np.fill_diagonal(joint, np.where((joint.sum(axis=1) == 0) & (counts > 0), 1, np.diag(joint)))
    return joint * (counts / np.maximum(joint.sum(axis=1), 1))[:, None]
