"""What the solver is asked: tasks, each fitted on all its rows and once more without each of its folds.

A softmax over K classes is one task of K columns; one-vs-rest and multi-label targets are K tasks of one
column. Tasks with equal K make a group, whose heads are fitted side by side.

Shapes: n rows, T tasks of a group, F folds, H = T · (F + 1) heads, K columns of a head, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NO_FOLD = -1


@dataclass(frozen=True)
class Task:
    """One loss over the rows.

    Parameters
    ----------
    codes : (n,) int, the true column; for one column 0 or 1. Anything where the weight is 0.
    weights : (n,) float, 0 for rows that the task does not see.
    columns : K; 1 is a sigmoid, more a softmax.
    fold : (n,) int, the fold that holds a row out, NO_FOLD for rows that are always fitted on.
    """

    codes: np.ndarray
    weights: np.ndarray
    columns: int
    fold: np.ndarray

    def arranged(self, rows: np.ndarray, share: float = 1.0) -> Task:
        """The task on the rows `rows` (m,), repeats allowed, each with `share` of its weight."""
        return Task(self.codes[rows], self.weights[rows] * share, self.columns, self.fold[rows])


class Group:
    """The tasks of one K as arrays, rows last; head h is task h // (F + 1), its fold h % (F + 1) − 1.

    Fold NO_FOLD (the first head of a task) leaves no row out.
    """

    def __init__(self, tasks: Sequence[Task], folds: int, dtype: torch.dtype, device: torch.device) -> None:
        self.columns = tasks[0].columns
        self.tasks, self.folds = len(tasks), folds
        self.codes = _stacked([task.codes for task in tasks], torch.int32, device)
        self.weights = _stacked([task.weights for task in tasks], dtype, device)
        self.fold = _stacked([task.fold for task in tasks], torch.int16, device)
        self.task_of_head = torch.arange(self.heads, device=device) // (folds + 1)
        self.fold_of_head = torch.arange(self.heads, device=device) % (folds + 1) + NO_FOLD

    @property
    def heads(self) -> int:
        """H."""
        return self.tasks * (self.folds + 1)

    def fitted(self, heads: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Codes (A, B) int64 and weights (A, B) of the rows on which `heads` (A,) are fitted; 0 elsewhere."""
        task = self.task_of_head[heads]
        held = self.fold[task, start:stop] == self.fold_of_head[heads, None]
        held &= self.fold_of_head[heads, None] != NO_FOLD
        return self.codes[task, start:stop].long(), self.weights[task, start:stop].masked_fill(held, 0)


def _stacked(columns: Sequence[np.ndarray], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.stack([torch.as_tensor(np.asarray(column)) for column in columns]).to(device, dtype)
