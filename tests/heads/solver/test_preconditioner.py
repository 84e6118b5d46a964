"""The preconditioner against the Hessian that it stands for."""

import numpy as np
import pytest
import torch

from bottleneck.heads.row_blocks import Standardisation
from bottleneck.heads.solver.arrays import place_of, to_numpy
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
    design, order = build_design(ArrayRows(X), Standardisation.identity(D), WorkerPool(), 1 << 30, columns=K)
    weights = np.random.default_rng(1).uniform(0.5, 2, n)
    task = Task(y, weights, K, np.full(n, NO_FOLD)).take(order)
    drawn = 0.3 * np.random.default_rng(0).standard_normal((1, K, design.width + 1))
    coef = design.place.array(centred(drawn), np.float32)
    return Passes(design, WorkerPool()), TaskGroup.of([task], 0, design.dtype, design.place), coef


def centred(values):
    """(…, K, P) with the sum over the columns of a softmax taken out, as the solver keeps it."""
    return values - values.mean(axis=-2, keepdims=True) if values.shape[-2] > 1 else values


def hessian(passes, group, coef):
    """Of C Σ w loss + ½ ‖w‖² by all coefficients (K · P, K · P), by automatic differentiation in float64."""
    K = coef.shape[1]
    x, weights, at = (torch.as_tensor(part).double() for part in (passes.design.x, group.weights[0], coef))
    codes = torch.as_tensor(group.codes[0]).long()

    def objective(flat):
        columns = flat.view(K, -1)
        logits = x @ columns[:, :-1].T + columns[:, -1]
        both = torch.cat([torch.zeros_like(logits), logits], dim=1) if K == 1 else logits
        losses = torch.nn.functional.cross_entropy(both, codes, reduction="none")
        return C * (weights * losses).sum() + 0.5 * columns[:, :-1].square().sum()

    return torch.autograd.functional.hessian(objective, at.flatten()).numpy()


def preconditioner(passes, group, coef, r, coupled):
    block = passes.curvatures(Evaluation(group, passes.design.place.array([0]), coef), r, coupled)
    design = passes.design
    return Preconditioner(
        block,
        design.values,
        C=C,
        rows=design.n,
        columns=group.columns,
        heads_per_task=1,
        dtype=np.float64,
    )


def applied(prec, vectors):
    """prec times each of the vectors (m, …), as (m, K · P)."""
    place = place_of(prec.inverse)
    flat = place.array(vectors.reshape(len(vectors), -1))
    return np.concatenate([to_numpy(prec.apply(place.array([0]), vector[None])) for vector in flat])


@pytest.mark.parametrize("K", [1, 3, 6])
def test_with_all_coordinates_it_is_the_inverse(K):
    passes, group, coef = at_a_point(300, 12, K)
    prec = preconditioner(passes, group, coef, 12, coupled=K > 1)
    flat = centred(np.random.default_rng(2).standard_normal((5, K, 13))).reshape(5, -1)
    back = applied(prec, flat @ hessian(passes, group, coef))
    np.testing.assert_allclose(back, flat, atol=2e-3)


def test_apart_each_column_has_the_inverse_of_its_own_block():
    passes, group, coef = at_a_point(300, 12, 4)
    prec = preconditioner(passes, group, coef, 12, coupled=False)
    exact = hessian(passes, group, coef).reshape(4, 13, 4, 13)
    for k in range(4):
        vectors = np.zeros((13, 4, 13))
        vectors[:, k] = exact[k, :, k]
        back = applied(prec, vectors).reshape(13, 4, 13)
        expected = np.zeros((13, 4, 13))
        expected[:, k] = np.eye(13)
        np.testing.assert_allclose(back, centred(expected), atol=2e-3)


def test_coordinates_beyond_the_block_get_the_mean_curvature():
    passes, group, coef = at_a_point(300, 12, 3)
    prec = preconditioner(passes, group, 0 * coef, 4, coupled=True)
    g = np.zeros((1, 3, 13))
    g[0, :2, 7] = -1, 1
    mean = to_numpy(group.weights[0]).mean(dtype=np.float64) * (1 / 3) * (2 / 3)
    expected = 1 / (1 + C * mean * float(passes.design.values[7]))
    assert applied(prec, g).reshape(3, 13)[1, 7] == pytest.approx(expected, rel=1e-4)


def test_a_block_that_rounding_made_indefinite_still_serves(place):
    block = place.array([[[[4.0, 2.0, 0.0], [2.0, 1.0 - 1e-4, 0.0], [0.0, 0.0, 3.0]]]])
    prec = Preconditioner(
        1e8 * block,
        place.array([1.0, 1.0]),
        C=1.0,
        rows=10,
        columns=1,
        heads_per_task=1,
        dtype=np.float64,
    )
    direction = applied(prec, np.eye(3)[:1])
    assert np.isfinite(direction).all()
    assert direction[0, 0] > 0
