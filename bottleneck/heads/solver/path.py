"""Many L2-regularised logistic heads at once: every fold of every task side by side, along a path of C.

Each head minimises what scikit-learn's LogisticRegression does, over w (K, D) and an unpenalised b (K,):

    F(w, b) = C Σ_i s_i · loss_i(w x_i + b) + ½ ‖w‖²

One step of all heads is one pass over the rows: logits of all columns in one product, residuals, gradients of
all columns in one product. Each head has its own step length and leaves the batch when it has converged.

Warm starts: at the next C a head begins where the parabola through its last three optima, over log C, points.
Its L-BFGS steps are carried over too, since only the loss's share of a change of gradient grows, by the
ratio of the Cs. The folds of a task share a preconditioner, that of the mean of their coefficients on all
rows; from that mean the fit on all rows starts, which is made at the chosen C alone. All values of C in one
batch instead would need no order, but 3 times the passes (10,000 rows, 1,280 features, 10 classes, to 4e-5:
430 of cold starts against 140).

Shapes: n rows, H heads of a group, A of them in one share, K columns of a head, P = width + 1 coefficients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bottleneck.heads.solver.design import Design
from bottleneck.heads.solver.lbfgs import BatchedLBFGS, History
from bottleneck.heads.solver.objective import Passes, Request
from bottleneck.heads.solver.preconditioner import Preconditioner
from bottleneck.heads.solver.problem import Group, Task

POLISHED = 1e-6  # of the heads that are kept
TOLERANCE = 1e-5  # relative, of the objective; what is promised is 1e-4, and slow heads stop early
MEMORY, LEAST_STEPS = 20, 4  # steps remembered
MOST_STEPS = 1000
BLOCK_COST = 1.0  # passes that building a preconditioner may cost
LARGEST_BLOCK = 1536  # rows of one block
LEAST_COUPLED = 16  # coordinates; columns are coupled where that many can be afforded
SPEAKS = 0.02  # coordinates with less curvature than this beside the penalty's 1 need no exact block
LEAST_SHARE = 1e-8
FARTHEST = 1.5  # steps of the path that an extrapolation may reach


@dataclass
class _Share:
    """Some heads of a group on the path: their loss with intercepts alone, their optima, their steps."""

    group: Group
    heads: Tensor
    null: Tensor
    optima: list[Tensor]
    history: History | None = None


@dataclass(frozen=True)
class Solution:
    """All heads at one C.

    coef : per group (H, K, P), intercepts last; objective : per group (H,) float64;
    converged : per group (H,) bool; passes : over the rows, to get here from the C before.
    """

    C: float
    coef: list[Tensor]
    objective: list[Tensor]
    converged: list[Tensor]
    passes: int


def solve_path(
    passes: Passes,
    groups: Sequence[Group],
    Cs: Sequence[float],
    tol: float = TOLERANCE,
    memory: int = 1 << 32,
) -> Iterator[Solution]:
    """Solve all heads of `groups` for each C of the grid, smallest first.

    tol : as of `lbfgs.BatchedLBFGS`. memory : bytes that may be used beside the rows; fewer steps are
    remembered, and smaller blocks kept by the preconditioner, where heads are many.
    """
    steps = _steps(groups, passes.design, memory)
    shares = [
        _Share(group, heads, *_start(group, heads, passes.design))
        for group in groups
        for heads in passes.crew.share(torch.arange(group.heads, device=passes.design.device))
    ]
    done: list[float] = []
    for C in sorted(set(Cs)):
        ahead = [_extrapolated(share.optima, done, C) for share in shares]
        precs = _preconditioners(passes, groups, shares, ahead, C, memory)
        descents = list(
            passes.crew.run(
                lambda share, start, C=C, precs=precs, done=tuple(done): _set_out(
                    share, start, precs[share.group], C, done, tol, steps
                ),
                zip(shares, ahead, strict=True),
            )
        )
        count = _descend(passes, shares, descents)
        done = [*done, C][-3:]
        for share, descent in zip(shares, descents, strict=True):
            share.optima = [*(share.optima if len(done) > 1 else []), descent.coef][-3:]
        yield Solution(
            C,
            _by_group(groups, shares, [descent.coef for descent in descents]),
            _by_group(groups, shares, [descent.objective for descent in descents]),
            _by_group(groups, shares, [descent.converged for descent in descents]),
            count + 1,
        )


def _descend(passes: Passes, shares: Sequence[_Share], descents: Sequence[BatchedLBFGS]) -> int:
    """Run until all heads have arrived; the number of passes."""
    count = 0
    while moving := [(s, d) for s, d in zip(shares, descents, strict=True) if len(d.heads)]:
        requests = [Request(share.group, descent.heads, descent.trial()) for share, descent in moving]
        found = passes.gradients(requests)
        work = (
            (descent, request.coef, *answer)
            for (_, descent), request, answer in zip(moving, requests, found, strict=True)
        )
        for _ in passes.crew.run(BatchedLBFGS.update, work):
            pass
        count += 1
    return count


def _set_out(
    share: _Share,
    start: Tensor,
    prec: Preconditioner,
    C: float,
    done: Sequence[float],
    tol: float,
    steps: int,
) -> BatchedLBFGS:
    """Heads at the start of their way at this C, their earlier steps carried over.

    With y = C ∇²loss s + s on the weights (without the latter on intercepts), only the first term grows with
    C.
    """
    if share.history is None:
        share.history = History(len(start), start[0].numel(), steps, start.dtype, start.device)
    else:
        ratio = C / done[-1]
        on_weights = torch.ones_like(start[0])
        on_weights[:, -1] = 0
        on_weights = on_weights.flatten()
        share.history.rescale(
            lambda s, y: ratio * y + (1 - ratio) * on_weights * s, lambda y: prec.apply(share.heads, y)
        )
    return BatchedLBFGS(share.heads, start, C * share.null, C, share.history, prec, tol, MOST_STEPS)


def _start(group: Group, heads: Tensor, design: Design) -> tuple[Tensor, list[Tensor]]:
    """The loss (A,) of the best intercepts alone, and [(A, K, P)] zeros with those intercepts."""
    codes, weights = group.fitted(heads, 0, design.n)
    K = max(group.columns, 2)
    counts = torch.zeros(len(heads), K, dtype=torch.float64, device=design.device)
    counts.scatter_add_(1, codes, weights.double())
    total = counts.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    offset = (counts / total).clamp(min=LEAST_SHARE).log()
    coef = torch.zeros(len(heads), group.columns, design.width + 1, dtype=design.dtype, device=design.device)
    sides = offset[:, 1:] - offset[:, :1] if group.columns == 1 else offset - offset.mean(dim=1, keepdim=True)
    coef[..., -1] = sides
    return -(counts * offset).sum(dim=1), [coef]


def _extrapolated(optima: Sequence[Tensor], done: Sequence[float], C: float) -> Tensor:
    """Where the parabola through the last three optima, over log C, meets this C (the line through two)."""
    if len(done) < 2:
        return optima[-1]
    at = np.log(done)
    if (np.log(C) - at[-1]) > FARTHEST * (at[1:] - at[:-1]).min():
        return optima[-1]
    ahead = torch.zeros_like(optima[-1])
    for i, optimum in enumerate(optima):
        others = np.delete(at, i)
        ahead += float(np.prod((np.log(C) - others) / (at[i] - others))) * optimum
    return ahead


def _preconditioners(
    passes: Passes,
    groups: Sequence[Group],
    shares: Sequence[_Share],
    ahead: Sequence[Tensor],
    C: float,
    memory: int,
) -> dict[Group, Preconditioner]:
    """One per group, from the curvature where its heads set out."""
    coefs = _by_group(groups, shares, ahead)
    return {
        group: _preconditioner(passes, group, coef, C, memory)
        for group, coef in zip(groups, coefs, strict=True)
    }


def _preconditioner(passes: Passes, group: Group, coef: Tensor, C: float, memory: int) -> Preconditioner:
    """From the curvature on all rows, where a task's heads (H, K, P) are on average."""
    design, K = passes.design, group.columns
    # A pass takes 4 G K · width operations of a row and task, blocks of j columns and q coordinates
    # K (j + 1) q².
    spendable = BLOCK_COST * 4 * group.heads_per_task * design.width
    coupled = K > 1 and spendable >= (K + 1) * LEAST_COUPLED**2
    joint = K if coupled else 1
    affordable = int(np.sqrt(spendable / (joint + 1)))
    speaking = int((0.25 * C * design.values > SPEAKS).sum())
    held = int(np.sqrt(memory / 8 / (3 * 8 * group.tasks * K * joint)))
    r = min(affordable, speaking, held, LARGEST_BLOCK // joint, design.width)
    whole = group.whole(range(group.tasks))
    every = torch.arange(group.tasks, device=design.device)
    block = passes.curvatures(Request(whole, every, _mean_of_folds(group, coef)), r, coupled)
    return Preconditioner(block, K, design.values, design.n, C, group.heads_per_task, design.dtype)


def _mean_of_folds(group: Group, coef: Tensor) -> Tensor:
    """(T, K, P) of the heads' (H, K, P)."""
    return coef.view(group.tasks, group.heads_per_task, *coef.shape[1:]).mean(dim=1)


def refit(
    passes: Passes, group: Group, coef: Tensor, C: float, tasks: Sequence[int], tol: float, memory: int
) -> tuple[Tensor, Tensor]:
    """Some tasks of a group on all their rows at C, from the heads (H, K, P) of the group there.

    Returns coefficients (t, K, P) and (t,) bool, which of them converged to `tol`.
    """
    whole = group.whole(tasks)
    start = _mean_of_folds(group, coef)[list(tasks)]
    heads = torch.arange(whole.tasks, device=coef.device)
    null, _ = _start(whole, heads, passes.design)
    share = _Share(whole, heads, null, [])
    prec = _preconditioner(passes, whole, start, C, memory)
    descent = _set_out(share, start, prec, C, (), tol, _steps([whole], passes.design, memory))
    _descend(passes, [share], [descent])
    return descent.coef, descent.converged


def _steps(groups: Sequence[Group], design: Design, memory: int) -> int:
    """How many steps of all heads can be remembered in an eighth of the memory."""
    size = sum(group.heads * group.columns for group in groups) * (design.width + 1)
    return int(np.clip(memory / 8 / (3 * 4 * size), LEAST_STEPS, MEMORY))


def _by_group(groups: Sequence[Group], shares: Sequence[_Share], parts: Sequence[Tensor]) -> list[Tensor]:
    """The shares' parts put together again, a tensor (H, …) per group."""
    return [
        torch.cat([part for share, part in zip(shares, parts, strict=True) if share.group is group])
        for group in groups
    ]


def group_tasks(
    tasks: Sequence[Task], folds: int, design: Design
) -> tuple[list[Group], list[tuple[int, int]]]:
    """Groups of tasks with equal columns, and for each task its (group, place in it)."""
    columns = sorted({task.columns for task in tasks})
    members = [[task for task in tasks if task.columns == K] for K in columns]
    groups = [Group.of(member, folds, design.dtype, design.device) for member in members]
    where, seen = [], dict.fromkeys(columns, 0)
    for task in tasks:
        where.append((columns.index(task.columns), seen[task.columns]))
        seen[task.columns] += 1
    return groups, where
