"""Least squares with an L2 penalty, for classes and for numbers, as scikit-learn estimators.

Shapes: n samples, D features, C outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.basis import standardisation, unchanged
from bottleneck.heads.class_head import ClassHead
from bottleneck.heads.crew import Crew
from bottleneck.heads.design import build_design
from bottleneck.heads.least_squares import Path, moments_by_fold, ridge_path
from bottleneck.heads.questions import class_factors, weights_by_code
from bottleneck.heads.rows import (
    ArrayRows,
    RowReader,
    as_rows,
    block_size,
    is_double,
    is_reader,
    linear_outputs,
    without_torch,
)
from bottleneck.heads.select import AUTO_C, grid_of
from bottleneck.heads.sweep import DEFAULT_MEMORY
from bottleneck.heads.tasks import NO_FOLD


class RidgeHead(ClassHead):
    """Least squares on ±1 for each class: scikit-learn's `RidgeClassifier` at alpha = 1/C, standardised.

    Parameters
    ----------
    C : float or "auto"
        Inverse strength of the penalty, λ = 1/C. "auto" takes the one of 13 from 1e-6 to 1 with the least
        generalised cross-validation error.
    class_weight : None, "balanced" or dict of class to weight
    standardize : bool
        False penalises raw features.
    memory : int
        Bytes for rows and work; rows that do not fit are read in blocks.

    Attributes
    ----------
    coef_ : (1, D) for two classes, else (C, D), float64, on raw features
    intercept_ : (1,) or (C,)
    mean_, scale_ : (D,) of the standardisation
    C_ : float, the one used

    Further attributes and arguments are those of `ClassHead`.
    """

    kind, form = "ridge", "linear"

    def __init__(
        self,
        C: float | str = 1.0,
        class_weight: dict | str | None = None,
        standardize: bool = True,
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.standardize = standardize
        self.memory = memory

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RidgeHead:
        """Fit. sample_weight : (n,), factors of the samples' squares; 0 leaves a sample out."""
        return self._fit(X, y, least=2, sample_weight=sample_weight)

    def _fit_arrays(self, rows: RowReader, codes: np.ndarray, sample_weight: Any) -> tuple[dict, dict]:
        if len(self.classes_) < 2:
            raise ValueError(f"RidgeHead needs two classes or more, got one class: {self.classes_[0]!r}.")
        weights = _weights(sample_weight, len(codes))
        weights = (
            weights
            * class_factors(weights_by_code(self.class_weight, self.classes_), codes, weights > 0)[codes]
        )
        answers = np.where(codes[:, None] == np.arange(len(self.classes_)), 1.0, -1.0)
        found = _solve(self, rows, answers, weights)
        single = len(self.classes_) == 2
        self.coef_, self.intercept_ = (part[1:] if single else part for part in found[:2])
        self._both = found[:2]
        arrays = {"coef": found[0], "intercept": found[1], "mean": self.mean_, "scale": self.scale_}
        return arrays, {}

    def artifact(self, **described: Any) -> HeadArtifact:
        """The fitted head as an artifact; `described` are its further fields (target, node, …)."""
        check_is_fitted(self, "coef_")
        return super().artifact(**{"C": self.C_} | described)

    def logits(self, X: Any) -> np.ndarray:
        """(n, C), of two classes as well; in float64 for float64 rows."""
        check_is_fitted(self, "coef_")
        return linear_outputs(self._rows(X, reset=False), *self._both)

    def decision_function(self, X: Any) -> np.ndarray:
        """(n, C); (n,) for two classes, positive for the second."""
        logits = self.logits(X)
        return logits[:, 1] if len(self.classes_) == 2 else logits


class RidgeRegressionHead(RegressorMixin, BaseEstimator):
    """scikit-learn's `Ridge` at alpha = 1/C, on standardised features.

    Parameters and attributes are those of `RidgeHead`, without classes; y is (n,) or (n, C), and coef_ (D,)
    or (C, D) accordingly.
    """

    def __init__(self, C: float | str = 1.0, standardize: bool = True, memory: int = DEFAULT_MEMORY) -> None:
        self.C = C
        self.standardize = standardize
        self.memory = memory

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RidgeRegressionHead:
        """Fit on X (n, D), an array, a tensor or a row reader."""
        if is_reader(X):
            rows, values = as_rows(X), np.asarray(y, np.float64)
            self.n_features_in_ = rows.shape[1]
        else:
            X, values = validate_data(
                self, without_torch(X), y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True
            )
            rows = ArrayRows(X)
        answers = values.astype(np.float64).reshape(len(values), -1)
        coef, intercept = _solve(self, rows, answers, _weights(sample_weight, len(answers)))[:2]
        single = values.ndim == 1
        self.coef_, self.intercept_ = (coef[0], float(intercept[0])) if single else (coef, intercept)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """(n,) or (n, C)."""
        check_is_fitted(self, "coef_")
        if is_reader(X):
            rows = as_rows(X)
        else:
            X = validate_data(self, without_torch(X), reset=False, dtype=(np.float64, np.float32))
            rows = ArrayRows(X)
        outputs = linear_outputs(rows, np.atleast_2d(self.coef_), np.atleast_1d(self.intercept_))
        return outputs[:, 0] if self.coef_.ndim == 1 else outputs


def _solve(
    head: RidgeHead | RidgeRegressionHead, rows: RowReader, answers: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """coef (C, D) and intercept (C,) on raw features; C_, mean_ and scale_ are set on `head`."""
    dtype = np.float64 if is_double(rows) else np.float32
    with Crew() as crew:
        standard = unchanged(rows.shape[1])
        if head.standardize:
            standard = standardisation(rows, crew, block_size(rows.shape[1]), weights, dtype)
        design, order = build_design(rows, standard, crew, head.memory, None, dtype)
        fold = np.full(len(answers), NO_FOLD)
        path = ridge_path(moments_by_fold(design, crew, answers[order], weights[order], fold, 0)[-1])
        head.C_ = _chosen(head.C, path)
        coef, intercept = path.at(1 / head.C_)
        head.mean_, head.scale_ = standard.mean, standard.scale
        return standard.fold(design.from_blocks(coef), intercept)


def _chosen(C: float | str, path: Path) -> float:
    """C as given, or the one of the grid whose GCV error is least."""
    if not isinstance(C, str):
        return grid_of(C)[0]
    grid_of(C)
    return AUTO_C[int(np.argmin(path.gcv([1 / value for value in AUTO_C])))]


def _weights(sample_weight: Any, n: int) -> np.ndarray:
    if sample_weight is None:
        return np.ones(n)
    return _check_sample_weight(sample_weight, np.empty((n, 1)), ensure_non_negative=True)
