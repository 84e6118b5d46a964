"""A small network on features, for those who retrain all the affine layers of a classifier.

    standardised x ──► Linear (H) ──► BatchNorm ──► ReLU ──► dropout ──► Linear (C) ──► softmax

When training has ended, BatchNorm and the standardisation are folded into the first layer, so that two linear
layers on raw features are kept.

Shapes: n samples, B samples of a step, D features, H hidden units, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state, compute_class_weight
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bottleneck.errors import FitError
from bottleneck.heads.estimator import ClassHead, standardisation_of
from bottleneck.heads.row_blocks import blocks, read_checked
from bottleneck.heads.solver.design import Standardisation
from bottleneck.samples import RowReader

HIDDEN = 128
DROPOUT = 0.3
BATCH = 128
LEARNING_RATE = 1e-3  # of Adam
HELD_OUT = 0.1  # of the samples, for early stopping
RUN = 32  # rows that are read together
BUFFER = 8192  # rows among which the order is random


class MLPHead(ClassHead):
    """One hidden layer of 128 units, trained with Adam; the epoch that was best on held-out samples is kept.

    A tenth of the samples is held out, evenly from all classes; where there are too few, all are trained on
    and the loss on them decides. Rows of a reader are read anew in each epoch, in runs of 32 in a new order,
    so that no more than 8,192 are in memory.

    Parameters
    ----------
    epochs : int
        At most.
    patience : int
        Epochs without a better one after which training stops.
    class_weight : None, "balanced" or dict of class to weight
    random_state : int, RandomState or None
        Of weights, order, dropout and held-out samples: an int makes fits equal to the bit.

    Attributes
    ----------
    losses_ : list of float, on the held-out samples, one per epoch
    n_iter_ : int, epochs passed
    mean_, scale_ : (D,) of the standardisation; scale_ is 1 for constant features

    Further attributes and arguments are those of `ClassHead`.
    """

    kind, form = "mlp", "mlp"

    def __init__(
        self,
        epochs: int = 100,
        patience: int = 10,
        class_weight: dict | str | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.epochs = epochs
        self.patience = patience
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, groups: Any = None) -> MLPHead:
        """Train. groups : (n,), samples of one group are held out together or not at all."""
        return self._fit(X, y, least=2, groups=groups)

    def _fit_arrays(
        self, rows: RowReader, codes: np.ndarray, groups: np.ndarray | None
    ) -> tuple[dict[str, np.ndarray], dict]:
        for name in ("epochs", "patience"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"The '{name}' parameter must be 1 or more, got {getattr(self, name)!r}.")
        generator = check_random_state(self.random_state)
        held = held_out(codes, HELD_OUT, generator, groups)
        weight = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_[codes])
        standard = standardisation_of(rows)
        self.mean_, self.scale_ = standard.mean, standard.scale
        data = _Data(rows, codes, standard, generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.randint(2**31))
            network = _network(rows.shape[1], len(self.classes_))
            loss = nn.CrossEntropyLoss(torch.tensor(weight, dtype=torch.float32))
            self.losses_ = _train(network, loss, data, held, self.epochs, self.patience)
        self.n_iter_ = len(self.losses_)
        settings = {"epochs": int(np.argmin(self.losses_)) + 1, "held_out": int(held.sum())}
        return _folded(network, standard), settings


def held_out(
    codes: np.ndarray, share: float, generator: np.random.RandomState, groups: np.ndarray | None = None
) -> np.ndarray:
    """(n,) bool: about `share` of the samples, evenly from the classes; whole groups; no class entirely.

    codes : (n,) int; a group counts as of its first sample's class.
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
class _Data:
    """Standardised batches of `rows` (n, D) with their codes (n,)."""

    rows: RowReader
    codes: np.ndarray
    standard: Standardisation
    generator: np.random.RandomState

    def shuffled(self, kept: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the samples `kept` (n,) bool, in a new order. None is of one sample: BatchNorm fails."""
        runs = list(blocks(self.rows, RUN))
        order = self.generator.permutation(len(runs))
        for start in range(0, len(runs), BUFFER // RUN):
            x, codes = self._read([runs[i] for i in order[start : start + BUFFER // RUN]], kept)
            if len(x) < 2:
                continue
            place = self.generator.permutation(len(x))
            for part in np.array_split(place, max(1, len(place) // BATCH)):
                yield x[part], codes[part]

    def ordered(self, kept: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples `kept` in their order, in blocks."""
        for bounds in blocks(self.rows, BUFFER):
            if kept[slice(*bounds)].any():
                yield self._read([bounds], kept)

    def _read(self, runs: list[tuple[int, int]], kept: np.ndarray) -> tuple[Tensor, Tensor]:
        parts = [read_checked(self.rows, *bounds)[kept[slice(*bounds)]] for bounds in runs]
        codes = np.concatenate([self.codes[slice(*bounds)][kept[slice(*bounds)]] for bounds in runs])
        return torch.from_numpy(self.standard.apply(np.concatenate(parts))), torch.from_numpy(codes)


def _network(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, classes),
    )


def _train(
    network: nn.Sequential, loss: nn.Module, data: _Data, held: np.ndarray, epochs: int, patience: int
) -> list[float]:
    """Train; leave the network as it was after its best epoch. The losses by epoch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    judges = held if held.any() else ~held
    losses: list[float] = []
    best: dict[str, Tensor] = {}
    while len(losses) < epochs and len(losses) - np.argmin(losses or [0]) <= patience:
        network.train()
        for x, codes in data.shuffled(~held):
            optimizer.zero_grad()
            loss(network(x), codes).backward()
            optimizer.step()
        losses.append(_judged(network, loss, data, judges))
        if not np.isfinite(losses[-1]):
            raise FitError(f"The loss became {losses[-1]} in epoch {len(losses)}.", "Look at the features.")
        if losses[-1] == min(losses):
            best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(best)
    return losses


@torch.no_grad()
def _judged(network: nn.Sequential, loss: nn.CrossEntropyLoss, data: _Data, kept: np.ndarray) -> float:
    """Weighted mean cross-entropy on the samples `kept`."""
    network.eval()
    total = weight = 0.0
    for x, codes in data.ordered(kept):
        total += float(cross_entropy(network(x), codes, loss.weight, reduction="sum"))
        weight += float(loss.weight[codes].sum())
    return total / weight


def _folded(network: nn.Sequential, standard: Standardisation) -> dict[str, np.ndarray]:
    """The artifact's arrays, in the form "mlp"."""
    first, norm, last = network[0], network[1], network[4]
    coef, intercept = standard.fold(*fold_batchnorm(_double(first.weight), _double(first.bias), norm))
    arrays = {"coef": coef, "intercept": intercept, "mean": standard.mean, "scale": standard.scale}
    return arrays | {"coef2": _double(last.weight), "intercept2": _double(last.bias)}


def fold_batchnorm(
    coef: np.ndarray, intercept: np.ndarray, norm: nn.BatchNorm1d
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (H, D) and bias (H,) of the linear layer that equals a linear layer followed by `norm`."""
    gain = _double(norm.weight) / np.sqrt(_double(norm.running_var) + norm.eps)
    return coef * gain[:, None], (intercept - _double(norm.running_mean)) * gain + _double(norm.bias)


def _double(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
