"""Logistic regression with an L2 penalty, as a scikit-learn estimator on the batched solver.

Shapes: n samples, D features, C classes.

All logistic heads of a call: every fold × target side by side along C; C chosen per target, refit.

Shapes: n samples, V rows (views) of a sample to train on, D features, C classes, G values of C, F folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from bottleneck.heads.artifact import apply_link
from bottleneck.heads.cross_validation import Scores, Tally, grid_of, tally_of
from bottleneck.heads.estimator import ClassHead
from bottleneck.heads.row_blocks import is_double, linear_outputs
from bottleneck.heads.solver.design import (
    Design,
    Standardisation,
    build_design,
    standardisation,
    streamed_like,
)
from bottleneck.heads.solver.objective import Passes
from bottleneck.heads.solver.path import REFIT_TOLERANCE, TOLERANCE, Solution, refit, solve_path
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem, group_tasks, weights_by_code
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import RowReader, Target
from bottleneck.threads import WorkerPool

DEFAULT_MEMORY = 4 << 30


@dataclass(frozen=True)
class Fitted:
    """One target's head.

    coef : (C, D), intercept : (C,), float64, on raw features; on standardised ones it is coef · scale.
    standard : of the rows fitted on.
    C : chosen, or the one given. link : as `HeadArtifact` names it.
    scores : of cross-validation; None without folds.
    out_of_fold : (n, C) float32 logits at the chosen C, each by a head that did not see the sample; NaN where
        no fold holds it out. None without folds.
    converged : False where the solver gave up before its tolerance.
    """

    coef: np.ndarray
    intercept: np.ndarray
    standard: Standardisation
    C: float
    link: str
    scores: Scores | None
    out_of_fold: np.ndarray | None
    converged: bool


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep is run.

    memory : bytes for rows and work. device : "cpu", "cuda" …. tol : relative, of each objective.
    standardize : False leaves features as they are. one_standard_error : see `Scores.choose`.
    dtype : of the rows in memory and of all products.
    """

    memory: int = DEFAULT_MEMORY
    device: str = "cpu"
    tol: float = TOLERANCE
    standardize: bool = True
    one_standard_error: bool = False
    dtype: type = np.float32


DEFAULT = SweepConfig()


def sweep(
    rows: RowReader,
    questions: Sequence[TargetProblem],
    Cs: Sequence[float],
    config: SweepConfig = DEFAULT,
    plain: RowReader | None = None,
    reporter: Reporter = SILENT,
) -> list[Fitted]:
    """Fit all questions on `rows`, C from `Cs` by cross-validation over the questions' folds.

    Parameters
    ----------
    rows : (n, D); with `plain`, (n · V, D), the V views of each sample, which share its weight.
    questions : their folds count from 0; NO_FOLD throughout means no cross-validation, and then Cs is one.
    plain : (n, D), what held-out samples are scored on in place of their views.
    """
    with WorkerPool(config.device) as crew:
        folds = int(max(question.fold.max(initial=NO_FOLD) for question in questions)) + 1
        problem = _Problem(rows, questions, folds, config, plain, crew)
        solutions, tallies = (
            [],
            [tally_of(question.target, question.fold, folds, question.link) for question in questions],
        )
        with reporter.step("Fitting heads", total=len(Cs), unit="values of C") as advance:
            for solution in solve_path(problem.passes, problem.groups, Cs, config.tol, config.memory):
                solutions.append(solution)
                if folds:
                    problem.score(solution, tallies)
                advance(1)
        scores = [tally.scores([s.C for s in solutions]) if folds else None for tally in tallies]
        chosen = [s.choose(config.one_standard_error) if s else len(solutions) - 1 for s in scores]
        held = problem.held_out(solutions, chosen) if folds else [None] * len(questions)
        whole = problem.refitted(solutions, chosen)
        return [
            problem.fitted(i, solutions[chosen[i]].C, *whole[i], scores[i], held[i])
            for i in range(len(questions))
        ]


class _Problem:
    """The rows and questions of a sweep as the solver holds them."""

    def __init__(
        self,
        rows: RowReader,
        questions: Sequence[TargetProblem],
        folds: int,
        config: SweepConfig,
        plain: RowReader | None,
        crew: WorkerPool,
    ) -> None:
        self.questions, self.config, self.n = questions, config, len(questions[0].fold)
        views = rows.shape[0] // self.n
        asked = [question.tasks() for question in questions]
        tasks = [task for parts in asked for task in parts]
        edges = np.cumsum([0, *(len(parts) for parts in asked)])
        self.task_range = list(pairwise(edges))
        self.standard = Standardisation.identity(rows.shape[1])
        if config.standardize:
            weights = _row_weights(questions, views)
            self.standard = standardisation(rows, crew, weights, config.dtype)
        folds_of_rows = np.repeat(questions[0].fold, views)  # a block then knows which heads it is no use to
        self.design, order = build_design(
            rows, self.standard, crew, config.memory, parts=folds_of_rows, dtype=config.dtype
        )
        self.passes = Passes(self.design, crew)
        self.groups, self.where = group_tasks(
            [task.take(order // views, 1 / views) for task in tasks],
            folds,
            self.design.dtype,
            self.design.device,
        )
        self.scored, self.scored_groups, self.sample = self.passes, self.groups, order
        if plain is not None:
            design: Design = streamed_like(self.design, plain)
            self.scored, self.sample = Passes(design, crew), np.arange(self.n)
            self.scored_groups, _ = group_tasks(tasks, folds, design.dtype, design.device)

    def columns(self, question: int, parts: Sequence[torch.Tensor]) -> np.ndarray:
        """(tasks, …) of one question, of tensors (T, …) per group."""
        first, last = self.task_range[question]
        return torch.stack([parts[group][place] for group, place in self.where[first:last]]).cpu().numpy()

    def score(self, solution: Solution, tallies: Sequence[Tally]) -> None:
        """Count what the heads of each fold do on the samples that it holds out."""
        for tally in tallies:
            tally.begin()
        for start, stop, logits in self.scored.held_out(
            list(zip(self.scored_groups, solution.coef, strict=True))
        ):
            samples = self.sample[start:stop]
            for i, tally in enumerate(tallies):
                tally.add(samples, self.questions[i].logits(self.columns(i, logits)))

    def held_out(self, solutions: Sequence[Solution], chosen: Sequence[int]) -> list[np.ndarray]:
        """(n, C) logits of each question at its chosen C, on samples that a fold holds out."""
        out = [np.full((self.n, question.outputs), np.nan, np.float32) for question in self.questions]
        for place in sorted(set(chosen)):
            wanted = [i for i, c in enumerate(chosen) if c == place]
            fits = list(zip(self.scored_groups, solutions[place].coef, strict=True))
            for start, stop, logits in self.scored.held_out(fits):
                samples = self.sample[start:stop]
                for i in wanted:
                    out[i][samples] = self.questions[i].logits(self.columns(i, logits))
        for question, values in zip(self.questions, out, strict=True):
            values[question.fold == NO_FOLD] = np.nan
        return out

    def refitted(self, solutions: Sequence[Solution], chosen: Sequence[int]) -> list[tuple[np.ndarray, bool]]:
        """Each question's columns (tasks, K, P) fitted on all rows at its C, and whether they converged."""
        config, found = self.config, {}
        tol = min(config.tol, REFIT_TOLERANCE)
        for (place, number), tasks in self._wanted(chosen).items():
            solution = solutions[place]
            group, coef = self.groups[number], solution.coef[number]
            fits = refit(self.passes, group, coef, solution.C, tasks, tol=tol, memory=config.memory)
            found |= {(number, task): fit for task, *fit in zip(tasks, *fits, strict=True)}
        parts = [[found[place] for place in self.where[slice(*edges)]] for edges in self.task_range]
        return [
            (torch.stack([coef for coef, _ in part]).cpu().numpy(), all(bool(ok) for _, ok in part))
            for part in parts
        ]

    def _wanted(self, chosen: Sequence[int]) -> dict[tuple[int, int], list[int]]:
        """(place of a C, group) → the tasks in it that are refitted there."""
        wanted: dict[tuple[int, int], list[int]] = {}
        for place, edges in zip(chosen, self.task_range, strict=True):
            for group, task in self.where[slice(*edges)]:
                wanted.setdefault((place, group), []).append(task)
        return wanted

    def fitted(
        self,
        i: int,
        C: float,
        columns: np.ndarray,
        converged: bool,
        scores: Scores | None,
        held: np.ndarray | None,
    ) -> Fitted:
        """Head of problem i on raw features."""
        coef, intercept = self.questions[i].head(columns)
        raw, offset = self.standard.fold(self.design.on_features(coef), intercept.astype(np.float64))
        return Fitted(raw, offset, self.standard, C, self.questions[i].link, scores, held, converged)


def _row_weights(questions: Sequence[TargetProblem], views: int) -> np.ndarray | None:
    """(n · V,) weights for the standardisation: the samples' own where one question alone has them."""
    if len(questions) > 1 or questions[0].sample_weight is None:
        return None
    return np.repeat(questions[0].sample_weight, views)


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
        question = TargetProblem(
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
