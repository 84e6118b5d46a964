"""Ridge regression: one decomposition, then every penalty in closed form; folds by subtraction.

With centred rows X (n, D), weights s and answers Y (n, C), ½ C Σ s_i |y_i − x_i W − b|² + ½ ‖W‖² is least at

    W = (XᵀSX + λI)⁻¹ XᵀSY = Q (Λ + λ)⁻¹ Qᵀ XᵀSY,    λ = 1/C,    XᵀSX = Q Λ Qᵀ,

for all λ from one decomposition. The moments of the rows outside a fold are those of all rows less the
fold's, so that one pass serves the full fit and all folds.

Shapes: n rows, D features, C outputs, G penalties, F folds, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from bottleneck.heads.crew import Crew
from bottleneck.heads.design import Design


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
    design: Design, crew: Crew, answers: np.ndarray, weights: np.ndarray, fold: np.ndarray, folds: int
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
