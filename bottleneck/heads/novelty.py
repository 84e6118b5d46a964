"""How unlike the training samples a sample is, from features alone: the mean distance to the nearest ones.

    features ──► sign(x) √|x| ──► unit length ──► 1 − cosine to each stored row ──► mean of the k least

The distance to neighbours is that of Sun, Ming, Zhu and Li (2022), on features whose large values are damped
(power normalisation; Perronnin, Sánchez and Mensink 2010). `docs/DECISIONS.md` compares it with others. It
needs no labels, so that it is the same for every kind of target. A node of one image is normalised by itself,
and the cosines of several are averaged; covariates take no part.

A threshold comes from training samples, each compared with the stored rows of other samples only. If a new
sample is drawn like these, it is above the threshold for the rate r with probability r at most, where no
scored sample is a stored row, and about r where they are the same (leave-one-out).

Shapes: n samples, D features, r stored rows, m scored training samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bottleneck.errors import ArtifactError, counted
from bottleneck.heads.row_blocks import block_size
from bottleneck.records import is_integer, require_fields
from bottleneck.samples import RowReader

NEIGHBOURS = 3
MOST_ROWS = 2000  # stored, and scored
MOST_BYTES = 8 << 20  # of the stored rows: 2,000 of 2,048 features in float16
SEED = 0  # of the samples that are stored and scored


@dataclass(frozen=True, eq=False)
class Novelty:
    """The stored training rows, and the novelty of training samples.

    Parameters
    ----------
    rows : (r, D') float16, the normalised features of stored samples.
    scores : (m,) float32, ascending: the novelty of training samples, each without its own row and without
        the rows of its group and of equal images.
    blocks : start and stop of the columns of each node of each image; D' columns in all.
    k : neighbours that are averaged.
    """

    rows: np.ndarray = field(repr=False)
    scores: np.ndarray = field(repr=False)
    blocks: tuple[tuple[int, int], ...]
    k: int = NEIGHBOURS

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple((int(start), int(stop)) for start, stop in self.blocks))
        width = sum(stop - start for start, stop in self.blocks)
        ordered = all(start < stop for start, stop in self.blocks)
        stops = [0, *(stop for _, stop in self.blocks)]
        ordered = ordered and all(a <= b for a, (b, _) in zip(stops, self.blocks, strict=False))
        if not ordered or self.k < 1 or self.rows.ndim != 2 or self.rows.shape[1:] != (width,):
            raise ArtifactError(f"A head's stored rows have shape {self.rows.shape}; expected (r, {width}).")
        if not len(self.rows) or not len(self.scores) or self.scores.ndim != 1:
            raise ArtifactError("A head has stored rows or scores of novelty without the other.")
        if not np.isfinite(self.rows).all() or not np.isfinite(self.scores).all():
            raise ArtifactError("A head's stored rows or scores of novelty hold NaN or infinite numbers.")
        if (np.diff(self.scores) < 0).any():
            raise ArtifactError("A head's scores of novelty are not in ascending order.")

    @property
    def width(self) -> int:
        """The least number of features of an input."""
        return self.blocks[-1][1]

    def of(self, features: np.ndarray) -> np.ndarray:
        """Return the novelty (n,) float32 of raw features (n, D): 0 for a stored row, at most 2."""
        stored = self.rows.astype(np.float32)
        size = block_size(max(features.shape[1], len(stored)))
        parts = [
            _mean_of_least(normalised(features[start : start + size], self.blocks) @ stored.T, self.k)
            for start in range(0, len(features), size)
        ]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def threshold(self, rate: float) -> float:
        """Return the novelty above which a share `rate` of samples like those of training is.

        It is the ⌈(m + 1)(1 − rate)⌉-th least of the scores (Bates et al. 2023).

        Raises ArtifactError if there are too few scores for so small a rate.
        """
        m = len(self.scores)
        rank = math.ceil((m + 1) * (1 - rate) - 1e-9)
        if rank > m:
            raise ArtifactError(
                f"--reject {rate:g} needs "
                f"{counted(math.ceil(1 / rate - 1e-9) - 1, 'scored training sample')}; the "
                f"head has {m:,}.",
                f"Give {math.ceil(1e4 / (m + 1)) / 1e4:g} or more, or fit the head on more samples.",
            )
        return float(self.scores[max(rank, 1) - 1])

    def to_json(self) -> dict[str, Any]:
        """Return what the description of a head file holds beside the arrays."""
        return {"k": self.k, "blocks": [list(block) for block in self.blocks]}

    @classmethod
    def from_json(cls, record: Any, rows: np.ndarray, scores: np.ndarray) -> Novelty:
        """Rebuild from `to_json` and the arrays. Raises ArtifactError where a field is invalid."""
        require_fields(record, {"k": is_integer, "blocks": _are_bounds}, "A head's record of novelty")
        return cls(rows, scores, tuple(map(tuple, record["blocks"])), record["k"])


def _are_bounds(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, list) and len(each) == 2 and all(map(is_integer, each)) for each in value)
    )


def fit_novelty(rows: RowReader, blocks: Sequence[tuple[int, int]], units: np.ndarray) -> Novelty | None:
    """Return the novelty of training rows (n, D); None if all are of one unit.

    A random part of the rows is stored, and another scored; where there are few, they overlap.

    units : (n,) int. Samples of one unit (a group, or equal images) are not compared with each other.
    """
    n = len(units)
    width = sum(stop - start for start, stop in blocks)
    order = np.random.default_rng(SEED).permutation(n)
    stored = np.sort(order[: min(MOST_ROWS, max(1, MOST_BYTES // (2 * width)))])
    scored = np.sort(order[-MOST_ROWS:])
    kept = normalised(rows.take(stored), blocks).astype(np.float16)
    values = kept.astype(np.float32)
    parts = []
    for start in range(0, len(scored), size := block_size(max(rows.shape[1], len(stored)))):
        chosen = scored[start : start + size]
        cosine = normalised(rows.take(chosen), blocks) @ values.T
        cosine[units[chosen][:, None] == units[stored]] = -np.inf
        parts.append(_mean_of_least(cosine, NEIGHBOURS))
    scores = np.concatenate(parts)
    scores = np.sort(scores[np.isfinite(scores)])
    return Novelty(kept, scores, tuple(blocks)) if len(scores) else None


def normalised(features: np.ndarray, blocks: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return features (n, D) as (n, D') float32 whose inner products are mean cosines of the blocks."""
    parts = []
    for start, stop in blocks:
        x = features[:, start:stop].astype(np.float32)
        x = np.sign(x) * np.sqrt(np.abs(x))
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        parts.append(x / np.float32(math.sqrt(len(blocks))))
    return np.concatenate(parts, axis=1)


def _mean_of_least(cosine: np.ndarray, k: int) -> np.ndarray:
    """Return the mean of the k least distances 1 − cosine of each row (n, r), over those that are finite."""
    k = min(k, cosine.shape[1])
    nearest = -np.partition(-cosine, k - 1, axis=1)[:, :k]
    counted = np.isfinite(nearest)
    total = np.where(counted, 1 - nearest, 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(counted.any(axis=1), total / counted.sum(axis=1), np.inf).astype(np.float32)
