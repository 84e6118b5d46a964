"""Serve the rows of a cache sample by sample, as torch's `DataLoader` takes them. No torch is needed.

Shapes: n samples, M images per sample, D features, P covariates, L labels of a multi-label target.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bottleneck.samples import RowReader, Target

Item = np.ndarray | tuple[np.ndarray, Any]


class CacheDataset:
    """Samples of a cache with random access: `dataset[i]` is a feature row, and its target if one is named.

    It is a map-style dataset: `DataLoader`, `Subset` and `random_split` take it. It holds no open file. Each
    process opens the cache for itself at its first access, so that workers started by fork, forkserver or
    spawn read rows of their own. A whole batch is read at once.

    An item is (features, target), or the features alone without a target:

    - features: float32 (M·D + P,); of a map (C, H, W), or (M, C, H, W) for several images.
    - target: the class code, an int; float32 (L,) of 0 and 1; or a float.

    Parameters
    ----------
    open_rows : picklable; opens the cache and returns the rows of all its samples.
        Raises CacheError if the file is no longer the one that the dataset was made of.
    keys : (n,) object array of str, the samples' names.
    rows : (n,) which of all samples these are.
    target : of these samples, all labelled; None for features alone.
    left_out : number of samples of the split without a label.
    """

    def __init__(
        self,
        open_rows: Callable[[], RowReader],
        keys: np.ndarray,
        rows: np.ndarray,
        target: Target | None,
        left_out: int,
    ) -> None:
        self.keys, self.left_out = keys, left_out
        self.class_names = () if target is None else target.class_names
        self._open_rows, self._rows, self._target = open_rows, rows, target
        self._opened: tuple[int, RowReader] | None = None  # process, and what it opened

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Item:
        """Return one item; IndexError beyond the last."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"The dataset has {len(self)} samples; there is no number {index}.")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return the items of a batch, which `DataLoader` asks for at once."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self._open_rows()
        at = np.asarray(indices, np.int64)
        features = np.asarray(self._opened[1].take(self._rows[at]), np.float32)
        if self._target is None:
            return list(features)
        values = self._target.values[at]
        multilabel = self._target.kind == "multilabel"
        return list(zip(features, values.astype(np.float32) if multilabel else values.tolist(), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}
