"""Samples of a cache as points of a plane: by PCA, and by t-SNE of at most 5,000 samples.

t-SNE (van der Maaten and Hinton 2008; Barnes-Hut, van der Maaten 2014) is of the first principal components.

Shapes: S samples, n of them, D features, d components.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from bottleneck.data.splits import strata
from bottleneck.errors import Note
from bottleneck.heads.row_blocks import SelectedRows, blocks, read_checked
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import ArrayRows, RowReader, SampleTable
from bottleneck.studies.similar.neighbours import nearest
from bottleneck.threads import one_thread

MOST = 5000  # samples whose positions are fitted
COMPONENTS = 50  # principal components that t-SNE takes, as in scikit-learn's advice
PERPLEXITY = 30.0
LEAST = 8  # samples of which t-SNE says anything
NEAREST = 3  # fitted samples between which another one is placed
PCA_NAME, TSNE_NAME = "PCA", "t-SNE"


@dataclass(frozen=True)
class Plane:
    """Positions of n samples.

    rows : (n,) samples of the table. positions : by method, (n, 2) float32 in 0 … 1, x and y of equal scale.
    components : (n, d) float32, principal ones. explained : shares of the variance in x and y of PCA.
    """

    rows: np.ndarray
    positions: dict[str, np.ndarray]
    components: np.ndarray
    explained: tuple[float, float]
    notes: list[Note] = field(default_factory=list)


def drawn_samples(samples: SampleTable, first: np.ndarray, most: int = MOST, seed: int = 0) -> np.ndarray:
    """Return at most `most` samples, sorted: up to half of them from `first`, the others evenly.

    first : (m,) samples that are wanted before others.
    """
    S = len(samples)
    if most >= S:
        return np.arange(S)
    random = np.random.default_rng(seed)
    kept = random.permutation(first)[: most // 2]
    others = np.setdiff1d(np.arange(S), kept)
    # A permutation within each stratum, and then the strata in turn: rare classes keep all of their samples.
    stratum, order = np.asarray(strata(samples))[others], random.permutation(len(others))
    _, code = np.unique(stratum[order], return_inverse=True)
    by_stratum = np.argsort(code, kind="stable")
    turn = np.empty(len(order), np.int64)
    starts = np.searchsorted(code[by_stratum], np.arange(code.max() + 1))
    turn[by_stratum] = np.arange(len(order)) - starts[code[by_stratum]]
    chosen = others[order[np.argsort(turn, kind="stable")[: most - len(kept)]]]
    return np.sort(np.concatenate([kept, chosen]))


def plane_of(
    rows: RowReader, chosen: np.ndarray, seed: int = 0, reporter: Reporter = SILENT, tsne: bool = True
) -> Plane:
    """Place the samples `chosen` (n,) of rows (S, D); of more than `MOST` the others beside their nearest."""
    n = len(chosen)
    fitted = np.arange(n)
    notes: list[Note] = []
    if n > MOST:
        fitted = np.unique(np.linspace(0, n - 1, MOST).astype(int))
        text = (
            f"Positions are fitted on {len(fitted):,} of {n:,} samples; in t-SNE the others stand between "
            f"the {NEAREST} fitted ones that are nearest to them."
        )
        notes.append(Note("map-sampled", text, details={"samples": len(fitted), "of": n}))
    x = rows.take(chosen[fitted]).astype(np.float32)
    width = min(COMPONENTS, *x.shape)
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # features without any variance: all at one place
        pca = PCA(width, svd_solver="randomized" if min(x.shape) > 2 * width else "full", random_state=seed)
        small = pca.fit_transform(x).astype(np.float32)
    flat = not float(pca.explained_variance_.sum()) > 0
    everything = small if n == len(fitted) else _projected(rows, chosen, pca)
    positions = {PCA_NAME: _unit(_two(everything))}
    if tsne and len(small) >= LEAST and not flat:
        with reporter.step(f"t-SNE of {len(small):,} samples", total=1, unit="maps") as advance:
            at = _tsne(small, seed)
            advance(1)
        positions[TSNE_NAME] = _unit(at if n == len(fitted) else _between(everything, small, at))
    shares = np.nan_to_num([*pca.explained_variance_ratio_[:2], 0.0, 0.0])
    return Plane(chosen, positions, everything, (float(shares[0]), float(shares[1])), notes)


def _projected(rows: RowReader, chosen: np.ndarray, pca: PCA) -> np.ndarray:
    reader = SelectedRows(rows, chosen)
    parts = [pca.transform(read_checked(reader, *bound)) for bound in blocks(reader, 4096)]
    return np.concatenate(parts).astype(np.float32)


def _tsne(x: np.ndarray, seed: int) -> np.ndarray:
    """Return t-SNE (n, 2) of rows (n, d)."""
    start = _two(x) / max(float(x[:, 0].std()), np.finfo(np.float32).tiny) * 1e-4
    perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
    with one_thread():
        model = TSNE(2, perplexity=perplexity, init=start, max_iter=500, random_state=seed, n_jobs=1)
        return np.asarray(model.fit_transform(x))


def _between(everything: np.ndarray, fitted: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return positions (n, 2): a fitted sample's own, another's the mean of those nearest to it."""
    exclude = np.full(len(everything), -1)
    index, cosine = nearest(ArrayRows(fitted), ArrayRows(everything), NEAREST, exclude)
    weight = np.maximum(1 - cosine, 1e-6) ** -1  # a sample that was fitted itself is at distance 0
    return np.asarray((at[index] * weight[..., None]).sum(axis=1) / weight.sum(axis=1, keepdims=True))


def _two(x: np.ndarray) -> np.ndarray:
    """Return the first two columns, zeros where there is only one."""
    two = np.zeros((len(x), 2), np.float32)
    two[:, : min(2, x.shape[1])] = x[:, :2]
    return two


def _unit(positions: np.ndarray) -> np.ndarray:
    """Move and scale positions (n, 2) into 0 … 1, both axes alike, in the middle."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    span = max(float((high - low).max()), np.finfo(np.float32).tiny)
    return np.asarray((positions - (low + high) / 2) / span + 0.5, np.float32).clip(0, 1)


def label_codes(samples: SampleTable, target: str | None) -> tuple[np.ndarray, Sequence[str]]:
    """Return class codes (S,), −1 without a class, and their names, of a target with classes."""
    found = samples.targets.get(target or "")
    if found is None or found.kind != "class":
        return np.full(len(samples), -1), ()
    return found.values, found.class_names
