"""Base classes of the scikit-learn estimators: rows of any kind in, a `HeadFit` out.

A fitted estimator predicts by the same arrays that are saved, so that the two cannot differ.

Shapes: n samples, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_feature_names,
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from bottleneck.errors import FitError
from bottleneck.heads.artifact import HeadArtifact, HeadDescription, apply_link
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.row_blocks import (
    Standardisation,
    as_rows,
    block_size,
    blocks,
    is_reader,
    linear_outputs,
    read_checked,
    standardisation,
    without_torch,
)
from bottleneck.samples import ArrayRows, RowReader
from bottleneck.threads import WorkerPool

DTYPES = (np.float32, np.float64, np.float16)  # features of another type become the first


class ClassHead(ClassifierMixin, BaseEstimator):
    """Base class of classifiers on features.

    X is an array or tensor of shape (n_samples, n_features), or a row reader (`bottleneck.samples.RowReader`)
    that is read in blocks. y is of shape (n_samples,) and contains class labels that numpy can sort.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    fit_ : HeadFit
        The fitted arrays and settings.
    """

    kind: str
    form: str

    def _samples(self, X: Any, y: Any, least: int = 1) -> tuple[RowReader, np.ndarray]:
        """Check X and y, set `classes_`, and return the rows (n, D) and the class codes (n,)."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        rows = self._rows(X, reset=True, least=least)
        y = column_or_1d(y, warn=True)
        check_consistent_length(rows, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        return rows, codes

    def _set_fit(self, arrays: Mapping[str, np.ndarray], settings: dict[str, Any] | None = None) -> None:
        """Set `fit_` of a head without a penalty."""
        self.fit_ = HeadFit(self.kind, self.form, "softmax", arrays, settings=settings or {})

    def artifact(self, description: HeadDescription | None = None) -> HeadArtifact:
        """Return the fitted head as an artifact that can be saved.

        description : what the head predicts and from which features; the class names are those of `classes_`
            unless it has them.
        """
        check_is_fitted(self, "fit_")
        described = description or HeadDescription()
        names = described.class_names or tuple(str(name) for name in self.classes_)
        return self.fit_.artifact(replace(described, class_names=names))

    def logits(self, X: Any) -> np.ndarray:
        """Return logits of shape (n_samples, n_classes), also for two classes; X is read in blocks."""
        head = self.artifact()
        rows = self._rows(X, reset=False)
        parts = [
            head.decision(read_checked(rows, *bounds)) for bounds in blocks(rows, block_size(rows.shape[1]))
        ]
        return np.concatenate([np.empty((0, len(self.classes_)), np.float32), *parts])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return float64 probabilities of shape (n_samples, n_classes), in the order of `classes_`."""
        logits = self.logits(X)
        return apply_link(logits, self.fit_.link)

    def predict(self, X: Any) -> np.ndarray:
        """Return labels of shape (n_samples,)."""
        logits = self.logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def _rows(self, X: Any, reset: bool, least: int = 1) -> RowReader:
        """Return X as rows (n, D). Arrays are checked as scikit-learn does, readers while they are read."""
        if not is_reader(X):
            X = without_torch(X)
            return ArrayRows(validate_data(self, X, reset=reset, dtype=DTYPES, ensure_min_samples=least))
        rows = as_rows(X)
        if reset:
            if rows.shape[0] < least:
                raise FitError(f"{type(self).__name__} needs {least} samples or more, got {rows.shape[0]}.")
            _check_feature_names(self, None, reset=True)
            self.n_features_in_ = rows.shape[1]
        elif rows.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input."
            )
        return rows


class LinearHead(ClassHead):
    """Base class of linear classifiers with a penalty.

    Attributes
    ----------
    coef_ : ndarray of shape (1, n_features) for two classes, else (n_classes, n_features)
        On raw features, float64.
    intercept_ : ndarray of shape (1,) or (n_classes,)
    mean_, scale_ : ndarray of shape (n_features,)
        Of the standardisation; the scale of a constant feature is 1.
    """

    form = "linear"
    _margin: float  # for two classes, what the difference of their two logits is multiplied by

    def _samples(self, X: Any, y: Any, least: int = 2) -> tuple[RowReader, np.ndarray]:
        rows, codes = super()._samples(X, y, least)
        if len(self.classes_) < 2:
            name, found = type(self).__name__, self.classes_.tolist()[0]
            raise ValueError(f"{name} needs two classes or more, got one class: {found!r}.")
        return rows, codes

    def _set_linear_fit(self, fit: HeadFit) -> None:
        """Set `fit_` and the attributes that scikit-learn's linear models have."""
        self.fit_ = fit
        self.coef_, self.intercept_ = fit.arrays["coef"], fit.arrays["intercept"]
        if len(self.classes_) == 2:
            self.coef_ = self._margin * (self.coef_[1:] - self.coef_[:1])
            self.intercept_ = self._margin * (self.intercept_[1:] - self.intercept_[:1])
        self.mean_, self.scale_ = fit.arrays["mean"], fit.arrays["scale"]

    def logits(self, X: Any) -> np.ndarray:
        """Return logits of shape (n_samples, n_classes), also for two classes; float64 for float64 rows."""
        check_is_fitted(self, "fit_")
        arrays = self.fit_.arrays
        return linear_outputs(self._rows(X, reset=False), arrays["coef"], arrays["intercept"])

    def decision_function(self, X: Any) -> np.ndarray:
        """Return logits (n_samples, n_classes); for two classes (n_samples,), positive for the second."""
        logits = self.logits(X)
        return self._margin * (logits[:, 1] - logits[:, 0]) if len(self.classes_) == 2 else logits


def weights_of(sample_weight: Any, n: int) -> np.ndarray:
    """Return sample weights (n,), ones for None. Raise ValueError for negative ones, or if all are zero."""
    if sample_weight is None:
        return np.ones(n)
    weights = _check_sample_weight(sample_weight, np.empty((n, 1)), ensure_non_negative=True)
    if not weights.any():
        raise ValueError("All sample weights are zero; a head needs a sample with a positive weight.")
    return weights


def standardisation_of(rows: RowReader) -> Standardisation:
    """Return mean and standard deviation of each feature, read in blocks."""
    with WorkerPool() as pool:
        return standardisation(rows, pool)
