"""Linear heads as scikit-learn estimators: logistic regression, and ridge regression of classes and numbers.

Shapes: n samples, D features, K outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from bottleneck.heads.config import DECADE, DEFAULT_MEMORY, TOLERANCE, SweepConfig, beyond, grid_of, is_auto
from bottleneck.heads.cross_validation import LOSS_GAIN
from bottleneck.heads.estimator import LinearHead, weights_of
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.logistic import DOUBLE_TOLERANCE, sweep
from bottleneck.heads.ridge import RidgeRows, answers_of
from bottleneck.heads.row_blocks import (
    Standardisation,
    as_rows,
    is_double,
    is_reader,
    linear_outputs,
    without_torch,
)
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem, weights_by_code
from bottleneck.heads.solver.ridge_path import RidgePath
from bottleneck.names import MULTI_CLASS
from bottleneck.samples import ArrayRows, RowReader, Target
from bottleneck.threads import WorkerPool


class LogisticHead(LinearHead):
    """Logistic regression with an L2 penalty, on standardised features.

    Minimises C Σ s_i · (log loss of sample i) + ½ ‖coef‖² over standardised features, as scikit-learn's
    `LogisticRegression` does, without a penalty on the intercept. The scaling is then folded into `coef_` and
    `intercept_`, which take raw features. float32 features are solved to 1e-4 of the objective, float64 ones
    (in memory) to rounding.

    Parameters
    ----------
    C : float, default=1.0
        Inverse strength of the penalty.
    multi_class : {"multinomial", "ovr"}, default="multinomial"
        One softmax over all classes, or one sigmoid per class against the rest.
    class_weight : None, "balanced" or dict of class to weight, default=None
    standardize : bool, default=True
        False penalises raw features.
    memory : int, default=4 GiB
        Bytes for features and work. Features that do not fit are read in blocks, again in every pass.
    device : str, default="cpu"
        A torch device.

    Attributes
    ----------
    coef_ : ndarray of shape (1, n_features) for two classes, else (n_classes, n_features)
        On raw features, float64.
    intercept_ : ndarray of shape (1,) or (n_classes,)
    mean_, scale_ : ndarray of shape (n_features,)
        Of the standardisation; the scale of a constant feature is 1.
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int

    Examples
    --------
    >>> from bottleneck import LogisticHead
    >>> head = LogisticHead(C=0.1).fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
    >>> head.predict([[0.5], [2.5]]).tolist()
    ['a', 'b']
    """

    kind = "logistic"
    _margin = 1.0

    def __init__(
        self,
        C: float = 1.0,
        multi_class: str = "multinomial",
        class_weight: dict | str | None = None,
        standardize: bool = True,
        memory: int = DEFAULT_MEMORY,
        device: str = "cpu",
    ) -> None:
        self.C = C
        self.multi_class = multi_class
        self.class_weight = class_weight
        self.standardize = standardize
        self.memory = memory
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LogisticHead:
        """Fit. sample_weight : (n_samples,), factors of the samples' losses; 0 leaves a sample out."""
        if self.multi_class not in MULTI_CLASS:
            raise ValueError(
                f"The 'multi_class' parameter must be {' or '.join(MULTI_CLASS)}, got {self.multi_class!r}."
            )
        rows, codes = self._samples(X, y)
        problem = TargetProblem(
            Target("y", "class", codes, tuple(map(str, self.classes_))),
            np.full(len(codes), NO_FOLD, np.int16),
            weights_by_code(self.class_weight, self.classes_),
            None if sample_weight is None else weights_of(sample_weight, len(codes)),
            self.multi_class,
        )
        double = is_double(rows)
        config = SweepConfig(
            memory=self.memory,
            device=self.device,
            tol=DOUBLE_TOLERANCE if double else TOLERANCE,
            standardize=self.standardize,
            dtype=np.float64 if double else np.float32,
        )
        (fit,) = sweep(rows, [problem], grid_of(self.C), config)
        self._set_linear_fit(fit)
        return self


def _solve(
    head: RidgeHead | RidgeRegressionHead, rows: RowReader, answers: np.ndarray, weights: np.ndarray
) -> tuple[float, tuple[np.ndarray, np.ndarray, Standardisation]]:
    """Return an estimator's C, by `RidgePath.gcv` if it is "auto", and its head as of `RidgeRows.head`."""
    dtype = np.float64 if is_double(rows) else np.float32
    config = SweepConfig(memory=head.memory, standardize=head.standardize, dtype=dtype)
    with WorkerPool() as pool:
        run = RidgeRows(rows, len(answers), config, pool, weights=weights)
        (moments,) = run.moments(answers, weights, np.full(len(answers), NO_FOLD))
        path = RidgePath.of(moments)
        Cs = grid_of(head.C)
        C = min(Cs, key=path.gcv) if len(Cs) > 1 else Cs[0]
        while is_auto(head.C) and (more := _beyond(path, Cs, C)):
            Cs = tuple(sorted({*Cs, *more}))
            C = min(Cs, key=path.gcv)
        return C, run.head(path, C)


def _beyond(path: RidgePath, Cs: tuple[float, ...], best: float) -> tuple[float, ...]:
    """Return the values to add beyond the end of `Cs` that is best, if its error still falls there."""
    at = Cs.index(best)
    inner = Cs[min(max(at, DECADE), len(Cs) - 1 - DECADE)]
    return beyond(Cs, at) if path.gcv(best) < (1 - LOSS_GAIN) * path.gcv(inner) else ()


class RidgeHead(LinearHead):
    """Ridge regression on ±1 for each class, on standardised features: `RidgeClassifier` at alpha = 1/C.

    Parameters
    ----------
    C : float or "auto", default=1.0
        Inverse strength of the penalty. "auto" takes the one of `AUTO_C` with the least error by generalised
        cross-validation, and goes on beyond an end that is the best.
    class_weight : None, "balanced" or dict of class to weight, default=None
    standardize : bool, default=True
        False penalises raw features.
    memory : int, default=4 GiB
        Bytes for features and work. Features that do not fit are read in blocks.

    Attributes
    ----------
    C_ : float
        The C that was used.
    coef_, intercept_, mean_, scale_, classes_, n_features_in_ : as of `LogisticHead`

    Examples
    --------
    >>> from bottleneck import RidgeHead
    >>> head = RidgeHead(C="auto").fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
    >>> head.predict([[0.5], [2.5]]).tolist()
    ['a', 'b']
    """

    kind = "ridge"
    _margin = 0.5

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
        """Fit. sample_weight : (n_samples,), factors of the samples' squares; 0 leaves a sample out."""
        rows, codes = self._samples(X, y)
        problem = TargetProblem(
            Target("y", "class", codes, tuple(map(str, self.classes_))),
            np.full(len(codes), NO_FOLD, np.int16),
            weights_by_code(self.class_weight, self.classes_),
            weights_of(sample_weight, len(codes)),
        )
        self.C_, head = _solve(self, rows, *answers_of(problem))
        self._set_linear_fit(HeadFit.linear("ridge", problem, head, self.C_))
        return self


class RidgeRegressionHead(RegressorMixin, BaseEstimator):
    """Ridge regression of numbers, on standardised features: scikit-learn's `Ridge` at alpha = 1/C.

    Parameters
    ----------
    C, standardize, memory : as of `RidgeHead`

    Attributes
    ----------
    C_ : float
        The C that was used.
    coef_ : ndarray of shape (n_features,), or (n_targets, n_features) if y has two axes
        On raw features, float64.
    intercept_ : float or ndarray of shape (n_targets,)
    mean_, scale_, n_features_in_ : as of `LogisticHead`

    Examples
    --------
    >>> from bottleneck import RidgeRegressionHead
    >>> head = RidgeRegressionHead(C=1e6).fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0])
    >>> head.predict([[3.0]]).round(3).tolist()
    [7.0]
    """

    def __init__(self, C: float | str = 1.0, standardize: bool = True, memory: int = DEFAULT_MEMORY) -> None:
        self.C = C
        self.standardize = standardize
        self.memory = memory

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RidgeRegressionHead:
        """Fit. X : (n_samples, n_features), array, tensor or row reader. y : (n_samples[, n_targets])."""
        if is_reader(X):
            rows, values = as_rows(X), np.asarray(y, np.float64)
            self.n_features_in_ = rows.shape[1]
        else:
            X, values = validate_data(
                self, without_torch(X), y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True
            )
            rows = ArrayRows(X)
        answers = values.astype(np.float64).reshape(len(values), -1)
        self.C_, (coef, intercept, standard) = _solve(
            self, rows, answers, weights_of(sample_weight, len(answers))
        )
        coef, intercept = standard.fold(coef, intercept)
        self.mean_, self.scale_ = standard.mean, standard.scale
        single = values.ndim == 1
        self.coef_: np.ndarray = coef[0] if single else coef
        self.intercept_: np.ndarray | float = float(intercept[0]) if single else intercept
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return values of shape (n_samples,) or (n_samples, n_targets)."""
        check_is_fitted(self, "coef_")
        if is_reader(X):
            rows = as_rows(X)
        else:
            X = validate_data(self, without_torch(X), reset=False, dtype=(np.float64, np.float32))
            rows = ArrayRows(X)
        outputs = linear_outputs(rows, np.atleast_2d(self.coef_), np.atleast_1d(self.intercept_))
        return outputs[:, 0] if self.coef_.ndim == 1 else outputs
