"""How well features suit a task, without training: LogME, H-score, LEEP, kNN accuracy.

Features are arrays or row readers (`shape`, `read(start, stop)`). Their moments (counts, sums, scatter and
principal axes) are computed in two streaming passes, in bounded memory.

Shapes: N rows, D features, K classes that occur, R rank, Z classes of the source classifier, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from bottleneck.errors import FitError, counted
from bottleneck.heads.row_blocks import as_rows, block_size, blocks, read_checked
from bottleneck.samples import RowReader

CHUNK_BYTES = 64 << 20  # of float64 rows read at a time
WIDEST = 8192  # features, where rows are more: the scatter then takes 0.5 GiB
MOST_HELD = 1 << 27  # N · D where features are more than rows: 1 GiB
MOST_QUERIES = 2000  # of kNN: the standard error of an accuracy is then at most 1.1 points
GOLDEN, STEPS = (np.sqrt(5) - 1) / 2, 30  # of the golden-section search, which leaves 1e-6 of its interval
TINY = np.finfo(float).tiny


@dataclass(frozen=True)
class Moments:
    """Statistics of labelled rows.

    Parameters
    ----------
    counts : (K,) int
    sums : (K, D) float64, of the rows of each class.
    fourth : float
        Σ |x − mean|⁴ over rows.
    scatter : (D, D) float64 or None
        Σ (x − mean)(x − mean)' if N > D.
    rows : (N, D) float64 or None
        The rows themselves if N ≤ D.
    """

    counts: np.ndarray
    sums: np.ndarray
    fourth: float
    scatter: np.ndarray | None
    rows: np.ndarray | None

    @property
    def N(self) -> int:
        return int(self.counts.sum())

    @property
    def D(self) -> int:
        return self.sums.shape[1]

    @property
    def mean(self) -> np.ndarray:
        """(D,) mean of all rows."""
        return self.sums.sum(axis=0) / self.N

    def principal_axes(self, *, centred: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return squared singular values (R,), descending, and right singular vectors (D, R) of the rows.

        centred : subtract the mean first. Directions that are empty up to rounding are left out.
        """
        if self.rows is not None:
            rows = self.rows - self.mean if centred else self.rows
            _, singular, axes = linalg.svd(rows, full_matrices=False, check_finite=False)
            occupied = singular > singular[0] * max(rows.shape) * np.finfo(float).eps
            return singular[occupied] ** 2, axes[occupied].T
        assert self.scatter is not None
        gram = self.scatter if centred else self.scatter + self.N * np.outer(self.mean, self.mean)
        squares, axes = linalg.eigh(gram, check_finite=False, driver="evd")
        squares, axes = squares[::-1], axes[:, ::-1]
        occupied = squares > squares[0] * self.D * np.finfo(float).eps
        return squares[occupied], axes[:, occupied]


def moments(rows: np.ndarray | RowReader, labels: np.ndarray) -> Moments:
    """Compute the moments of `rows` (N, D) with class codes `labels` (N,) in two passes.

    Raises
    ------
    FitError
        Fewer than two classes, rows and labels of different number, features that are constant or not finite,
        or so many that their scatter does not fit into memory.
    """
    classes, codes = np.unique(np.asarray(labels), return_inverse=True)
    N, D = check_rows(rows, codes)
    if len(classes) < 2:
        raise FitError(f"Scores compare classes, and the rows have {len(classes)}; expected 2 or more.")
    if N > D > WIDEST or (N <= D and N * D > MOST_HELD):
        raise FitError(
            f"Rows of {counted(D, 'feature')} are too wide to be scored; expected up to {WIDEST:,}.",
            "Extract the node with a smaller pool, such as NODE@avg.",
        )
    sums = class_sums(rows, codes, len(classes))
    mean = sums.sum(axis=0) / N
    stored = np.empty((N, D)) if N <= D else None
    scatter = None if N <= D else np.zeros((D, D))
    fourth = 0.0
    for start, block in chunks(rows):
        if stored is not None:
            stored[start : start + len(block)] = block
        block -= mean
        fourth += float((np.einsum("nd,nd->n", block, block) ** 2).sum())
        if scatter is not None:
            scatter += block.T @ block
    if fourth == 0.0:
        raise FitError("All rows of features are equal, so they tell nothing of the classes.")
    return Moments(np.bincount(codes), sums, fourth, scatter, stored)


def class_sums(rows: np.ndarray | RowReader, codes: np.ndarray, K: int) -> np.ndarray:
    """Return (K, D) float64, the sum of the rows of each class."""
    sums = np.zeros((K, rows.shape[1]))
    for start, block in chunks(rows):
        B = len(block)
        sums += sparse.csr_array((np.ones(B), (codes[start : start + B], np.arange(B))), shape=(K, B)) @ block
    return sums


def check_rows(rows: np.ndarray | RowReader, codes: np.ndarray) -> tuple[int, int]:
    """Return N and D. Raises FitError where rows are no vectors, or not as many as `codes`."""
    if len(rows.shape) != 2:
        raise FitError(
            f"Rows of features have shape {tuple(rows.shape[1:])}; scores take vectors.",
            "Name a pooled node, such as NODE@avg.",
        )
    if rows.shape[0] != len(codes):
        raise FitError(
            f"There are {counted(rows.shape[0], 'row')} of features but {counted(len(codes), 'label')}."
        )
    return rows.shape[0], rows.shape[1]


def chunks(rows: np.ndarray | RowReader, dtype: type = np.float64) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, rows from `start` on) in new arrays of `dtype` and bounded size."""
    reader = as_rows(rows)
    for start, stop in blocks(reader, block_size(2 * reader.shape[1], CHUNK_BYTES)):
        yield start, np.array(read_checked(reader, start, stop, dtype))


@dataclass(frozen=True)
class Scores:
    """Transferability of one set of features; larger is better in each.

    logme, h_score, knn : float
    leep : float, or None if the source classifier's outputs are unknown.
    n : int, number of rows.
    """

    logme: float
    h_score: float
    knn: float
    leep: float | None
    n: int


def score(
    rows: np.ndarray | RowReader,
    labels: np.ndarray,
    source_probabilities: np.ndarray | RowReader | None = None,
    *,
    seed: int = 0,
) -> Scores:
    """Compute all scores of `rows` (N, D) for class codes `labels` (N,).

    source_probabilities : (N, Z), the source classifier's outputs for the same rows, for LEEP.
    seed : of the draw of queries for kNN.
    """
    statistics = moments(rows, labels)
    return Scores(
        logme=_logme(statistics),
        h_score=_h_score(statistics, shrinkage=True),
        knn=knn_accuracy(rows, labels, seed=seed),
        leep=None if source_probabilities is None else leep(source_probabilities, labels),
        n=len(labels),
    )


def logme(rows: np.ndarray | RowReader, labels: np.ndarray) -> float:
    """LogME: the maximal evidence of a Bayesian linear model, per row, averaged over one-hot targets.

    You, Liu, Wang & Long, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML
    2021, equation 2. With w ~ N(0, I/α), y ~ N(Fw, I/β), m = β (αI + βF'F)⁻¹ F'y, a target y has the evidence

        N/2 log β + D/2 log α − N/2 log 2π − β/2 |Fm − y|² − α/2 |m|² − 1/2 log |αI + βF'F|.

    At a fixed λ = α/β the best β is N / (|Fm − y|² + λ|m|²), which leaves a function of λ alone. The paper
    iterates to a fixed point; here the whole range of λ is searched, so that the maximum is the global one.

    Parameters
    ----------
    rows : (N, D), neither centred nor scaled, as in the paper.
    labels : (N,) class codes.

    Notes
    -----
    The evidence is unbounded where features of rank below N reproduce a target exactly. The squared residual
    is therefore at least 1e-12 of the target's square.
    """
    return _logme(moments(rows, labels))


def _logme(statistics: Moments) -> float:
    N, norms = statistics.N, statistics.counts.astype(float)  # |y|² of a one-hot column is its count
    squares, axes = statistics.principal_axes(centred=False)
    energy = (statistics.sums @ axes) ** 2 / squares  # (K, R): of y along each left singular vector
    # The squared part of y that no weights can reproduce; close to 0 it would be rounding error alone.
    outside = np.maximum(norms - energy.sum(axis=1), 1e-12 * norms) if len(squares) < N else 0.0

    def evidence(log_lambda: np.ndarray) -> np.ndarray:
        """(K,) or (1,) → (K,): each target at its own λ, or all at one."""
        lost = 1 / (1 + squares / np.exp(log_lambda)[:, None])  # λ / (λ + square)
        fit = outside + (lost * energy).sum(axis=1)
        logdet = np.log(lost).sum(axis=1)  # D log λ − log |λI + F'F|; empty axes contribute 0
        return 0.5 * (N * np.log(N / fit) - N - N * np.log(2 * np.pi) + logdet)

    # Outside of this range either the weights are 0 or the prior has no effect, to the last digit.
    grid = np.arange(np.log(squares[-1]) - 30.0, np.log(squares[0]) + 30.0, 0.5)
    centre = grid[np.argmax([evidence(point[None]) for point in grid], axis=0)]
    return float(_maximum_between(evidence, centre - 0.5, centre + 0.5).mean() / N)


def _maximum_between(function: Callable, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Maxima (K,) of `function`, (K,) → (K,), between bounds (K,): K golden-section searches in parallel."""
    for _ in range(STEPS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        rises = function(left) < function(right)
        low, high = np.where(rises, left, low), np.where(rises, high, right)
    return function((low + high) / 2)


def h_score(rows: np.ndarray | RowReader, labels: np.ndarray, *, shrinkage: bool = True) -> float:
    """H-score: how much of the features' variance lies between classes, in units of their covariance.

    Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer Learning", ICIP 2019:
    tr(cov(f)⁻¹ cov(E[f|y])), from 0 to K − 1. With `shrinkage` as Ibrahim, Ponomareva & Mazumder, "Newer is
    not always better: Rethinking transferability metrics, their peculiarities, stability and performance",
    2021:

        tr(((1 − a) S + a tr(S)/D I)⁻¹ (1 − a) cov(E[f|y])),   S = cov(f),   a as of Ledoit & Wolf (2004),

    which keeps it finite and stable with many features and few rows. E[f|y] is averaged over rows, so that a
    class counts by its frequency.
    """
    return _h_score(moments(rows, labels), shrinkage=shrinkage)


def _h_score(statistics: Moments, *, shrinkage: bool) -> float:
    N, D, counts = statistics.N, statistics.D, statistics.counts
    squares, axes = statistics.principal_axes(centred=True)
    variances = squares / N  # (R,)
    means = (statistics.sums / counts[:, None] - statistics.mean) @ axes  # (K, R)
    between = counts @ means**2 / N
    average = variances.sum() / D
    a = _ledoit_wolf(variances, statistics.fourth, N, D) if shrinkage else 0.0
    return float(((1 - a) * between / ((1 - a) * variances + a * average)).sum())


def _ledoit_wolf(variances: np.ndarray, fourth: float, N: int, D: int) -> float:
    """Shrinkage towards tr(S)/D I that minimises the expected squared error (Ledoit & Wolf 2004, lemma 3.3).

    |xx' − S|² summed over rows is Σ|x|⁴ − N|S|², so that neither S nor the rows are needed.
    """
    squared = (variances**2).sum()  # |S|²
    spread = squared - variances.sum() ** 2 / D  # |S − tr(S)/D I|²
    noise = (fourth / N - squared) / N
    return float(min(noise, spread) / spread) if spread > 0 else 1.0


def leep(source_probabilities: np.ndarray | RowReader, labels: np.ndarray) -> float:
    """LEEP: the mean log-likelihood of the labels, predicted from the source classifier's outputs alone.

    Nguyen, Hassner, Seeger & Archambeau, "LEEP: A New Measure to Evaluate Transferability of Learned
    Representations", ICML 2020, equation 2: the mean over rows of log Σ_z P(y|z) θ(x)_z, with
    P(y|z) = Σ_{i: y_i = y} θ(x_i)_z / Σ_i θ(x_i)_z. At most 0, and 0 if the outputs determine the class.

    source_probabilities : (N, Z), rows that sum to 1.
    """
    classes, codes = np.unique(np.asarray(labels), return_inverse=True)
    N, _ = check_rows(source_probabilities, codes)
    joint = class_sums(source_probabilities, codes, len(classes))  # (K, Z)
    given = joint / np.maximum(joint.sum(axis=0), TINY)
    total = 0.0
    for start, block in chunks(source_probabilities):
        likelihood = (given[codes[start : start + len(block)]] * block).sum(axis=1)
        total += np.log(np.maximum(likelihood, TINY)).sum()
    return float(total / N)


def knn_accuracy(rows: np.ndarray | RowReader, labels: np.ndarray, *, k: int = 1, seed: int = 0) -> float:
    """Accuracy of predicting each row's class from its `k` nearest other rows (Euclidean distance).

    Leave-one-out as in Puigcerver et al., "Scalable Transfer Learning with Expert Models", ICLR 2021 (k = 1).
    Of more than `MOST_QUERIES` rows a random sample is predicted, from all others. Of classes with equally
    many votes the one with the nearest row wins.
    """
    _, codes = np.unique(np.asarray(labels), return_inverse=True)
    N, _ = check_rows(rows, codes)
    k = min(k, N - 1)
    sampled = np.sort(np.random.default_rng(seed).permutation(N)[:MOST_QUERIES])  # (Q,)
    queries = _take(rows, sampled)
    nearest = np.full((len(sampled), k), np.inf, np.float32)
    voters = np.zeros((len(sampled), k), np.int64)
    for start, block in chunks(rows, np.float32):
        distance = np.einsum("nd,nd->n", block, block) - 2 * queries @ block.T  # without |query|²
        inside = np.flatnonzero((sampled >= start) & (sampled < start + len(block)))
        distance[inside, sampled[inside] - start] = np.inf
        few = np.argpartition(distance, min(k, len(block)) - 1, axis=1)[:, :k]
        distance = np.concatenate([nearest, np.take_along_axis(distance, few, axis=1)], axis=1)
        classes = np.concatenate([voters, codes[start + few]], axis=1)
        order = np.argsort(distance, axis=1, kind="stable")[:, :k]
        nearest = np.take_along_axis(distance, order, axis=1)
        voters = np.take_along_axis(classes, order, axis=1)
    return float((_vote(voters, codes.max() + 1) == codes[sampled]).mean())


def _take(rows: np.ndarray | RowReader, indices: np.ndarray) -> np.ndarray:
    """Return the rows at ascending `indices` as float32."""
    parts = []
    for start, block in chunks(rows, np.float32):
        parts.append(block[indices[(indices >= start) & (indices < start + len(block))] - start])
    return np.concatenate(parts)


def _vote(voters: np.ndarray, K: int) -> np.ndarray:
    """(Q, k) classes, nearest first → (Q,) the most frequent class; ties go to the nearest row."""
    weights = 1.0 + 0.5 ** np.arange(1, voters.shape[1] + 1)  # the parts beyond 1 sum to less than one vote
    counts = np.zeros((len(voters), K))
    np.add.at(counts, (np.arange(len(voters))[:, None], voters), weights)
    return counts.argmax(axis=1)
