"""Nearest class mean and k nearest neighbours: baselines that a trained head should beat.

Both use standardised features, as trained heads do.

Shapes: n samples, D features, K classes, B rows of a block.
"""

from __future__ import annotations

from math import isqrt
from numbers import Integral
from typing import Any

import numpy as np

from bottleneck.heads.estimator import ClassHead, standardisation_of
from bottleneck.heads.row_blocks import block_size, blocks, read_checked
from bottleneck.samples import RowReader

MAX_NEIGHBOURS = 20


class NearestMeanHead(ClassHead):
    """The class whose mean is nearest, by Euclidean distance of standardised features (Mensink et al. 2013).

    −½‖z − μ‖² is linear in z except for −½‖z‖², which is the same for all classes. The head is therefore
    stored as a linear one, with weights μ and intercepts −½‖μ‖².

    Attributes
    ----------
    mean_, scale_ : (D,) of the standardisation; scale_ is 1 for constant features

    Further attributes and arguments are those of `ClassHead`.
    """

    kind, form = "nearest-mean", "linear"

    def fit(self, X: Any, y: Any) -> NearestMeanHead:
        """Compute the mean of each class and return the head."""
        rows, codes = self._samples(X, y)
        standard = standardisation_of(rows)
        self.mean_, self.scale_ = standard.mean, standard.scale
        counts = np.bincount(codes)
        sums = np.zeros((len(counts), rows.shape[1]))
        for start, stop in blocks(rows, block_size(rows.shape[1])):
            member = np.arange(len(counts))[:, None] == codes[start:stop]
            sums += member.astype(np.float32) @ standard.apply(read_checked(rows, start, stop))
        means = sums / counts[:, None]  # (K, D), standardised
        coef, intercept = standard.fold(means, -0.5 * np.square(means).sum(axis=1))
        self._set_fit({"coef": coef, "intercept": intercept, "mean": self.mean_, "scale": self.scale_})
        return self


class KNNHead(ClassHead):
    """A vote of the k training samples that are nearest by cosine of standardised features.

    Probabilities are the shares of the votes, with one more vote distributed like the training set's classes.
    The artifact stores the training rows, standardised and scaled to length 1.

    Parameters
    ----------
    k : int or "auto"
        "auto" is 20, the best for most features of Caron et al. (2021, DINO, section 3.2), or √n where that
        is less, after Duda, Hart and Stork (2001, section 4.4).

    Attributes
    ----------
    mean_, scale_ : (D,) of the standardisation; scale_ is 1 for constant features

    Further attributes and arguments are those of `ClassHead`.
    """

    kind, form = "knn", "knn"

    def __init__(self, k: int | str = "auto") -> None:
        self.k = k

    def fit(self, X: Any, y: Any) -> KNNHead:
        """Store the training rows and return the head."""
        rows, codes = self._samples(X, y)
        answers = np.eye(codes.max() + 1, dtype=np.float32)[codes]
        arrays = knn_arrays(rows, answers)
        self.mean_, self.scale_ = arrays["mean"], arrays["scale"]
        self._set_fit(arrays, {"k": neighbours(self.k, rows.shape[0])})
        return self


def knn_arrays(rows: RowReader, answers: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of a kNN head for any target.

    rows : (n, D). answers : (n, K), 1 at the true class or labels, or the values (n, 1) of a regression.
    """
    standard = standardisation_of(rows)
    scaling = {"mean": standard.mean.astype(np.float32), "scale": standard.scale.astype(np.float32)}
    features = np.empty(rows.shape, np.float32)
    for start, stop in blocks(rows, block_size(rows.shape[1])):
        z = (read_checked(rows, start, stop) - scaling["mean"]) / scaling["scale"]
        length = np.linalg.norm(z, axis=1, keepdims=True)
        features[start:stop] = z / np.maximum(length, np.finfo(np.float32).tiny)
    return {"features": features, "answers": np.asarray(answers, np.float32)} | scaling


def neighbours(k: int | str, n: int) -> int:
    """Return how many of `n` samples vote, for `k` as in `KNNHead`."""
    if k == "auto":
        return min(MAX_NEIGHBOURS, max(1, isqrt(n)))
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
        raise ValueError(f"The 'k' parameter must be 'auto' or a whole number of 1 or more, got {k!r}.")
    return int(k)
