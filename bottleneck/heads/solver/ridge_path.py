"""Ridge regression in closed form: all penalties from one decomposition, folds by subtraction.

With centred rows X (n, D), weights s and answers Y (n, K), ½ C Σ s_i |y_i − x_i W − b|² + ½ ‖W‖² is least at

    W = (XᵀSX + λI)⁻¹ XᵀSY = Q (Λ + λ)⁻¹ Qᵀ XᵀSY,    λ = 1/C,    XᵀSX = Q Λ Qᵀ,

for all λ from one decomposition. The moments of the rows outside a fold are those of all rows minus the
fold's, so that one pass over the rows serves the fit on all of them and the fits of all folds.

Shapes: n rows, B rows of a block, D features, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bottleneck.errors import FitError
from bottleneck.heads.solver.arrays import Array, to_numpy
from bottleneck.heads.solver.design import Design
from bottleneck.heads.solver.problem import NO_FOLD
from bottleneck.threads import WorkerPool


class Moments(NamedTuple):
    """Weighted sums over rows in float64: weight (), x (D,), y (K,), xx (D, D), xy (D, K) and yy (K,)."""

    weight: np.ndarray
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    @classmethod
    def zeros(cls, D: int, K: int) -> Moments:
        """Return the moments of no rows."""
        return cls(*(np.zeros(shape) for shape in ((), (D,), (K,), (D, D), (D, K), (K,))))

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Moments:
        """Return the moments of a block of rows x (B, D), y (B, K) float64, weights (B,) float64.

        Products of x with itself are taken in its own precision, since they are nearly all of the work.
        """
        xw = x * weights.astype(x.dtype)[:, None]
        yw = y * weights[:, None]
        return cls(
            weights.sum(),
            xw.sum(axis=0, dtype=np.float64),
            yw.sum(axis=0),
            xw.T @ x,
            x.T.astype(np.float64) @ yw,
            (y * yw).sum(axis=0),
        )

    def add(self, other: Moments) -> None:
        """Add the sums over other rows, in place."""
        for total, part in zip(self, other, strict=True):
            total += part

    def without(self, other: Moments) -> Moments:
        """Return the moments without the rows of `other`."""
        return Moments(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True)
class RidgePath:
    """The solutions for all penalties on one set of rows.

    values (D,), vectors (D, D) : of XᵀSX. projected : (D, K) Qᵀ XᵀSY. mean_x (D,), mean_y (K,).
    weight : sum of the weights. yy : (K,) sum of squares of the centred answers.
    """

    values: np.ndarray
    vectors: np.ndarray
    projected: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    weight: float
    yy: np.ndarray

    @classmethod
    def of(cls, moments: Moments) -> RidgePath:
        """Return the path for the rows that have these moments. Raise FitError if they have no weight."""
        weight = float(moments.weight)
        if not weight > 0:
            raise FitError(
                "A ridge head has no sample with a positive weight to be fitted on.",
                "Look at the labels, the groups and the weights of the samples.",
            )
        mean_x, mean_y = moments.x / weight, moments.y / weight
        xx = moments.xx - weight * np.outer(mean_x, mean_x)
        xy = moments.xy - weight * np.outer(mean_x, mean_y)
        values, vectors = np.linalg.eigh(xx)
        yy = moments.yy - weight * mean_y**2
        return cls(np.maximum(values, 0), vectors, vectors.T @ xy, mean_x, mean_y, weight, yy)

    def at(self, C: float) -> tuple[np.ndarray, np.ndarray]:
        """Return coef (K, D) and intercept (K,) at the penalty 1/C."""
        coef = (self.vectors @ (self.projected / (self.values + 1 / C)[:, None])).T
        return coef, self.mean_y - coef @ self.mean_x

    def gcv(self, C: float) -> float:
        """Return the mean squared error by generalised cross-validation (Golub, Heath and Wahba 1979).

        It is RSS / n over (1 − df / n)², with df = 1 + Σ Λ / (Λ + λ), and needs no pass over the rows.
        """
        shrunk = 1 / (self.values + 1 / C)
        square = self.projected**2
        rss = self.yy - 2 * (square.T @ shrunk) + square.T @ (self.values * shrunk**2)
        free = max(1 - (1 + (self.values * shrunk).sum()) / self.weight, 1e-12)
        return max(float(rss.sum()), 0.0) / self.weight / float(free**2)


def moments_by_fold(
    design: Design, pool: WorkerPool, answers: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> list[Moments]:
    """Return the moments of the rows of each fold and, last, of the rows that no fold holds out.

    answers (n, K), weights (n,), fold (n,) in the order of the design's rows.
    """
    folds = 1 + int(fold.max(initial=NO_FOLD))
    part_of = np.where(fold == NO_FOLD, folds, fold)

    def block(x: Array, start: int, stop: int) -> list[tuple[int, Moments]]:
        rows, parts = to_numpy(x), part_of[start:stop]
        found = []
        for part in np.unique(parts):
            members = np.flatnonzero(parts == part)
            at = start + members
            found.append((int(part), Moments.of(rows[members], answers[at], weights[at])))
        return found

    totals = [Moments.zeros(design.read(0, 1).shape[1], answers.shape[1]) for _ in range(folds + 1)]
    for found in design.each_block(pool, block):
        for part, moments in found:
            totals[part].add(moments)
    return totals
