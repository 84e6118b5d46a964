"""The record of one fitted head that all solvers and estimators return.

Shapes: n samples, K classes, labels or 1 value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from bottleneck.errors import Note
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
    grows : whether the grid of C is extended where the best is at an end.
    library : whose products the solver took, "numpy" or "torch".
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
    grows: bool = False
    library: str = "numpy"

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices (m,) of the samples that a fold held out, and their logits (m, K)."""
        if self.out_of_fold is None:
            return np.zeros(0, np.int64), np.zeros((0, 1), np.float32)
        held = np.flatnonzero(np.isfinite(self.out_of_fold).all(axis=1))
        # Mostly all are held out; a copy of millions of rows takes much memory.
        return held, self.out_of_fold if len(held) == len(self.out_of_fold) else self.out_of_fold[held]

    def notes(self, target: str, node: str) -> list[Note]:
        """Return what a user of the head must know of its convergence and of the grid of C."""
        if self.C is None:
            return []
        which = f"The {self.kind} head of target {target!r} on {node}"
        details = {"target": target, "node": node, "head": self.kind, "C": self.C}
        notes = []
        if scales := self.settings.get("scales"):
            shown = ", ".join(f"{name} {scale:.3g}" for name, scale in scales.items())
            text = f"{which}: the scales of its blocks of inputs are {shown} (0 is left out)."
            notes.append(Note("input-scales", text, details=details | {"scales": scales}))
        if not self.converged:
            text = (
                f"{which} did not converge at C = {self.C:.3g}; its scores are of where it stopped. Give "
                f"smaller values with --C, such as {self.C / 10:.3g}, or look for features of very unequal "
                "size."
            )
            notes.append(Note("not-converged", text, True, details))
        if self.scores is None or len(self.scores.C) < 2:
            return notes
        ends = [float(self.scores.C[0]), float(self.scores.C[-1])]
        grid = f"{ends[0]:.3g} to {ends[1]:.3g}"
        if self.scores.added:
            text = f"{which}: the best C was at an end, so the grid was extended: {grid}."
            notes.append(Note("c-grid-extended", text, details=details | {"added": list(self.scores.added)}))
        if self.C in ends:
            advice = "A better one may lie beyond: give further values with --C, or --C auto."
            if self.grows:
                advice = "The score hardly changes there, or the grid has its full extent."
            text = f"{which}: the chosen C, {self.C:.3g}, is an end of the grid, {grid}. {advice}"
            notes.append(Note("c-at-grid-end", text, details=details))
        return notes

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
        grows: bool = False,
        library: str = "numpy",
    ) -> HeadFit:
        """Return a linear head. head : coef (K, D) and intercept (K,) on standardised features."""
        coef, intercept, standard = head
        coef, intercept = standard.fold(coef, intercept)
        return cls(
            kind=kind,
            form="linear",
            link=problem.link,
            arrays={"coef": coef, "intercept": intercept, "mean": standard.mean, "scale": standard.divisor},
            C=C,
            settings={"class_weight": problem.class_weight, "multi_class": problem.multi_class},
            scores=result.scores if result else None,
            out_of_fold=result.out_of_fold if result else None,
            converged=converged,
            grows=grows,
            library=library,
        )
