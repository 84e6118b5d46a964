"""What the estimators that answer in classes share: rows of any kind in, a head artifact's arrays out.

A fitted estimator predicts by the very artifact that is saved, so that the two cannot differ.

Shapes: n samples, D features, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_feature_names,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from bottleneck.errors import FitError
from bottleneck.heads.artifact import HeadArtifact, apply_link
from bottleneck.heads.row_blocks import as_rows, block_size, blocks, is_reader, read_checked, without_torch
from bottleneck.heads.solver.design import Standardisation, standardisation
from bottleneck.samples import ArrayRows, RowReader
from bottleneck.threads import WorkerPool

DTYPES = (np.float32, np.float64, np.float16)  # kept as they come; others become the first


class ClassHead(ClassifierMixin, BaseEstimator):
    """A classifier of features, fitted by `_fit_arrays`.

    X is an array or tensor of shape (n, D), or a row reader (`bottleneck.heads.rows`) that is read in blocks.
    y is of shape (n,) and names classes in any way that numpy can sort.

    Attributes
    ----------
    kind, form : str
        As `HeadArtifact` names them.
    classes_ : (C,) array of the labels
    n_features_in_ : int, D
    arrays_ : dict of str to float32 array, those of the form
    settings_ : dict of what else the artifact has to keep
    """

    kind: str
    form: str

    @abstractmethod
    def _fit_arrays(self, rows: RowReader, codes: np.ndarray, **options: Any) -> tuple[dict, dict]:
        """The artifact's arrays and settings, for `rows` (n, D) and `codes` (n,) of C classes."""

    def _fit(self, X: Any, y: Any, least: int = 1, **options: Any) -> ClassHead:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        rows = self._rows(X, reset=True, least=least)
        y = column_or_1d(y, warn=True)
        check_consistent_length(rows, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        arrays, self.settings_ = self._fit_arrays(rows, codes, **options)
        self.arrays_ = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
        return self

    def artifact(self, **described: Any) -> HeadArtifact:
        """The fitted head as an artifact; `described` are its further fields (target, node, …)."""
        check_is_fitted(self, "arrays_")
        own = {
            "kind": self.kind,
            "form": self.form,
            "arrays": self.arrays_,
            "class_names": tuple(str(name) for name in self.classes_),
            "settings": self.settings_,
        }
        return HeadArtifact(**own | described)

    def logits(self, X: Any) -> np.ndarray:
        """(n, C), of two classes as well. Bounded memory beside the result."""
        head = self.artifact()
        rows = self._rows(X, reset=False)
        size = block_size(rows.shape[1])
        return np.concatenate(
            [head.decision(read_checked(rows, *bounds)) for bounds in blocks(rows, size)]
            or [np.zeros((0, len(self.classes_)), np.float32)]
        )

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, C) float64, in the order of `classes_`."""
        return apply_link(self.logits(X), "softmax")

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        logits = self.logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def _rows(self, X: Any, reset: bool, least: int = 1) -> RowReader:
        """X as rows (n, D), checked as scikit-learn does where it is an array; a reader as it is read."""
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


def standardisation_of(rows: RowReader) -> Standardisation:
    """Mean and standard deviation of each feature, read in blocks."""
    with WorkerPool() as crew:
        return standardisation(rows, crew)
