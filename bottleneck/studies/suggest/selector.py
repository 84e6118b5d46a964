"""Choose samples to label: those that a head is uncertain of, and that differ from each other.

One after the other, the sample with the largest

    (1 − margin) · distance to the nearest one chosen so far

is chosen. The margin is the likeliest class' probability less the next one's (Scheffer et al. 2001). The
distance is 1 − cosine: the greedy step of k-center (Sener and Savarese 2018), weighted by uncertainty. A copy
of a chosen sample has distance 0.

Shapes: n samples, D features, d components, K classes, b chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bottleneck.heads.row_blocks import block_size, blocks, read_checked
from bottleneck.samples import RowReader
from bottleneck.studies.components import leading

COMPONENTS = 128
MOST_ROWS, LEAST_ROWS = 4000, 4 * COMPONENTS  # that the components are found on
MOST_CELLS = 1 << 23  # of these rows
RANK = 1e-10  # eigenvalues below this share of the largest one are 0
ROUNDING = 1e-6  # score that a copy may have


@dataclass(frozen=True)
class Space:
    """The first principal components of standardised features. mean (D,), axes (D, d)."""

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, *parts: RowReader) -> Space:
        """Return the space of rows (n, D) of several readers, of many some that are evenly spread."""
        total = sum(rows.shape[0] for rows in parts)
        most = min(MOST_ROWS, max(LEAST_ROWS, MOST_CELLS // parts[0].shape[1]))
        share = min(1.0, most / total)
        x = np.concatenate([rows.take(_spread(rows.shape[0], share)).astype(np.float64) for rows in parts])
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 0, scale, 1)
        x = (x - mean) / scale
        wide = x.shape[1] > len(x)
        values, vectors = leading(x @ x.T if wide else x.T @ x, COMPONENTS)
        kept = np.flatnonzero(values > values[-1] * RANK)[::-1]
        axes = x.T @ vectors[:, kept] / np.sqrt(values[kept]) if wide else vectors[:, kept]
        return cls(mean, axes / scale[:, None])

    def project(self, rows: RowReader) -> np.ndarray:
        """Return (n, d) float32 of rows (n, D)."""
        projected = np.empty((rows.shape[0], self.axes.shape[1]), np.float32)
        for start, stop in blocks(rows, block_size(rows.shape[1])):
            projected[start:stop] = (read_checked(rows, start, stop) - self.mean) @ self.axes
        return projected


def _spread(n: int, share: float) -> np.ndarray:
    """Return about `share` of 0 … n−1, evenly spread, one at least where there is any."""
    return np.unique(np.linspace(0, n - 1, min(n, max(1, round(share * n)))).astype(int))


def margins(probabilities: np.ndarray) -> np.ndarray:
    """Return the largest probability less the second one, (n,), of probabilities (n, K), K ≥ 2."""
    top = np.partition(probabilities, -2, axis=1)
    return top[:, -1] - top[:, -2]


def directions(projected: np.ndarray) -> np.ndarray:
    """Scale rows (n, d) to length 1; a row of zeros stays."""
    length = np.linalg.norm(projected, axis=1, keepdims=True)
    return projected / np.where(length > 0, length, 1)


def choose(margin: np.ndarray, unit: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose up to `count` of n samples.

    Parameters
    ----------
    margin : (n,) in 0 … 1
    unit : (n, d) features of length 1

    Returns
    -------
    index (b,) in the order of choice, of equal scores the earlier sample first; score (b,) when chosen. Fewer
    than `count` where all that is left are copies of chosen ones.
    """
    worth = 1.0 - margin
    distance = np.ones(len(margin))
    index: list[int] = []
    scores: list[float] = []
    for _ in range(min(count, len(margin))):
        score = worth * distance
        best = int(score.argmax())
        if score[best] <= ROUNDING:
            break
        index.append(best)
        scores.append(float(score[best]))
        np.minimum(distance, 1 - unit @ unit[best], out=distance)
        distance[best] = 0
    return np.array(index, np.int64), np.array(scores)
