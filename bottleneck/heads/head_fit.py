"""The record of one fitted head that all solvers and estimators return.

Shapes: n samples, K classes, labels or 1 value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from bottleneck.heads.artifact import HeadArtifact, HeadDescription
from bottleneck.heads.cross_validation import CrossValidation, Scores
from bottleneck.heads.row_blocks import Standardisation
from bottleneck.heads.solver.problem import TargetProblem


@dataclass(frozen=True)
class HeadFit:
    """A fitted head, and how cross-validation scored it.

    Parameters
    ----------
    kind, form, link, C, settings : as of `HeadArtifact`.
    arrays : as of `HeadArtifact`, in the precision of the fit.
    scores : of cross-validation; None without folds.
    out_of_fold : (n, K) float32 logits at the chosen C, each by a head that was fitted without the sample;
        NaN where no fold holds the sample out. None without folds.
    converged : False if the solver stopped before it reached its tolerance.
    """

    kind: str
    form: str
    link: str
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    C: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    scores: Scores | None = None
    out_of_fold: np.ndarray | None = field(default=None, repr=False)
    converged: bool = True

    def artifact(
        self, description: HeadDescription, *, temperature: float = 1.0, n_train: int = 0
    ) -> HeadArtifact:
        """Return the head as an artifact; `description.class_names` names all K classes."""
        return HeadArtifact(
            self.kind,
            self.form,
            {name: np.asarray(array, np.float32) for name, array in self.arrays.items()},
            link=self.link,
            temperature=temperature,
            C=self.C,
            settings=self.settings,
            cv=self.scores.to_json() if self.scores and self.C else {},
            n_train=n_train,
            **{f.name: getattr(description, f.name) for f in fields(HeadDescription)},
        )

    @classmethod
    def linear(
        cls,
        kind: str,
        problem: TargetProblem,
        head: tuple[np.ndarray, np.ndarray, Standardisation],
        C: float,
        result: CrossValidation | None = None,
        converged: bool = True,
    ) -> HeadFit:
        """Return a linear head. head : coef (K, D) and intercept (K,) on standardised features."""
        coef, intercept, standard = head
        coef, intercept = standard.fold(coef, intercept)
        return cls(
            kind=kind,
            form="linear",
            link=problem.link,
            arrays={"coef": coef, "intercept": intercept, "mean": standard.mean, "scale": standard.scale},
            C=C,
            settings={"class_weight": problem.class_weight, "multi_class": problem.multi_class},
            scores=result.scores if result else None,
            out_of_fold=result.out_of_fold if result else None,
            converged=converged,
        )
