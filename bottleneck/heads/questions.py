"""Targets as the solver takes them, and its columns as their logits.

    target                    tasks            logits (C) of columns
    class, multinomial, C > 2 one of C columns as they are
    class of two classes      one sigmoid z    −z/2, z/2: the same under a softmax
    class, one against rest   C sigmoids       as they are, link "ovr"
    multi-label               L sigmoids       as they are, link "sigmoid"

Shapes: n samples, C classes or labels, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.utils import compute_class_weight

from bottleneck.errors import FitError
from bottleneck.heads.tasks import Task
from bottleneck.samples import UNLABELLED, Target

ClassWeight = str | Mapping[int, float] | None


@dataclass(frozen=True)
class Question:
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
