"""Find labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021).

A sample is counted as of class j, whatever its label says, if its held-out probability of j is at least the
mean probability of j among the samples labelled j. Counts by label i and class j, scaled to the number of
labels i, estimate how many labels are wrong. So many samples are flagged: those of which the label has the
lowest probability, among the samples for which another class is the likeliest, and that are wrong with a
probability of `doubt` or more by the model of `label_noise`, `precision` or more on average: of a head that
is often unsure, the counts alone flag many samples that are merely hard.

The probabilities are from heads that were fitted without the sample.

Shapes: n judged samples, K classes, L labels of a multi-label target.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from bottleneck.studies.audit.label_noise import label_noise

BLOCK = 4096  # samples whose probabilities are compared together


@dataclass(frozen=True)
class LabelQuality:
    """How well the labels of n samples agree with held-out probabilities.

    score : (n,) probability of the given label; low is suspicious.
    suggested : (n,) the likeliest class.
    flag : (n,) bool, True for labels that are probably wrong.
    wrong : (n,) probability that the label is wrong (`label_noise`).
    share : estimated share of wrong labels, () or, of labels judged one by one, (L,).
    """

    score: np.ndarray
    suggested: np.ndarray
    flag: np.ndarray
    wrong: np.ndarray
    share: np.ndarray


def label_quality(
    labels: np.ndarray, probabilities: np.ndarray, doubt: float = 0.0, precision: float = 0.0
) -> LabelQuality:
    """Judge labels (n,) of K classes by probabilities (n, K) from models that have not seen the sample.

    doubt, precision : least probability with which a flagged label is wrong, of each and as the mean of all;
        0 flags as confident learning counts.
    """
    n = len(labels)
    score = probabilities[np.arange(n), labels].astype(np.float64)
    suggested = probabilities.argmax(axis=1)
    candidates = np.flatnonzero(suggested != labels)
    wrong = min(estimated_errors(labels, probabilities), len(candidates))
    flag = np.zeros(n, bool)
    flag[candidates[np.argsort(score[candidates], kind="stable")[:wrong]]] = True
    noise = label_noise(labels, probabilities)
    flag &= noise.wrong >= doubt
    by_chance = np.flatnonzero(flag)[np.argsort(-noise.wrong[flag], kind="stable")]
    mean = np.cumsum(noise.wrong[by_chance]) / np.arange(1, len(by_chance) + 1)
    flag[by_chance[mean < precision]] = False  # the mean falls from label to label
    return LabelQuality(score, suggested, flag, noise.wrong, np.array(noise.share))


def multilabel_quality(
    labels: np.ndarray, probabilities: np.ndarray, doubt: float = 0.0, precision: float = 0.0
) -> LabelQuality:
    """Judge each label of (n, L) bits by itself; the fields of the result are (n, L)."""
    each = [
        label_quality(labels[:, k].astype(np.int64), np.stack([1 - p, p], axis=1), doubt, precision)
        for k, p in enumerate(probabilities.T)
    ]
    return LabelQuality(
        *(np.stack([getattr(q, f.name) for q in each], axis=-1) for f in fields(LabelQuality))
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
    joint = np.zeros((classes, classes))
    for start in range(0, n, BLOCK):
        p = probabilities[start : start + BLOCK]
        above = np.where(p >= thresholds - 1e-6, p, -1.0)
        confident = above.max(axis=1) >= 0
        given = labels[start : start + BLOCK]
        np.add.at(joint, (given[confident], above[confident].argmax(axis=1)), 1)
    # A class of which no sample is confident keeps its labels.
    np.fill_diagonal(joint, np.where((joint.sum(axis=1) == 0) & (counts > 0), 1, np.diag(joint)))
    return joint * (counts / np.maximum(joint.sum(axis=1), 1))[:, None]
