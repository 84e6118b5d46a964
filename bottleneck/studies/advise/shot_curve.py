"""Accuracy as a function of the number of images per class, and what more images would bring.

Each point is a linear classifier in closed form (ridge regression on one-hot targets), as in the few-shot
evaluation of Kolesnikov et al., "Big Transfer", ECCV 2020; the penalty is chosen by leave-one-out.

Shapes: n samples to learn from, m to measure on, D features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

SHOTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
PENALTIES = tuple(np.logspace(0, 6, 7))
DRAWS = 3
MOST_ROWS = 2000  # of one fit; larger shots are left out
MOST_CLASSES = 200
FEWEST_POINTS = 3  # of a power law


@dataclass(frozen=True)
class ShotPoint:
    """Accuracy with `shots` images per class: of each draw (values), and their mean."""

    shots: int
    mean: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class ShotCurve:
    """The curve, and the power law error = a · shots^−b through its upper points.

    exponent : b. doubling : accuracy that twice the images of the last point would add by that law.
    Both are None where the points are too few for a law.
    """

    points: tuple[ShotPoint, ...]
    exponent: float | None
    doubling: float | None

    @property
    def text(self) -> str:
        """One sentence."""
        if self.doubling is None:
            return "too few images for a curve over the number of images"
        last = self.points[-1]
        return (
            f"{last.mean:.3f} at {last.shots} images per class; twice as many would add about "
            f"{100 * self.doubling:.1f} points (error falls as images^−{self.exponent:.2f})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return points, law and sentence."""
        return {**asdict(self), "text": self.text}


def shot_curve(
    x: np.ndarray, codes: np.ndarray, held_x: np.ndarray, held_codes: np.ndarray, *, seed: int = 0
) -> ShotCurve:
    """Fit on k images of each class, k = 1, 2, 5 … up to the number that there is, and measure on others.

    Parameters
    ----------
    x, codes : (n, D) features to learn from, (n,) classes. A class with fewer than k images gives all it has.
    held_x, held_codes : (m, D), (m,)
    seed : of the three draws for each k. A draw of more images contains the draw of fewer.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(codes, return_counts=True)
    if len(classes) > MOST_CLASSES:
        classes = np.sort(rng.permutation(classes)[:MOST_CLASSES])
        counts = np.array([(codes == k).sum() for k in classes])
        inside = np.isin(held_codes, classes)
        held_x, held_codes = held_x[inside], held_codes[inside]
    orders = [[rng.permutation(np.flatnonzero(codes == k)) for k in classes] for _ in range(DRAWS)]
    most = int(np.median(counts))
    shots = [k for k in SHOTS if k < most and k * len(classes) <= MOST_ROWS]
    if np.minimum(counts, most).sum() <= MOST_ROWS:
        shots.append(most)
    points = []
    for k in shots:
        draws = [np.concatenate([order[:k] for order in draw]) for draw in orders]
        values = [_accuracy(x[rows], codes[rows], held_x, held_codes) for rows in draws]
        points.append(ShotPoint(k, float(np.mean(values)), tuple(values)))
    return ShotCurve(tuple(points), *_power_law(points, len(held_codes)))


def _accuracy(x: np.ndarray, codes: np.ndarray, held_x: np.ndarray, held_codes: np.ndarray) -> float:
    scaler = StandardScaler().fit(x.astype(np.float64))
    model = RidgeClassifierCV(PENALTIES).fit(scaler.transform(x), codes)
    return float((model.predict(scaler.transform(held_x)) == held_codes).mean())


def _power_law(points: list[ShotPoint], held: int) -> tuple[float | None, float | None]:
    """Return b and what twice the images would add, from the upper half of the points."""
    upper = points[-max(FEWEST_POINTS, len(points) // 2 + 1) :]
    if len(upper) < FEWEST_POINTS:
        return None, None
    errors = np.maximum([1 - point.mean for point in upper], 0.5 / held)  # 0 errors of few samples
    slope, _ = np.polyfit(np.log([point.shots for point in upper]), np.log(errors), 1)
    exponent = max(0.0, -float(slope))
    return exponent, float(errors[-1] * (1 - 2.0**-exponent))
