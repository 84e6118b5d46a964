"""Accuracy as a function of the number of images per class, and what more images would bring.

Each point is a linear classifier in closed form (ridge regression on one-hot targets), as in the few-shot
evaluation of Kolesnikov et al., "Big Transfer", ECCV 2020; the penalty is chosen by leave-one-out.

Shapes: n samples to learn from, m to measure on, D features, P points of a curve, d draws of a point.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bottleneck.errors import counted
from bottleneck.heads.row_blocks import as_rows, standardisation
from bottleneck.threads import WorkerPool, one_thread

SHOTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
PENALTIES = tuple(np.logspace(0, 6, 7))
DRAWS = 3
MOST_ROWS = 2000  # of one fit; larger shots are left out
MOST_CLASSES = 200
FEWEST_POINTS = 3  # of a power law
FACTORS = (2, 5)  # times the labels that there are
RESAMPLES = 1000
RANK = 1e-10  # eigenvalues below this share of the largest one are 0


@dataclass(frozen=True)
class ShotPoint:
    """Accuracy with `shots` images per class: of each draw (values), and their mean.

    labels : images of all classes together, as many as there are. right : (d, m) bool, which of the samples
        that it is measured on each draw's classifier gets right.
    """

    shots: int
    mean: float
    values: tuple[float, ...]
    labels: int = 0
    right: np.ndarray | None = field(default=None, compare=False, repr=False)


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
        if last.mean == 1:
            return (
                f"no error at {counted(last.shots, 'image')} per class, so what more of them would add "
                "does not show"
            )
        return (
            f"{last.mean:.3f} at {counted(last.shots, 'image')} per class; twice as many would add about "
            f"{100 * self.doubling:.1f} points (error falls as images^−{self.exponent:.2f})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return points, law and sentence."""
        fields = [vars(point) for point in self.points]
        points = [{name: each[name] for name in each if name != "right"} for each in fields]
        return {**vars(self), "points": points, "text": self.text}


def shot_curve(
    x: np.ndarray,
    codes: np.ndarray,
    held_x: np.ndarray,
    held_codes: np.ndarray,
    *,
    seed: int = 0,
    standardise: bool = True,
) -> ShotCurve:
    """Fit on k images of each class, k = 1, 2, 5 … up to the number that there is, and measure on others.

    Parameters
    ----------
    x, codes : (n, D) features to learn from, (n,) classes. A class with fewer than k images gives all it has.
    held_x, held_codes : (m, D), (m,)
    seed : of the three draws for each k. A draw of more images contains the draw of fewer.
    standardise : features by each draw; False where they have been standardised before.
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
        right: dict[bytes, np.ndarray] = {}  # draws of all images are one
        for rows in map(np.sort, draws):
            if rows.tobytes() not in right:
                with one_thread():
                    right[rows.tobytes()] = _right(x[rows], codes[rows], held_x, held_codes, standardise)
        each = np.stack([right[np.sort(rows).tobytes()] for rows in draws])
        values = each.mean(axis=1).tolist()
        points.append(ShotPoint(k, float(np.mean(values)), tuple(values), len(draws[0]), each))
    return ShotCurve(tuple(points), *_power_law(points, len(held_codes)))


def _right(
    x: np.ndarray, codes: np.ndarray, held_x: np.ndarray, held_codes: np.ndarray, standardise: bool
) -> np.ndarray:
    """Fit on x (n, D) and return which of the m others are predicted rightly, (m,) bool.

    In the eigenbasis of the smaller Gram matrix, leave-one-out errors at all penalties cost one
    decomposition.
    """
    classes, column = np.unique(codes, return_inverse=True)
    x, held_x = x.astype(np.float64), held_x.astype(np.float64)
    if standardise:
        scaler = standardisation(as_rows(x), WorkerPool(), dtype=np.float64)
        x, held_x = scaler.apply(x), scaler.apply(held_x)
    else:
        x, held_x = x - x.mean(axis=0), held_x - x.mean(axis=0)
    y = np.where(column[:, None] == np.arange(len(classes)), 1.0, -1.0)
    centred = y - y.mean(axis=0)
    wide = x.shape[1] >= len(x)
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = values > values.max(initial=0) * RANK
    values, vectors = values[kept], vectors[:, kept]
    vectors = vectors if wide else x @ vectors / np.sqrt(values)
    inside = vectors.T @ centred
    outside = centred - vectors @ inside
    best, dual = np.inf, centred
    for penalty in PENALTIES:
        shrunk = vectors @ (inside / (values + penalty)[:, None]) + outside / penalty
        fitted = vectors**2 @ (values / (values + penalty)) + 1 / len(x)  # how much a row fits itself
        error = float(((penalty * shrunk / (1 - fitted)[:, None]) ** 2).mean())
        if error < best:
            best, dual = error, shrunk
    outputs = held_x @ (x.T @ dual) + y.mean(axis=0)
    return classes[outputs.argmax(axis=1)] == held_codes


def _power_law(points: list[ShotPoint], held: int) -> tuple[float | None, float | None]:
    """Return b and what twice the images would add, from the upper half of the points."""
    upper = points[-max(FEWEST_POINTS, len(points) // 2 + 1) :]
    if len(upper) < FEWEST_POINTS:
        return None, None
    errors = np.maximum([1 - point.mean for point in upper], 0.5 / held)  # 0 errors of few samples
    slope, _ = np.polyfit(np.log([point.shots for point in upper]), np.log(errors), 1)
    exponent = max(0.0, -float(slope))
    return exponent, float(min(errors[-1] * (1 - 2.0**-exponent), 1 - points[-1].mean))


@dataclass(frozen=True)
class Outlook:
    """Accuracy that the power law expects of more labels, and what the law is worth.

    labels : that there are. expected : {factor, labels, accuracy, interval} of `FACTORS` times as many.
    miss : the last point, in accuracy, less what the law through the points before it expects there.
    """

    labels: int
    expected: tuple[dict[str, Any], ...]
    miss: float


def outlook(curve: ShotCurve, labels: int, *, seed: int = 0) -> Outlook | None:
    """Extend the law error = a · labels^−b to more labels; None where the points are too few to test it.

    An interval joins, in quadrature, two faults: the 95 % interval of the law when the samples measured on
    and the draws are drawn again (bootstrap), and the miss of the last point, which grows with the logarithm
    of the distance from it. The law cannot know where more labels end to help.
    """
    upper = curve.points[-max(FEWEST_POINTS + 1, len(curve.points) // 2 + 1) :]
    if len(upper) <= FEWEST_POINTS:
        return None
    at = np.log([point.labels for point in upper])
    right = np.stack([point.right for point in upper if point.right is not None])  # (P, d, m)
    P, d, m = right.shape
    least = np.log(0.5 / m)  # 0 errors of few samples
    error = np.log(np.maximum(1 - right.mean(axis=(1, 2)), np.exp(least)))
    slope, offset = _line(at[:-1], error[:-1, None])
    missed = float((error[-1] - (offset + slope * at[-1]))[0])
    random = np.random.default_rng(seed)
    weights = random.multinomial(m, np.full(m, 1 / m), size=RESAMPLES).T / m
    shares = np.take_along_axis(right @ weights, random.integers(d, size=(P, d, RESAMPLES)), axis=1)
    drawn = np.log(np.maximum(1 - shares.mean(axis=1), np.exp(least)))
    slopes, offsets = _line(at, np.concatenate([error[:, None], drawn], axis=1))
    expected = []
    for factor in FACTORS:
        where = np.log(factor * labels)
        accuracy = 1 - np.exp(np.minimum(offsets + slopes * where, 0))
        low, high = np.percentile(accuracy[1:], [2.5, 97.5])
        estimate, far = accuracy[0], abs(missed) * max(0.0, where - at[-1]) / (at[-1] - at[-2])
        spread = (1 - estimate) * np.expm1(far)
        interval = (
            float(max(0, estimate - np.hypot(max(0, estimate - low), spread))),
            float(min(1, estimate + np.hypot(max(0, high - estimate), (1 - estimate) * -np.expm1(-far)))),
        )
        expected.append(
            {"factor": factor, "labels": factor * labels, "accuracy": float(estimate), "interval": interval}
        )
    return Outlook(labels, tuple(expected), float(np.exp(error[-1] - missed) - np.exp(error[-1])))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes, none above 0, and offsets (R,) of least squares through x (P,) and each y (P, R)."""
    x0 = x - x.mean()
    slope = np.minimum(x0 @ y / (x0 @ x0), 0)
    return slope, y.mean(axis=0) - slope * x.mean()
