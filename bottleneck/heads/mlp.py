"""A network with one hidden layer on features.

    standardised x ──► Linear (D → H) ──► BatchNorm ──► ReLU ──► dropout ──► Linear (H → K) ──► softmax

After training, BatchNorm and the standardisation are folded into the first layer. The artifact is two linear
layers on raw features.

Shapes: n samples, B samples of a batch, D features, H hidden units, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state, compute_class_weight
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bottleneck.errors import FitError
from bottleneck.heads.estimator import ClassHead, standardisation_of
from bottleneck.heads.folding import double, fold_batchnorm
from bottleneck.heads.row_blocks import Standardisation, blocks, read_checked
from bottleneck.heads.solver.problem import ClassWeight
from bottleneck.samples import RowReader

HIDDEN = 128
DROPOUT = 0.3
BATCH = 128
LEARNING_RATE = 1e-3  # of Adam
HELD_OUT = 0.1  # of the samples, for early stopping
RUN = 32  # neighbouring rows that are read together
BUFFER = 8192  # rows in memory; their order is random


class MLPHead(ClassHead):
    """One hidden layer of 128 units, trained with Adam up to the epoch that is best on held-out samples.

    A tenth of the samples is held out, evenly from all classes. If there are too few, all are trained on and
    the training loss chooses the epoch. Rows of a reader are read again in each epoch, in runs of 32 in a
    random order, and at most 8,192 are in memory.

    Parameters
    ----------
    epochs : int
        The largest number of epochs.
    patience : int
        Training stops after this many epochs without a better one.
    class_weight : None, "balanced" or dict of class to weight
    random_state : int, RandomState or None
        For initial weights, order, dropout and held-out samples. Fits with the same int are equal to the bit.

    Attributes
    ----------
    losses_ : list of float, on the held-out samples, one per epoch
    n_iter_ : int, epochs run
    mean_, scale_ : (D,) of the standardisation; scale_ is 1 for constant features

    Further attributes and arguments are those of `ClassHead`.
    """

    kind, form = "mlp", "mlp"

    def __init__(
        self,
        epochs: int = 100,
        patience: int = 10,
        class_weight: ClassWeight = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.epochs = epochs
        self.patience = patience
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, groups: Any = None) -> MLPHead:
        """Train and return the head. groups : (n,); the samples of a group are held out together."""
        rows, codes = self._samples(X, y, least=2)
        for name in ("epochs", "patience"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"The '{name}' parameter must be 1 or more, got {getattr(self, name)!r}.")
        generator = check_random_state(self.random_state)
        held = held_out(codes, HELD_OUT, generator, groups)
        weight = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_[codes])
        standard = standardisation_of(rows)
        self.mean_, self.scale_ = standard.mean, standard.scale
        batches = _Batches(rows, codes, standard, generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.randint(2**31))
            network = _Network(rows.shape[1], len(self.classes_))
            self.losses_ = _train(
                network,
                batches,
                held,
                torch.tensor(weight, dtype=torch.float32),
                epochs=self.epochs,
                patience=self.patience,
            )
        self.n_iter_ = len(self.losses_)
        settings = {"epochs": int(np.argmin(self.losses_)) + 1, "held_out": int(held.sum())}
        self._set_fit(_folded(network, standard), settings)
        self.fit_ = replace(self.fit_, library="torch")
        return self


def held_out(
    codes: np.ndarray, share: float, generator: np.random.RandomState, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return (n,) bool, the held-out samples: about `share` of all, evenly from the classes, none entirely.

    codes : (n,) int. groups : (n,); a group is held out as a whole, and has the class of its first sample.
    """
    if groups is None:
        unit, first = np.arange(len(codes)), np.arange(len(codes))
    else:
        _, first, unit = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    order = generator.permutation(len(first))
    order = order[np.argsort(codes[first][order], kind="stable")]  # by class, at random within it
    count = round(share * len(first))
    chosen = np.zeros(len(first), bool)
    chosen[order[(np.arange(count) * len(order) + len(order) // 2) // max(count, 1)]] = True
    held = chosen[unit]
    left = np.bincount(codes[~held], minlength=codes.max() + 1)
    return held & (left[codes] > 0)


@dataclass
class _Batches:
    """Standardised batches (B, D) of `rows` (n, D) with their codes (B,)."""

    rows: RowReader
    codes: np.ndarray
    standard: Standardisation
    generator: np.random.RandomState

    def shuffled(self, used: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the samples `used` (n,) bool in random order. BatchNorm needs two samples in every batch."""
        runs = list(blocks(self.rows, RUN))
        order = self.generator.permutation(len(runs))
        for start in range(0, len(runs), BUFFER // RUN):
            x, codes = self._read([runs[i] for i in order[start : start + BUFFER // RUN]], used)
            if len(x) < 2:
                continue
            samples = self.generator.permutation(len(x))
            for part in np.array_split(samples, max(1, len(samples) // BATCH)):
                yield x[part], codes[part]

    def ordered(self, used: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the samples `used` (n,) bool in their order."""
        for bounds in blocks(self.rows, BUFFER):
            if used[slice(*bounds)].any():
                yield self._read([bounds], used)

    def _read(self, runs: list[tuple[int, int]], used: np.ndarray) -> tuple[Tensor, Tensor]:
        parts = [read_checked(self.rows, *bounds)[used[slice(*bounds)]] for bounds in runs]
        codes = np.concatenate([self.codes[slice(*bounds)][used[slice(*bounds)]] for bounds in runs])
        return torch.from_numpy(self.standard.apply(np.concatenate(parts))), torch.from_numpy(codes)


class _Network(nn.Module):
    """Standardised features (B, D) → logits (B, K)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.dropout = nn.Dropout(DROPOUT)
        self.last = nn.Linear(HIDDEN, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.dropout(torch.relu(self.norm(self.first(x)))))
        return logits


def _train(
    network: _Network, batches: _Batches, held: np.ndarray, weight: Tensor, *, epochs: int, patience: int
) -> list[float]:
    """Train until no epoch is better, restore the best epoch's weights, and return the losses by epoch.

    held : (n,) bool, the samples that choose the epoch. weight : (K,) of the classes.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    measured = held if held.any() else ~held
    losses: list[float] = []
    best: dict[str, Tensor] = {}
    while len(losses) < epochs and len(losses) - np.argmin(losses or [0]) <= patience:
        network.train()
        for x, codes in batches.shuffled(~held):
            optimizer.zero_grad()
            cross_entropy(network(x), codes, weight).backward()
            optimizer.step()
        losses.append(_loss(network, batches.ordered(measured), weight))
        if not np.isfinite(losses[-1]):
            raise FitError(f"The loss became {losses[-1]} in epoch {len(losses)}.", "Look at the features.")
        if losses[-1] == min(losses):
            best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(best)
    return losses


@torch.no_grad()
def _loss(network: _Network, batches: Iterable[tuple[Tensor, Tensor]], weight: Tensor) -> float:
    """Return the weighted mean cross-entropy over the batches."""
    network.eval()
    loss = total = 0.0
    for x, codes in batches:
        loss += float(cross_entropy(network(x), codes, weight, reduction="sum"))
        total += float(weight[codes].sum())
    return loss / total


def _folded(network: _Network, standard: Standardisation) -> dict[str, np.ndarray]:
    """Return the arrays of the artifact form "mlp"."""
    first, last = network.first, network.last
    folded = fold_batchnorm(double(first.weight), double(first.bias), network.norm)
    coef, intercept = standard.fold(*folded)
    arrays = {"coef": coef, "intercept": intercept, "mean": standard.mean, "scale": standard.scale}
    return arrays | {"coef2": double(last.weight), "intercept2": double(last.bias)}
