"""Targets as the solver takes them, and its columns as their logits.

    target                    tasks            logits (C) of columns
    class, multinomial, C > 2 one of C columns as they are
    class of two classes      one sigmoid z    −z/2, z/2: the same under a softmax
    class, one against rest   C sigmoids       as they are, link "ovr"
    multi-label               L sigmoids       as they are, link "sigmoid"

Shapes: n samples, C classes or labels, B rows of a block.

What the solver is asked: tasks, each fitted without each of its folds in turn, or once on all its rows.

A softmax over K classes is one task of K columns; one-vs-rest and multi-label targets are K tasks of one
column. Tasks with equal K make a group, whose heads are fitted side by side.

Shapes: n rows, T tasks of a group, F folds, G heads of a task (F, or 1 without folds), H = T · G heads, K
columns of a head, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils import compute_class_weight
from torch import Tensor

from bottleneck.errors import FitError
from bottleneck.samples import UNLABELLED, Target

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


ClassWeight = str | Mapping[int, float] | None


@dataclass(frozen=True)
class TargetProblem:
    """One target on the samples to train on.

    Parameters
    ----------
    target : Target of n samples; class or multilabel.
    fold : (n,) int
    class_weight : None, "balanced" (as scikit-learn: n / (C · count)), or by code.
    sample_weight : (n,) float, ones where left out.
    multi_class : "multinomial" or "ovr".
    """

    target: Target
    fold: np.ndarray
    class_weight: ClassWeight = None
    sample_weight: np.ndarray | None = None
    multi_class: str = "multinomial"

    @property
    def outputs(self) -> int:
        """C."""
        return len(self.target.class_names)

    @property
    def link(self) -> str:
        """As `HeadArtifact` names it."""
        if self.target.kind == "multilabel":
            return "sigmoid"
        return "ovr" if self.multi_class == "ovr" and self.outputs > 2 else "softmax"

    def tasks(self) -> list[Task]:
        """What the solver is asked."""
        weights = np.ones(len(self.fold)) if self.sample_weight is None else self.sample_weight
        weights = np.where(self.target.labelled, weights, 0.0)
        values = self.target.values
        if self.target.kind == "multilabel":
            answers = np.where(values == 1, 1, 0)
            return [self._task(answers[:, k], 1, weights, answers[:, k]) for k in range(self.outputs)]
        codes = np.where(values == UNLABELLED, 0, values)
        if self.link == "ovr":
            return [self._task((codes == k).astype(int), 1, weights, codes) for k in range(self.outputs)]
        return [self._task(codes, 1 if self.outputs == 2 else self.outputs, weights, codes)]

    def _task(self, codes: np.ndarray, columns: int, weights: np.ndarray, weighted: np.ndarray) -> Task:
        """`weighted` : (n,) codes by which the class weight goes."""
        factor = class_factors(self.class_weight, weighted, weights > 0)
        return Task(codes, weights * factor[weighted], columns, self.fold)

    def logits(self, columns: np.ndarray) -> np.ndarray:
        """(B, C) float32 of the tasks' columns (tasks, K, B)."""
        if self.link == "softmax" and self.outputs == 2:
            half = columns[0, 0] / 2
            return np.stack([-half, half], axis=1)
        return np.ascontiguousarray(columns.reshape(self.outputs, -1).T)

    def head(self, coef: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """coef (C, D) and intercept (C,) of the tasks' columns (tasks, K, D + 1)."""
        flat = coef.reshape(-1, coef.shape[-1])
        if self.link == "softmax" and self.outputs == 2:
            flat = np.concatenate([-flat, flat]) / 2
        return flat[:, :-1], flat[:, -1]


def class_factors(class_weight: ClassWeight, codes: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(C,) factor of each code; classes that are not among the rows `seen` get 1.

    Raises
    ------
    FitError
        A class weight that is not a positive number.
    """
    factors = np.ones(int(codes.max(initial=0)) + 1)
    if class_weight is None:
        return factors
    present = np.unique(codes[seen])
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise FitError(f"class_weight is {class_weight!r}; expected balanced, or weights by class.")
        factors[present] = compute_class_weight("balanced", classes=present, y=codes[seen])
        return factors
    for code, weight in class_weight.items():
        if not (np.isfinite(weight) and weight > 0):
            raise FitError(f"The weight of class {code!r} is {weight}; expected a positive number.")
        if 0 <= code < len(factors):
            factors[code] = weight
    return factors


def weights_by_code(class_weight: dict | str | None, classes: np.ndarray) -> dict | str | None:
    """A class weight by code, of one by class (C,)."""
    if not isinstance(class_weight, dict):
        return class_weight
    unknown = set(class_weight) - set(classes.tolist())
    if unknown:
        raise FitError(f"class_weight names {sorted(unknown, key=str)[0]!r}, which is none of the classes.")
    return {code: class_weight[name] for code, name in enumerate(classes.tolist()) if name in class_weight}
