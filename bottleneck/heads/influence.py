"""How far each training sample pulls a linear head's outputs for other samples: leave-one-out without refits.

A head minimises F(w) = C Σ_i s_i loss(z_i, y_i) + ½ |w|² over weights on standardised features x and
intercepts (the page of `heads.solver`; ½ (z − y)² is the loss of ridge). Without sample i, one Newton step
from its optimum changes the output z of a row x by

    C s_i xᵀ (H − C s_i A_i x_i x_iᵀ)⁻¹ x_i g_i,   H = ∇²F,  g_i = ∂loss/∂z_i,  A_i = ∂²loss/∂z_i².

The pull of sample i on z is minus that. F of ridge is quadratic, so there the step is exact. Of a logistic
head it is the first step to the optimum without i (Pregibon 1981, "Logistic regression diagnostics"; Koh and
Liang 2017). On small training sets a second one follows, with the H of the first and the gradient there.
Outputs that share no weights (ridge, sigmoids) have one Cholesky factor each, and the inverse by
Sherman and Morrison. The K outputs of a softmax share one H: up to 2,048 coefficients it is factorised whole,
and the step is exact; beyond, its product with x is found by conjugate gradients, and the part of sample i in
it is taken from its blocks of single outputs. C, the standardisation and the scales of blocks stay those of
the head. Where n < D, everything is computed in the at most n directions in which the rows differ.

Shapes: n training samples, D features, Q rows, K outputs, P = D + 1 coefficients of an output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import LinearOperator, cg

from bottleneck.errors import ArtifactError, counted
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.ridge import answers_of
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
from bottleneck.names import LINEAR_HEADS
from bottleneck.samples import Target

TOLERANCE = 1e-6  # relative, of conjugate gradients
MOST_STEPS = 500
MOST_COUPLED = 2048  # coefficients of a softmax whose H is factorised whole
OPTIMAL = 1e-2  # of F: a head that a Newton step would improve by more was fitted to other samples
MOST_CELLS = 1 << 23  # of samples × samples × outputs for which a second step is made
SMALLEST = 1e-6  # of 1 − leverage
MEMORY = 4 << 30  # bytes that the numbers of all samples and outputs may take


def require_linear(head: HeadArtifact) -> None:
    """Raise ArtifactError unless the head is logistic or ridge with a C."""
    if head.form != "linear" or head.kind not in LINEAR_HEADS or head.C is None:
        raise ArtifactError(
            f"The pull of training samples on a {head.kind} head cannot be computed; on logistic and ridge "
            "heads it can.",
            "Fit one with `bottleneck fit-head --head logistic`.",
        )


def require_memory(head: HeadArtifact, n: int) -> None:
    """Raise ArtifactError if the pulls of n training samples take more than `MEMORY`."""
    K, D = head.coef.shape
    P = min(D, n) + 1
    each = K * K if head.link == "softmax" and K > 2 else K  # curvatures of a sample
    needed = 8 * (2 * n * D + 3 * n * each + K * P * P)
    if needed > MEMORY:
        raise ArtifactError(
            f"The pulls of {counted(n, 'training sample')} on {counted(K, 'output')} of "
            f"{counted(D, 'feature')} take "
            f"{needed / 1e9:.1f} GB; at most {MEMORY / 1e9:.1f} GB are used.",
            "Fit a head on fewer samples or classes with `bottleneck fit-head`, and explain that one.",
        )


@dataclass(frozen=True)
class _Columns:
    """The tasks of a head as columns that are multiplied with rows.

    w : (J, P), the intercept last. answers : (n, J). weights : (n, J), class weights included.
    to : (K, J), logits of the head for those of the columns. softmax : whether the columns share one.
    """

    w: np.ndarray
    answers: np.ndarray
    weights: np.ndarray
    to: np.ndarray
    softmax: bool


class Influence:
    """The pull of training samples on the outputs of a head.

    Parameters
    ----------
    head : a logistic or ridge head, at its optimum on these samples.
    rows : (n, D) features of the samples that it was fitted on, raw. target : (n,) of them, all labelled.

    Raises
    ------
    ArtifactError
        The head is of another kind, or far from its optimum: it was fitted on other samples or answers.
    """

    def __init__(self, head: HeadArtifact, rows: np.ndarray, target: Target) -> None:
        require_linear(head)
        self.head, self.C = head, float(head.C or 1)
        used = (head.coef != 0).any(axis=0)  # blocks of scale 0 and constant features have no part
        self._mean, self._factor = head.mean, np.where(used, 1 / head.scale, 0)
        self._basis: np.ndarray | None = None  # (D, n), of the rows
        x, columns = self._standardised(rows), _columns(head, target)
        if x.shape[0] < x.shape[1] - 1:
            self._basis = np.linalg.svd(x[:, :-1], full_matrices=False)[2].T
            x = self._standardised(rows)
            w = np.concatenate([columns.w[:, :-1] @ self._basis, columns.w[:, -1:]], axis=1)
            columns = replace(columns, w=w)
        self.x, self.columns = x, columns
        z = self.x @ self.columns.w.T
        self.p, self.residual, self.curvature = _derivatives(z, self.columns, head.kind == "ridge")
        self._require_optimum(z)

    def pulls(self, rows: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Return the pull (Q, n) of each training sample.

        rows : (Q, D) raw features. of : (Q, K), the combination of the head's logits that is pulled, such as
            one logit less another one.
        """
        x, of = self._standardised(rows), of @ self.columns.to  # (Q, J)
        total = np.zeros((len(x), len(self.x)))
        if self.columns.softmax:
            for q, each in enumerate(of):
                total[q] = self._coupled(x[q], each)
            return total
        for j in np.flatnonzero((of != 0).any(axis=0)):
            factor = self._parts[j]
            leverage = self._leverage(factor, self.curvature[:, j])
            near = self.x @ cho_solve(factor, x.T)  # (n, Q)
            step = self.C * self.residual[:, j] / np.maximum(1 - leverage, SMALLEST)
            pull = -(near * step[:, None]).T  # (Q, n)
            if self._twice:
                between = self.x @ cho_solve(factor, self.x.T)  # (n, n), symmetric
                rest = self._remainder((between * step)[:, None], [int(j)])[:, 0]
                again = self.C * self.curvature[:, j] / np.maximum(1 - leverage, SMALLEST)
                pull += self.C * (near.T @ rest + near.T * (again * (between * rest).sum(axis=0)))
            total += of[:, j, None] * pull
        return total

    @property
    def _twice(self) -> bool:
        """Whether a second step is made: of a logistic head on a small training set."""
        n, J = self.p.shape
        return self.head.kind != "ridge" and n * n * J <= MOST_CELLS

    def _remainder(self, moved: np.ndarray, of: list[int]) -> np.ndarray:
        """Return (n, J, n) of the columns `of`: the derivative at row m after the step without sample i,
        less that which the step expected; 0 for i itself. moved : (n, J, n), the change of z by the step.
        """
        p, weights = self.p[:, of, None], self.columns.weights[:, of, None]
        z = (self.x @ self.columns.w[of].T)[:, :, None] + moved
        if self.columns.softmax:
            e = np.exp(z - z.max(axis=1, keepdims=True))
            new, expected = e / e.sum(axis=1, keepdims=True), p * (moved - (p * moved).sum(1, keepdims=True))
        else:
            new, expected = 0.5 * (1 + np.tanh(0.5 * z)), p * (1 - p) * moved
        rest: np.ndarray = weights * (new - p - expected)
        rest[np.arange(len(rest)), :, np.arange(len(rest))] = 0
        return rest

    def _standardised(self, rows: np.ndarray) -> np.ndarray:
        """Return (n, P) float64, the constant 1 last."""
        x = (np.asarray(rows, np.float64) - self._mean) * self._factor
        x = x if self._basis is None else x @ self._basis
        return np.concatenate([x, np.ones((len(x), 1))], axis=1)

    def _factorised(self, curvature: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return the Cholesky factor of H (P, P) for the curvature (n,) of one output, weights included."""
        H = self.C * (self.x.T * curvature) @ self.x
        H[np.diag_indices(len(H))] += self._penalty
        factor: tuple[np.ndarray, bool] = cho_factor(H, lower=True, overwrite_a=True)
        return factor

    @property
    def _penalty(self) -> np.ndarray:
        """(P,): intercepts have none, but for what keeps H positive where a class is certain."""
        penalty = np.ones(self.x.shape[1])
        penalty[-1] = 1e-9
        return penalty

    def _leverage(self, factor: tuple[np.ndarray, bool], curvature: np.ndarray) -> np.ndarray:
        solved = cho_solve(factor, self.x.T)
        return self.C * curvature * np.einsum("np,pn->n", self.x, solved)

    def _coupled(self, x: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Return the pulls (n,) on a combination of a softmax's logits, of (K,), at a row x (P,)."""
        K, P = self.columns.w.shape
        wanted = ((of - of.mean())[:, None] * x).ravel()
        if self._whole is not None:
            solved = cho_solve(self._whole, wanted)
        else:
            before = LinearOperator(
                (K * P, K * P),
                lambda v: np.concatenate(
                    [cho_solve(*each) for each in zip(self._parts, v.reshape(K, P), strict=True)]
                ),
            )
            times = LinearOperator((K * P, K * P), self._times)
            solved, _ = cg(times, wanted, rtol=TOLERANCE, maxiter=MOST_STEPS, M=before)
        along = self.x @ solved.reshape(K, P).T  # (n, K)
        pulls: np.ndarray = -self.C * (along * self._steps).sum(axis=1)
        if self._second is not None:
            pulls += self._second @ wanted
        return pulls

    @cached_property
    def _second(self) -> np.ndarray | None:
        """Second step of each sample in a softmax's weights, (n, K · P), H kept; None without one."""
        factor = self._whole
        if factor is None or not self._twice:
            return None
        (n, K), P = self.p.shape, self.x.shape[1]

        def solved(each: np.ndarray) -> np.ndarray:
            answer: np.ndarray = cho_solve(factor, each.reshape(n, K * P).T).T.reshape(n, K, P)
            return answer

        first = self.C * solved(self._steps[:, :, None] * self.x[:, None])
        rest = self._remainder(np.einsum("mp,ikp->mki", self.x, first), list(range(K)))
        step = self.C * solved(np.einsum("mki,mp->ikp", rest, self.x))
        along = np.einsum("ikp,ip->ik", step, self.x)  # of sample i's own row
        A = self._curvatures
        back = np.linalg.solve(np.eye(K) - self.C * A @ self._own, A @ along[..., None])[..., 0]
        step += self.C * solved(back[:, :, None] * self.x[:, None])
        return step.reshape(n, K * P)

    def _times(self, v: np.ndarray) -> np.ndarray:
        """Return H v of a softmax for v (K · P,)."""
        V = v.reshape(self.columns.w.shape)
        along = self.x @ V.T
        moved = self.p * (along - (self.p * along).sum(axis=1, keepdims=True)) * self.columns.weights
        result: np.ndarray = self.C * moved.T @ self.x + V * self._penalty
        return result.ravel()

    @cached_property
    def _parts(self) -> list[tuple[np.ndarray, bool]]:
        """The factor of H for each output by itself."""
        return [self._factorised(each) for each in self.curvature.T]

    @cached_property
    def _whole(self) -> tuple[np.ndarray, bool] | None:
        """The factor of H of a softmax, (K · P, K · P); None where that is too large."""
        K, P = self.columns.w.shape
        if K * P > MOST_COUPLED:
            return None
        H = np.zeros((K, P, K, P))
        weights = self.columns.weights[:, 0]
        for k in range(K):
            for m in range(K):
                second = weights * self.p[:, k] * ((k == m) - self.p[:, m])
                H[k, :, m] = self.C * (self.x.T * second) @ self.x
            H[k, :, k] += np.diag(self._penalty)
        H[:, -1, :, -1] += 1  # a shift of all intercepts changes nothing, and would leave H singular
        factor: tuple[np.ndarray, bool] = cho_factor(H.reshape(K * P, K * P), lower=True)
        return factor

    @cached_property
    def _steps(self) -> np.ndarray:
        """(I − C A_i M_i)⁻¹ g_i (n, K) of a softmax."""
        left = np.eye(self.p.shape[1]) - self.C * self._curvatures @ self._own
        solved: np.ndarray = np.linalg.solve(left, self.residual[..., None])[..., 0]
        return solved

    @property
    def _curvatures(self) -> np.ndarray:
        """A_i (n, K, K) of a softmax, weights included."""
        K = self.p.shape[1]
        A: np.ndarray = self.p[:, :, None] * (np.eye(K) - self.p[:, None])
        return A * self.columns.weights[:, :1, None]

    @cached_property
    def _own(self) -> np.ndarray:
        """M_i (n, K, K) = (I ⊗ x_i)ᵀ H⁻¹ (I ⊗ x_i) of a softmax."""
        n, K = self.p.shape
        P = self.x.shape[1]
        M = np.zeros((n, K, K))
        if self._whole is not None:
            inverse = cho_solve(self._whole, np.eye(K * P)).reshape(K, P, K, P)
            for k in range(K):
                for m in range(K):
                    M[:, k, m] = ((self.x @ inverse[k, :, m]) * self.x).sum(axis=1)
        else:
            for k, factor in enumerate(self._parts):
                M[:, k, k] = np.einsum("np,pn->n", self.x, cho_solve(factor, self.x.T))
        return M

    def _require_optimum(self, z: np.ndarray) -> None:
        """Raise ArtifactError where a Newton step would lower F by more than a hundredth."""
        w = self.columns.w
        gradient = self.C * self.residual.T @ self.x + w * np.append(np.ones(self.x.shape[1] - 1), 0)
        loss = _losses(z, self.columns, self.head.kind == "ridge")
        objective = self.C * loss + 0.5 * np.square(w[:, :-1]).sum()
        gain = sum(
            0.5 * each @ cho_solve(factor, each) for each, factor in zip(gradient, self._parts, strict=True)
        )
        if gain > OPTIMAL * objective:
            raise ArtifactError(
                "The head is not the best one for the training samples of this cache, so what they pull is "
                "not known: it was fitted to other labels, on views, or stopped early.",
                "Fit it again on this cache with `bottleneck fit-head`.",
            )


def _columns(head: HeadArtifact, target: Target) -> _Columns:
    """Return the tasks of a head as they were solved."""
    w = np.concatenate([head.coef * head.scale, head.intercept[:, None]], axis=1).astype(np.float64)
    w[:, -1] += head.coef @ head.mean
    K, settings = len(w), head.settings
    problem = TargetProblem(
        target,
        np.full(len(target.values), NO_FOLD, np.int16),
        class_weight=_by_code(settings.get("class_weight")),
        multi_class=settings.get("multi_class", "multinomial"),
    )
    if head.kind == "ridge":
        answers, weights = answers_of(problem)
        return _Columns(w, answers, np.repeat(weights[:, None], K, 1), np.eye(K), False)
    tasks = problem.tasks()
    if len(tasks) == 1 and tasks[0].columns == 1:  # two classes: one sigmoid z, logits −z/2 and z/2
        one = tasks[0]
        return _Columns(
            2 * w[1:], one.codes[:, None] * 1.0, one.weights[:, None], np.array([[-0.5], [0.5]]), False
        )
    if len(tasks) == 1:
        answers = (tasks[0].codes[:, None] == np.arange(K)) * 1.0
        return _Columns(w, answers, np.repeat(tasks[0].weights[:, None], K, 1), np.eye(K), True)
    answers, weights = (
        np.stack(each, axis=1) for each in zip(*((t.codes, t.weights) for t in tasks), strict=True)
    )
    return _Columns(w, answers * 1.0, weights, np.eye(K), False)


def _by_code(class_weight: Any) -> Any:
    """Return class weights with whole numbers as keys, which JSON has made texts."""
    if isinstance(class_weight, Mapping):
        return {int(code): float(weight) for code, weight in class_weight.items()}
    return class_weight


def _derivatives(z: np.ndarray, columns: _Columns, ridge: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities, and the weighted first and second derivatives of the loss by z, each (n, J)."""
    if ridge:
        return z, columns.weights * (z - columns.answers), columns.weights
    if columns.softmax:
        e = np.exp(z - z.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
    else:
        p = 0.5 * (1 + np.tanh(0.5 * z))
    return p, columns.weights * (p - columns.answers), columns.weights * p * (1 - p)


def _losses(z: np.ndarray, columns: _Columns, ridge: bool) -> float:
    """Return Σ s loss."""
    s, y = columns.weights, columns.answers
    if ridge:
        return float((0.5 * s * (z - y) ** 2).sum())
    if columns.softmax:
        return float((s[:, 0] * (np.logaddexp.reduce(z, axis=1) - (z * y).sum(axis=1))).sum())
    return float((s * (np.logaddexp(0, z) - z * y)).sum())
