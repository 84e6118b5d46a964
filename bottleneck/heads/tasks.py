"""What the solver is asked: tasks, each fitted without each of its folds in turn, or once on all its rows.

A softmax over K classes is one task of K columns; one-vs-rest and multi-label targets are K tasks of one
column. Tasks with equal K make a group, whose heads are fitted side by side.

Shapes: n rows, T tasks of a group, F folds, G heads of a task (F, or 1 without folds), H = T · G heads, K
columns of a head, B rows of a block.
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
    """Tasks of one K, rows last; head h is task h // G, and leaves out fold h % G.

    Parameters
    ----------
    columns : K. folds : F; without folds the one head of a task leaves no row out.
    codes, weights, fold : (T, n), as of `Task`.
    """

    def __init__(self, columns: int, folds: int, codes: Tensor, weights: Tensor, fold: Tensor) -> None:
        self.columns, self.folds, self.tasks = columns, folds, len(codes)
        self.codes, self.weights, self.fold = codes, weights, fold
        number = torch.arange(self.heads, device=codes.device)
        self.task_of_head = number // self.heads_per_task
        self.fold_of_head = number % folds if folds else torch.full_like(number, NO_FOLD)

    @classmethod
    def of(cls, tasks: Sequence[Task], folds: int, dtype: torch.dtype, device: torch.device) -> Group:
        """The group of some tasks with equal K."""
        return cls(
            tasks[0].columns,
            folds,
            _stacked([task.codes for task in tasks], torch.int32, device),
            _stacked([task.weights for task in tasks], dtype, device),
            _stacked([task.fold for task in tasks], torch.int16, device),
        )

    @property
    def heads_per_task(self) -> int:
        """G."""
        return max(1, self.folds)

    @property
    def heads(self) -> int:
        """H."""
        return self.tasks * self.heads_per_task

    def whole(self, tasks: Sequence[int]) -> Group:
        """Those of its tasks, without folds."""
        chosen = torch.as_tensor(list(tasks), device=self.codes.device)
        return Group(self.columns, 0, self.codes[chosen], self.weights[chosen], self.fold[chosen])

    def fitted(self, heads: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Codes (A, B) int64 and weights (A, B) of the rows on which `heads` (A,) are fitted; 0 elsewhere."""
        codes, weights, fold = (part[:, start:stop] for part in (self.codes, self.weights, self.fold))
        if self.tasks > 1:
            task = self.task_of_head[heads]
            codes, weights, fold = codes[task], weights[task], fold[task]
        held = (fold == self.fold_of_head[heads, None]) & (self.folds > 0)
        return codes.long().expand_as(held), torch.where(held, 0, weights)


def _stacked(columns: Sequence[np.ndarray], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.stack([torch.as_tensor(np.asarray(column)) for column in columns]).to(device, dtype)
