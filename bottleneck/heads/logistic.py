"""Logistic regression with an L2 penalty, as a scikit-learn estimator on the batched solver.

Shapes: n samples, D features, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from bottleneck.heads.artifact import apply_link
from bottleneck.heads.class_head import ClassHead
from bottleneck.heads.questions import Question, weights_by_code
from bottleneck.heads.rows import RowReader, is_double, linear_outputs
from bottleneck.heads.select import grid_of
from bottleneck.heads.solver import TOLERANCE
from bottleneck.heads.sweep import DEFAULT_MEMORY, SweepConfig, sweep
from bottleneck.heads.tasks import NO_FOLD
from bottleneck.samples import Target

DOUBLE_TOLERANCE = (
    1e-18  # of the objective, that is 1e-9 of the coefficients: float64 rows are solved to rounding
)


class LogisticHead(ClassHead):
    """The optimum of scikit-learn's `LogisticRegression` at the same C, on standardised features.

    Minimises C Σ s_i · (log loss of sample i) + ½ ‖coef‖² over standardised features, the intercept
    unpenalised; the scaling is then folded into `coef_` and `intercept_`, which take raw features. Two
    classes have one logit, more a softmax. float32 rows are solved to 1e-4 of the objective, float64 rows
    (in memory) to rounding.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty.
    multi_class : "multinomial" or "ovr"
        One softmax over all classes, or one sigmoid per class against the rest.
    class_weight : None, "balanced" or dict of class to weight
    standardize : bool
        False penalises raw features.
    memory : int
        Bytes for rows and work; rows that do not fit are read in blocks in every pass.
    device : str
        "cpu", "cuda" …

    Attributes
    ----------
    coef_ : (1, D) for two classes, else (C, D), float64, on raw features
    intercept_ : (1,) or (C,)
    mean_, scale_ : (D,) of the standardisation; scale_ is 1 for constant features
    n_features_in_ : int
    classes_ : (C,)

    Further attributes and arguments are those of `ClassHead`.
    """

    kind, form = "logistic", "linear"

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
        """Fit. sample_weight : (n,), factors of the samples' losses; 0 leaves a sample out."""
        return self._fit(X, y, least=2, sample_weight=sample_weight)

    def _fit_arrays(self, rows: RowReader, codes: np.ndarray, sample_weight: Any) -> tuple[dict, dict]:
        if self.multi_class not in ("multinomial", "ovr"):
            raise ValueError(
                f"The 'multi_class' parameter must be multinomial or ovr, got {self.multi_class!r}."
            )
        if len(self.classes_) < 2:
            raise ValueError(f"LogisticHead needs two classes or more, got one class: {self.classes_[0]!r}.")
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, np.empty((len(codes), 1)), ensure_non_negative=True
            )
        question = Question(
            Target("y", "class", codes, tuple(map(str, self.classes_))),
            np.full(len(codes), NO_FOLD, np.int16),
            weights_by_code(self.class_weight, self.classes_),
            sample_weight,
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
        found = sweep(rows, [question], grid_of(self.C), config)[0]
        self._softmax_coef, self._softmax_intercept = found.coef, found.intercept
        single = len(self.classes_) == 2
        self.coef_ = 2 * found.coef[1:] if single else found.coef
        self.intercept_ = 2 * found.intercept[1:] if single else found.intercept
        self.mean_, self.scale_, self.link_ = found.standard.mean, found.standard.scale, found.link
        arrays = {"coef": found.coef, "intercept": found.intercept, "mean": self.mean_, "scale": self.scale_}
        return arrays, {"multi_class": self.multi_class, "converged": found.converged}

    def artifact(self, **described: Any):
        """The fitted head as an artifact; `described` are its further fields (target, node, …)."""
        check_is_fitted(self, "coef_")
        return super().artifact(**{"link": self.link_, "C": float(self.C)} | described)

    def logits(self, X: Any) -> np.ndarray:
        """(n, C), of two classes as well; in float64 for float64 rows. Bounded memory beside the result."""
        check_is_fitted(self, "coef_")
        return linear_outputs(self._rows(X, reset=False), self._softmax_coef, self._softmax_intercept)

    def decision_function(self, X: Any) -> np.ndarray:
        """(n, C) logits; (n,) for two classes, positive for the second."""
        logits = self.logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, C) float64, in the order of `classes_`."""
        logits = self.logits(X)
        return apply_link(logits, self.link_)
