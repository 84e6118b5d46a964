"""Targets as the tasks that the solver fits, and the fitted columns as a head. See the package's page.

target                        tasks              logits of columns
class, multinomial, K > 2     one of K columns   as they are, link "softmax"
class, two classes            one sigmoid z      −z/2, z/2: the same probabilities under a softmax
class, one against the rest   K sigmoids         as they are, link "ovr"
multi-label, K labels         K sigmoids         as they are, link "sigmoid"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from bottleneck.errors import FitError
from bottleneck.heads.solver.arrays import Array, Place, library, place_of
from bottleneck.samples import UNLABELLED, Target

NO_FOLD = -1

ClassWeight = str | Mapping[int, float] | None


@dataclass(frozen=True)
class Task:
    """One loss over the rows.

    Parameters
    ----------
    codes : (n,) int, the true column; 0 or 1 for one column. Ignored where the weight is 0.
    weights : (n,) float, 0 for rows that the task does not use.
    columns : K; 1 is a sigmoid, more a softmax.
    fold : (n,) int, the fold that holds a row out; NO_FOLD for rows that every head is fitted on.
    """

    codes: np.ndarray
    weights: np.ndarray
    columns: int
    fold: np.ndarray

    def take(self, rows: np.ndarray, factor: float = 1.0) -> Task:
        """Return the task on the rows `rows` (m,), repeats allowed, with weights multiplied by `factor`."""
        return Task(self.codes[rows], self.weights[rows] * factor, self.columns, self.fold[rows])


class TaskGroup:
    """Tasks of equal K. Head h belongs to task h // heads_per_task and leaves out fold h % F.

    Parameters
    ----------
    columns : K. folds : F; with 0 folds a task has one head, which is fitted on all rows.
    codes, weights, fold : (T, n), as in `Task`.
    """

    def __init__(self, columns: int, folds: int, *, codes: Array, weights: Array, fold: Array) -> None:
        self.columns, self.folds, self.n_tasks = columns, folds, len(codes)
        self.codes, self.weights, self.fold = codes, weights, fold
        self.heads_per_task = max(1, folds)
        self.n_heads = self.n_tasks * self.heads_per_task
        head = np.arange(self.n_heads)
        place = place_of(codes)
        self.task_of_head = place.array(head // self.heads_per_task)
        self.fold_of_head = place.array(head % folds if folds else np.full_like(head, NO_FOLD))

    @classmethod
    def of(cls, tasks: Sequence[Task], folds: int, dtype: DTypeLike, place: Place) -> TaskGroup:
        """Return the group of tasks with equal K."""
        return cls(
            tasks[0].columns,
            folds,
            codes=place.array([task.codes for task in tasks], np.int32),
            weights=place.array([task.weights for task in tasks], dtype),
            fold=place.array([task.fold for task in tasks], np.int16),
        )

    def without_folds(self, tasks: Sequence[int]) -> TaskGroup:
        """Return the group of some of its tasks, each fitted once, on all rows."""
        chosen = place_of(self.codes).array(list(tasks), np.int64)
        codes, weights, fold = (part[chosen] for part in (self.codes, self.weights, self.fold))
        return TaskGroup(self.columns, 0, codes=codes, weights=weights, fold=fold)

    def codes_and_weights(self, heads: Array, start: int, stop: int) -> tuple[Array, Array]:
        """Return codes (A, B) int32 and weights (A, B) of the rows start … stop−1 for `heads` (A,).

        The weight is 0 where a head is not fitted on the row.
        """
        codes, weights, fold = (part[:, start:stop] for part in (self.codes, self.weights, self.fold))
        if self.n_tasks > 1:
            task = self.task_of_head[heads]
            codes, weights, fold = codes[task], weights[task], fold[task]
        fitted = (fold != self.fold_of_head[heads, None]) | (self.folds == 0)
        return library(fitted).broadcast_to(codes, fitted.shape), weights * fitted


def group_tasks(
    tasks: Sequence[Task], folds: int, dtype: DTypeLike, place: Place
) -> tuple[list[TaskGroup], list[tuple[int, int]]]:
    """Return groups of tasks with equal K, and for each task its group and its index in it."""
    columns = sorted({task.columns for task in tasks})
    members: list[list[Task]] = [[] for _ in columns]
    where = []
    for task in tasks:
        group = columns.index(task.columns)
        where.append((group, len(members[group])))
        members[group].append(task)
    return [TaskGroup.of(member, folds, dtype, place) for member in members], where


@dataclass(frozen=True)
class TargetProblem:
    """One target on the samples to train on.

    Parameters
    ----------
    target : Target of n samples; class or multilabel (least squares also takes regression).
    fold : (n,) int, the fold that holds a sample out, NO_FOLD for none.
    class_weight : None, "balanced" (as in scikit-learn, n / (K · count)), or weights by code.
    sample_weight : (n,) float; None means ones.
    multi_class : "multinomial" or "ovr".
    """

    target: Target
    fold: np.ndarray
    class_weight: ClassWeight = None
    sample_weight: np.ndarray | None = None
    multi_class: str = "multinomial"

    @property
    def outputs(self) -> int:
        """Number of classes or labels; 1 for a regression."""
        return 1 if self.target.kind == "regression" else len(self.target.class_names)

    @property
    def link(self) -> str:
        """What turns logits into probabilities, as `HeadArtifact` names it."""
        if self.target.kind != "class":
            return "sigmoid" if self.target.kind == "multilabel" else "identity"
        return "ovr" if self.multi_class == "ovr" and self.outputs > 2 else "softmax"

    def tasks(self) -> list[Task]:
        """Return the tasks of the target."""
        weights = np.ones(len(self.fold)) if self.sample_weight is None else self.sample_weight
        weights = np.where(self.target.labelled, weights, 0.0)
        values = self.target.values
        if self.target.kind == "multilabel":
            labels = np.where(values == 1, 1, 0)
            return [self._task(labels[:, k], 1, weights, labels[:, k]) for k in range(self.outputs)]
        codes = np.where(values == UNLABELLED, 0, values)
        if self.link == "ovr":
            return [self._task((codes == k).astype(int), 1, weights, codes) for k in range(self.outputs)]
        return [self._task(codes, 1 if self.outputs == 2 else self.outputs, weights, codes)]

    def _task(self, codes: np.ndarray, columns: int, weights: np.ndarray, classes: np.ndarray) -> Task:
        """Return a task; the class weight depends on `classes` (n,) int, not on `codes`."""
        factor = class_factors(self.class_weight, classes, weights > 0)
        return Task(codes, weights * factor[classes], columns, self.fold)

    def logits(self, columns: np.ndarray) -> np.ndarray:
        """Return the logits (B, outputs) float32 for the tasks' columns (tasks, K, B)."""
        if self.link == "softmax" and self.outputs == 2:
            half = columns[0, 0] / 2
            return np.stack([-half, half], axis=1)
        return np.ascontiguousarray(columns.reshape(self.outputs, -1).T)

    def head(self, coef: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coef (outputs, D) and intercept (outputs,) for the tasks' columns (tasks, K, D + 1)."""
        flat = coef.reshape(-1, coef.shape[-1])
        if self.link == "softmax" and self.outputs == 2:
            flat = np.concatenate([-flat, flat]) / 2
        return flat[:, :-1], flat[:, -1]


def class_factors(class_weight: ClassWeight, codes: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return the weight (K,) of each code. Classes that no row of `used` (n,) bool has get 1.

    Raises
    ------
    FitError
        A class weight is not a positive number, or not a known word.
    """
    factors = np.ones(int(codes.max(initial=0)) + 1)
    if class_weight is None:
        return factors
    present, counts = np.unique(codes[used], return_counts=True)
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise FitError(f"class_weight is {class_weight!r}; expected balanced, or weights by class.")
        factors[present] = counts.sum() / (len(present) * counts)
        return factors
    for code, weight in class_weight.items():
        if not (np.isfinite(weight) and weight > 0):
            raise FitError(f"The weight of class {code!r} is {weight}; expected a positive number.")
        if 0 <= code < len(factors):
            factors[code] = weight
    return factors


def weights_by_code(class_weight: Mapping[Any, float] | str | None, classes: np.ndarray) -> ClassWeight:
    """Return a class weight by code for one by class name; `classes` (K,) are the names.

    Raises
    ------
    FitError
        A name is none of the classes.
    """
    if class_weight is None or isinstance(class_weight, str):
        return class_weight
    names = classes.tolist()
    unknown = set(class_weight) - set(names)
    if unknown:
        raise FitError(f"class_weight names {sorted(unknown, key=str)[0]!r}, which is none of the classes.")
    return {code: class_weight[name] for code, name in enumerate(names) if name in class_weight}
