"""The batched compact form against the plain BFGS recursion, head by head."""

import torch

from bottleneck.heads.solver.lbfgs import History

HEADS, SIZE, MEMORY = 3, 6, 4
DTYPE = torch.float64


def bfgs_direction(steps, g, H0):
    """−H g by the recursion of the inverse Hessian over the pairs (s, y), from γ H0."""
    s, y = steps[-1]
    H = (s @ y) / (y @ H0 @ y) * H0
    for s, y in steps:
        V = torch.eye(SIZE, dtype=DTYPE) - torch.outer(s, y) / (s @ y)
        H = V @ H @ V.T + torch.outer(s, s) / (s @ y)
    return -H @ g


def quadratics(generator):
    """Positive definite Hessians (HEADS, SIZE, SIZE) and diagonals of H0."""
    root = torch.randn(HEADS, SIZE, SIZE, dtype=DTYPE, generator=generator)
    return root @ root.mT + torch.eye(SIZE, dtype=DTYPE), torch.rand(
        SIZE, dtype=DTYPE, generator=generator
    ) + 0.1


def test_directions_are_those_of_the_recursion():
    """With empty, partly filled and overwritten slots; head 1 leaves out every other step."""
    generator = torch.Generator().manual_seed(0)
    hessian, diagonal = quadratics(generator)
    history = History(torch.zeros(HEADS, SIZE, dtype=DTYPE), MEMORY)
    steps = [[] for _ in range(HEADS)]
    for number in range(2 * MEMORY + 1):
        s = torch.randn(HEADS, SIZE, dtype=DTYPE, generator=generator)
        y = (hessian @ s[..., None])[..., 0]
        accepted = torch.tensor([True, number % 2 == 0, True])
        history.push(s, y, diagonal * y, accepted)
        g = torch.randn(HEADS, SIZE, dtype=DTYPE, generator=generator)
        direction = history.direction(g, diagonal * g)
        for head in range(HEADS):
            steps[head] += [(s[head], y[head])] if accepted[head] else []
            expected = bfgs_direction(steps[head][-MEMORY:], g[head], torch.diag(diagonal))
            assert torch.allclose(direction[head], expected, rtol=1e-8, atol=1e-10)


def test_without_steps_the_direction_is_the_preconditioned_gradient():
    history = History(torch.zeros(HEADS, SIZE, dtype=DTYPE), MEMORY)
    g = torch.randn(HEADS, SIZE, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(history.direction(g, 2 * g), -2 * g)


def test_a_pair_without_positive_curvature_is_left_out():
    history = History(torch.zeros(1, SIZE, dtype=DTYPE), MEMORY)
    s = torch.ones(1, SIZE, dtype=DTYPE)
    history.push(s, -s, -s, torch.tensor([True]))
    assert torch.equal(history.direction(s, s), -s)
