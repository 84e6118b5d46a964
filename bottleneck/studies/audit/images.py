"""Images that are nearly the same, and images that are like no others, by the distances of their features.

The distance of two images is 1 − cosine of their features less the mean feature, 0 for equal ones.

Shapes: n images, D features, d components, k neighbours, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import ArrayRows, RowReader
from bottleneck.studies.components import leading
from bottleneck.studies.similar.neighbours import nearest

NEIGHBOURS = 10
EXACT_ROWS = 10_000  # more are compared by their first components
COMPONENTS = 128
BLOCK = 2048  # rows


@dataclass(frozen=True)
class Neighbourhood:
    """The nearest other images of n images. index (n, k), −1 where there are no more; distance (n, k)."""

    index: np.ndarray
    distance: np.ndarray


def centred(rows: RowReader, order: np.ndarray | None = None) -> ArrayRows:
    """Return rows (n, D) less their mean; of more than `EXACT_ROWS` their first 128 principal components.

    order : (n,) which rows, all by default
    """
    chosen = np.arange(rows.shape[0]) if order is None else order
    if len(chosen) <= EXACT_ROWS:
        x = rows.take(chosen).astype(np.float32)
        return ArrayRows(x - x.mean(axis=0))
    spread = chosen[np.unique(np.linspace(0, len(chosen) - 1, EXACT_ROWS).astype(int))]
    mean, gram = _moments(rows, spread)
    axes = leading(gram, COMPONENTS)[1].astype(np.float32)
    projected = np.empty((len(chosen), axes.shape[1]), np.float32)
    for start in range(0, len(chosen), BLOCK):
        block = rows.take(chosen[start : start + BLOCK]).astype(np.float32)
        projected[start : start + BLOCK] = (block - mean) @ axes
    return ArrayRows(projected)


def _moments(rows: RowReader, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (D,) float32 and the centred Gram matrix (D, D) float64 of the rows `chosen` (n,)."""
    shift = rows.take(chosen[:BLOCK]).astype(np.float32).mean(axis=0)
    total, gram = np.zeros(len(shift)), np.zeros((len(shift), len(shift)))
    for start in range(0, len(chosen), BLOCK):
        block = rows.take(chosen[start : start + BLOCK]).astype(np.float32) - shift
        total += block.sum(axis=0, dtype=np.float64)
        gram += block.T @ block
    total /= len(chosen)
    return shift + total.astype(np.float32), gram - len(chosen) * np.outer(total, total)


def neighbourhood(
    rows: RowReader,
    among: np.ndarray | None = None,
    reporter: Reporter = SILENT,
    *,
    of: np.ndarray | None = None,
) -> Neighbourhood:
    """Find the `NEIGHBOURS` nearest rows of each row (n, d), other than itself.

    among : (m,) indices of the rows that may be neighbours, all by default
    of : indices of the rows whose neighbours are sought, all by default; they are the n of the result
    """
    allowed = np.arange(rows.shape[0]) if among is None else among
    position = np.full(rows.shape[0], -1)
    position[allowed] = np.arange(len(allowed))
    candidates = rows if among is None else ArrayRows(rows.take(allowed))
    queries, itself = (rows, position) if of is None else (ArrayRows(rows.take(of)), position[of])
    with reporter.step("Comparing", total=len(itself) * len(allowed), unit="pairs") as advance:
        index, cosine = nearest(candidates, queries, NEIGHBOURS, itself, advance)
    index = np.where(index >= 0, allowed[index], -1)
    return Neighbourhood(index, np.where(index >= 0, 1 - cosine, np.inf))


def joined(a: Neighbourhood, b: Neighbourhood) -> Neighbourhood:
    """Return the nearest ones of two neighbourhoods of the same images, among others each."""
    index = np.concatenate([a.index, b.index], axis=1)
    distance = np.concatenate([a.distance, b.distance], axis=1)
    best = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBOURS]
    return Neighbourhood(*(np.take_along_axis(each, best, 1) for each in (index, distance)))


def near_pairs(near: Neighbourhood, cosine: float, ratio: float) -> np.ndarray:
    """Return the pairs (P, 2) of images that are nearly the same, the nearest first.

    A pair has a cosine of `cosine` or more, and is closer than `ratio` times the distance at which either
    image has its last neighbour: images of one kind are near each other without being copies. A pair at a
    tenth of the allowed distance is one in any case, such as an image of which there are many copies.
    """
    n, k = near.index.shape
    first, second = np.repeat(np.arange(n), k), near.index.reshape(-1)
    distance, most = near.distance.reshape(-1), 1 - cosine
    last = np.where(np.isfinite(near.distance), near.distance, -np.inf).max(axis=1)
    alone = distance <= ratio * np.minimum(last[first], last[second])
    close = (second >= 0) & (distance <= most) & (alone | (distance <= most / 10))
    pairs = np.sort(np.stack([first[close], second[close]], axis=1), axis=1)
    pairs, where = np.unique(pairs, axis=0, return_index=True)
    return pairs[np.argsort(distance[close][where], kind="stable")]


def outlier_scores(near: Neighbourhood) -> np.ndarray:
    """Return the mean distance (n,) of each image to its neighbours; 0 for an image that has none."""
    finite = np.isfinite(near.distance)
    return np.where(finite, near.distance, 0).sum(axis=1) / np.maximum(finite.sum(axis=1), 1)


def beyond_fence(scores: np.ndarray, fence: float) -> np.ndarray:
    """Return (n,) bool: scores above the third quartile by more than `fence` interquartile ranges (Tukey)."""
    low, high = np.percentile(scores, [25, 75])
    return scores > high + fence * (high - low)
