"""Least squares with an L2 penalty, for classes and for numbers, as scikit-learn estimators.

Shapes: n samples, D features, C outputs.

Ridge regression: one decomposition, then every penalty in closed form; folds by subtraction.

With centred rows X (n, D), weights s and answers Y (n, C), ½ C Σ s_i |y_i − x_i W − b|² + ½ ‖W‖² is least at

    W = (XᵀSX + λI)⁻¹ XᵀSY = Q (Λ + λ)⁻¹ Qᵀ XᵀSY,    λ = 1/C,    XᵀSX = Q Λ Qᵀ,

for all λ from one decomposition. The moments of the rows outside a fold are those of all rows less the
fold's, so that one pass serves the full fit and all folds.

Shapes: n rows, D features, C outputs, G penalties, F folds, B rows of a block.

All ridge heads of a call: every penalty × fold of a target in closed form, one chosen, refit included.

Shapes: n samples, V rows (views) of a sample, D features, C outputs, G values of C, F folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.cross_validation import AUTO_C, grid_of, tally_of
from bottleneck.heads.estimator import ClassHead
from bottleneck.heads.logistic import DEFAULT, DEFAULT_MEMORY, Fitted, SweepConfig
from bottleneck.heads.row_blocks import (
    as_rows,
    is_double,
    is_reader,
    linear_outputs,
    without_torch,
)
from bottleneck.heads.solver.design import (
    Design,
    Standardisation,
    build_design,
    standardisation,
    streamed_like,
)
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem, class_factors, weights_by_code
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import UNLABELLED, ArrayRows, RowReader
from bottleneck.threads import WorkerPool


@dataclass(frozen=True)
class Moments:
    """Weighted sums over rows: weight, x (D,), y (C,), xx (D, D), xy (D, C), yy (C,); float64."""

    weight: float
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    def less(self, other: Moments) -> Moments:
        """The moments without the rows of `other`."""
        return Moments(*(mine - theirs for mine, theirs in zip(self.parts(), other.parts(), strict=True)))

    def parts(self) -> tuple:
        """All sums, in order."""
        return self.weight, self.x, self.y, self.xx, self.xy, self.yy


@dataclass(frozen=True)
class Path:
    """The ridge path of one set of rows.

    values (D,), vectors (D, D) of XᵀSX; projected : (D, C) Qᵀ XᵀSY; mean_x (D,), mean_y (C,); weight, and
    yy (C,), the centred sum of squares.
    """

    values: np.ndarray
    vectors: np.ndarray
    projected: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    weight: float
    yy: np.ndarray

    def at(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """coef (C, D) and intercept (C,) at λ = `penalty`."""
        coef = (self.vectors @ (self.projected / (self.values + penalty)[:, None])).T
        return coef, self.mean_y - coef @ self.mean_x

    def gcv(self, penalties: Sequence[float]) -> np.ndarray:
        """(G,) generalised cross-validation (Golub, Heath and Wahba 1979), a mean squared error per λ.

        RSS / n over (1 − df / n)², with df = 1 + Σ Λ / (Λ + λ): neither needs the rows.
        """
        found = []
        for penalty in penalties:
            shrunk = 1 / (self.values + penalty)
            square = self.projected**2
            rss = self.yy - 2 * (square.T @ shrunk) + square.T @ (self.values * shrunk**2)
            free = max(1 - (1 + (self.values * shrunk).sum()) / self.weight, 1e-12)
            found.append(max(float(rss.sum()), 0.0) / self.weight / free**2)
        return np.array(found)


def ridge_path(moments: Moments) -> Path:
    """Decompose the moments of some rows, centred."""
    mean_x, mean_y = moments.x / moments.weight, moments.y / moments.weight
    xx = moments.xx - moments.weight * np.outer(mean_x, mean_x)
    xy = moments.xy - moments.weight * np.outer(mean_x, mean_y)
    yy = moments.yy - moments.weight * mean_y**2
    values, vectors = eigh(xx, driver="evd", overwrite_a=True, check_finite=False)
    return Path(np.maximum(values, 0), vectors, vectors.T @ xy, mean_x, mean_y, moments.weight, yy)


def moments_by_fold(
    design: Design, crew: WorkerPool, answers: np.ndarray, weights: np.ndarray, fold: np.ndarray, folds: int
) -> list[Moments]:
    """Moments of the rows of every fold, and last of the rows that no fold holds out.

    answers (n, C), weights (n,), fold (n,) in the order of the design's rows; products in its dtype.
    """

    def block(x, start: int, stop: int) -> list[tuple[int, tuple]]:
        x, y, w = x.numpy(force=True), answers[start:stop], weights[start:stop]
        parts = []
        for number in np.unique(fold[start:stop]):
            here = np.flatnonzero(fold[start:stop] == number)
            xh, yh, wh = x[here], y[here].astype(x.dtype), w[here].astype(x.dtype)
            xw = xh * wh[:, None]
            sums = (
                wh.sum(dtype=np.float64),
                xw.sum(axis=0, dtype=np.float64),
                (yh * wh[:, None]).sum(axis=0),
            )
            parts.append((int(number), (*sums, xw.T @ xh, xw.T @ yh, (yh**2 * wh[:, None]).sum(axis=0))))
        return parts

    D = design.read(0, 1).shape[1]
    C = answers.shape[1]
    shapes = ((), (D,), (C,), (D, D), (D, C), (C,))
    totals = [[np.zeros(shape) for shape in shapes] for _ in range(folds + 1)]
    for parts in design.each_block(crew, block):
        for number, sums in parts:
            for total, part in zip(totals[number], sums, strict=True):
                total += part
    return [Moments(*total) for total in totals]


def ridge_sweep(
    rows: RowReader,
    questions: Sequence[TargetProblem],
    Cs: Sequence[float],
    config: SweepConfig = DEFAULT,
    plain: RowReader | None = None,
    reporter: Reporter = SILENT,
) -> list[Fitted]:
    """Fit all questions by least squares; arguments and result are those of `sweep.sweep`, C = 1/λ.

    Classes and labels are asked as −1 and 1, one output each; the values of a regression as they are.
    """
    with WorkerPool(config.device) as crew:
        n = len(questions[0].fold)
        views = rows.shape[0] // n
        standard = Standardisation.identity(rows.shape[1])
        if config.standardize:
            standard = standardisation(rows, crew, None, config.dtype)
        design, order = build_design(rows, standard, crew, config.memory, dtype=config.dtype)
        scored: Design = design
        if plain is not None:
            scored = streamed_like(design, plain)
        with reporter.step("Fitting ridge heads", total=len(questions), unit="targets") as advance:
            found = []
            for question in questions:
                found.append(_one(question, design, scored, crew, sorted(Cs), order // views, views, config))
                advance(1)
        return found


def _one(
    question: TargetProblem,
    design: Design,
    scored: Design,
    crew: WorkerPool,
    Cs: Sequence[float],
    sample: np.ndarray,
    views: int,
    config: SweepConfig,
) -> Fitted:
    """sample : (n · V,), the sample of each row of the design."""
    folds = int(question.fold.max(initial=NO_FOLD)) + 1
    answers, weights = _answers(question)
    parts = moments_by_fold(
        design, crew, answers[sample], weights[sample] / views, question.fold[sample], folds
    )
    whole = parts[-1] if not folds else _sum(parts)
    paths = [ridge_path(whole.less(part)) for part in parts[:-1]]
    scores = held = None
    chosen = len(Cs) - 1
    if folds:
        tally = tally_of(question.target, question.fold, folds, question.link)
        for _ in Cs:
            tally.begin()
        for samples, number, x in _held_rows(design, scored, crew, question.fold, sample):
            coef, intercept = _grid(paths[number], Cs, design, scored)
            for place in range(len(Cs)):
                tally.add(samples, x @ coef[place].T + intercept[place], place)
        scores = tally.scores(Cs)
        chosen = scores.choose(config.one_standard_error)
        held = np.full((len(question.fold), answers.shape[1]), np.nan, np.float32)
        for samples, number, x in _held_rows(design, scored, crew, question.fold, sample):
            coef, intercept = _grid(paths[number], Cs[chosen : chosen + 1], design, scored)
            held[samples] = x @ coef[0].T + intercept[0]
    coef, intercept = ridge_path(whole).at(1 / Cs[chosen])
    raw, offset = design.standard.fold(design.from_blocks(coef), intercept)
    return Fitted(raw, offset, design.standard, Cs[chosen], question.link, scores, held, True)


def _answers(question: TargetProblem) -> tuple[np.ndarray, np.ndarray]:
    """(n, C) float64 answers and (n,) weights, 0 where there is no label."""
    target, seen = question.target, question.target.labelled
    weights = np.ones(len(seen)) if question.sample_weight is None else question.sample_weight
    if target.kind == "regression":
        return np.where(seen, target.values, 0.0)[:, None], np.where(seen, weights, 0.0)
    if target.kind == "multilabel":
        return np.where(target.values == 1, 1.0, -1.0), np.where(seen, weights, 0.0)
    codes = np.where(target.values == UNLABELLED, 0, target.values)
    factor = class_factors(question.class_weight, codes, seen)
    answers = np.where(codes[:, None] == np.arange(question.outputs), 1.0, -1.0)
    return answers, np.where(seen, weights * factor[codes], 0.0)


def _sum(parts: Sequence[Moments]) -> Moments:
    return Moments(*(sum(values) for values in zip(*(part.parts() for part in parts), strict=True)))


def _grid(path: Path, Cs: Sequence[float], design: Design, scored: Design) -> tuple[np.ndarray, np.ndarray]:
    """coef (G, C, D) float32 as they multiply the blocks of `scored`, intercept (G, C)."""
    found = [path.at(1 / C) for C in Cs]
    coef = np.stack([coef for coef, _ in found])
    if scored is not design:
        coef = np.stack([design.from_blocks(part) for part in coef])
    return coef.astype(np.float32), np.stack([intercept for _, intercept in found]).astype(np.float32)


def _held_rows(design: Design, scored: Design, crew: WorkerPool, fold: np.ndarray, sample: np.ndarray):
    """(samples (B,), their fold, rows (B, D)) of all blocks, fold by fold within a block."""
    order = sample if scored is design else np.arange(len(fold))
    for start, stop in scored.blocks():
        x = scored.read(start, stop).numpy(force=True)
        samples = order[start:stop]
        for number in np.unique(fold[samples]):
            if number != NO_FOLD:
                here = fold[samples] == number
                yield samples[here], int(number), x[here]


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
    with WorkerPool() as crew:
        standard = Standardisation.identity(rows.shape[1])
        if head.standardize:
            standard = standardisation(rows, crew, weights, dtype)
        design, order = build_design(rows, standard, crew, head.memory, dtype=dtype)
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
