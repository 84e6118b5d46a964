"""The preconditioner against the Hessian that it stands for."""

import numpy as np
import pytest
import torch

from bottleneck.heads.row_blocks import Standardisation
from bottleneck.heads.solver.design import build_design
from bottleneck.heads.solver.objective import Evaluation, Passes
from bottleneck.heads.solver.preconditioner import Preconditioner
from bottleneck.heads.solver.problem import NO_FOLD, Task, TaskGroup
from bottleneck.samples import ArrayRows
from bottleneck.threads import WorkerPool
from tests.helpers.problems import features

C = 0.3


def at_a_point(n, D, K):
    """A design, a group of one task without folds, and coefficients (1, K, D + 1) to look at."""
    X, y = features(n, D, max(K, 2))
    X = (X - X.mean(axis=0)) / np.maximum(X.std(axis=0), 1e-3)
    design, order = build_design(ArrayRows(X), Standardisation.identity(D), WorkerPool(), 1 << 30)
    weights = np.random.default_rng(1).uniform(0.5, 2, n)
    task = Task(y, weights, K, np.full(n, NO_FOLD)).take(order)
    generator = torch.Generator().manual_seed(0)
    coef = centred(0.3 * torch.randn(1, K, design.width + 1, generator=generator))
    return Passes(design, WorkerPool()), TaskGroup.of([task], 0, design.dtype, design.device), coef


def centred(values):
    """(…, K, P) with the sum over the columns of a softmax taken out, as the solver keeps it."""
    return values - values.mean(dim=-2, keepdim=True) if values.shape[-2] > 1 else values


def hessian(passes, group, coef):
    """Of C Σ w loss + ½ ‖w‖² by all coefficients (K · P, K · P), by automatic differentiation in float64."""
    x, K = passes.design.x.double(), coef.shape[1]
    codes, weights = group.codes[0].long(), group.weights[0].double()

    def objective(flat):
        at = flat.view(K, -1)
        logits = x @ at[:, :-1].T + at[:, -1]
        both = torch.cat([torch.zeros_like(logits), logits], dim=1) if K == 1 else logits
        losses = torch.nn.functional.cross_entropy(both, codes, reduction="none")
        return C * (weights * losses).sum() + 0.5 * at[:, :-1].square().sum()

    return torch.autograd.functional.hessian(objective, coef.double().flatten())


def preconditioner(passes, group, coef, r, coupled):
    block = passes.curvatures(Evaluation(group, torch.zeros(1, dtype=torch.long), coef), r, coupled)
    design = passes.design
    return Preconditioner(
        block,
        design.values,
        C=C,
        rows=design.n,
        columns=group.columns,
        heads_per_task=1,
        dtype=torch.float64,
    )


def applied(prec, vectors):
    """prec times each of the vectors (m, K · P)."""
    return torch.cat([prec.apply(torch.zeros(1, dtype=torch.long), vector[None]) for vector in vectors])


@pytest.mark.parametrize("K", [1, 3, 6])
def test_with_all_coordinates_it_is_the_inverse(K):
    passes, group, coef = at_a_point(300, 12, K)
    prec = preconditioner(passes, group, coef, 12, coupled=K > 1)
    vectors = torch.randn(5, K, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    flat = centred(vectors).flatten(1)
    back = applied(prec, flat @ hessian(passes, group, coef))
    assert torch.allclose(back, flat, atol=2e-3)


def test_apart_each_column_has_the_inverse_of_its_own_block():
    passes, group, coef = at_a_point(300, 12, 4)
    prec = preconditioner(passes, group, coef, 12, coupled=False)
    exact = hessian(passes, group, coef).view(4, 13, 4, 13)
    for k in range(4):
        vectors = torch.zeros(13, 4, 13, dtype=torch.float64)
        vectors[:, k] = exact[k, :, k]
        back = applied(prec, vectors.flatten(1)).view(13, 4, 13)
        expected = torch.zeros(13, 4, 13, dtype=torch.float64)
        expected[:, k] = torch.eye(13, dtype=torch.float64)
        assert torch.allclose(back, centred(expected), atol=2e-3)


def test_coordinates_beyond_the_block_get_the_mean_curvature():
    passes, group, coef = at_a_point(300, 12, 3)
    prec = preconditioner(passes, group, torch.zeros_like(coef), 4, coupled=True)
    g = torch.zeros(1, 3, 13, dtype=torch.float64)
    g[0, :2, 7] = torch.tensor([-1.0, 1.0])
    mean = (group.weights[0].double().mean() * (1 / 3) * (2 / 3)).item()
    expected = 1 / (1 + C * mean * passes.design.values[7].item())
    assert applied(prec, g.flatten(1)).view(3, 13)[1, 7].item() == pytest.approx(expected, rel=1e-4)


def test_a_block_that_rounding_made_indefinite_still_serves():
    block = torch.tensor([[[[4.0, 2.0, 0.0], [2.0, 1.0 - 1e-4, 0.0], [0.0, 0.0, 3.0]]]], dtype=torch.float64)
    prec = Preconditioner(
        1e8 * block,
        torch.ones(2, dtype=torch.float64),
        C=1.0,
        rows=10,
        columns=1,
        heads_per_task=1,
        dtype=torch.float64,
    )
    direction = applied(prec, torch.eye(3, dtype=torch.float64)[:1])
    assert direction.isfinite().all()
    assert direction[0, 0] > 0
