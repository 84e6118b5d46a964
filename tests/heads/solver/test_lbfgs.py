"""The batched compact form against the plain BFGS recursion, head by head."""

import numpy as np

from bottleneck.heads.solver.arrays import to_numpy
from bottleneck.heads.solver.lbfgs import History

HEADS, SIZE, MEMORY = 3, 6, 4


def bfgs_direction(steps, g, H0):
    """−H g by the recursion of the inverse Hessian over the pairs (s, y), from γ H0."""
    s, y = steps[-1]
    H = (s @ y) / (y @ H0 @ y) * H0
    for s, y in steps:
        V = np.eye(SIZE) - np.outer(s, y) / (s @ y)
        H = V @ H @ V.T + np.outer(s, s) / (s @ y)
    return -H @ g


def test_directions_are_those_of_the_recursion(place):
    """With empty, partly filled and overwritten slots; head 1 leaves out every other step."""
    generator = np.random.default_rng(0)
    root = generator.standard_normal((HEADS, SIZE, SIZE))
    hessian, diagonal = root @ root.swapaxes(1, 2) + np.eye(SIZE), generator.uniform(0.1, 1.1, SIZE)
    history = History(place.zeros(HEADS, SIZE), MEMORY)
    steps = [[] for _ in range(HEADS)]
    for number in range(2 * MEMORY + 1):
        s = generator.standard_normal((HEADS, SIZE))
        y = (hessian @ s[..., None])[..., 0]
        moved = np.array([0, 1, 2] if number % 2 == 0 else [0, 2])
        history.push(place.array(moved), *(place.array(each[moved]) for each in (s, y, diagonal * y)))
        g = generator.standard_normal((HEADS, SIZE))
        direction = to_numpy(history.direction(place.array(g), place.array(diagonal * g)))
        for head in range(HEADS):
            steps[head] += [(s[head], y[head])] if head in moved else []
            expected = bfgs_direction(steps[head][-MEMORY:], g[head], np.diag(diagonal))
            np.testing.assert_allclose(direction[head], expected, rtol=1e-8, atol=1e-10)


def test_without_steps_the_direction_is_the_preconditioned_gradient(place):
    history = History(place.zeros(HEADS, SIZE), MEMORY)
    g = np.random.default_rng(0).standard_normal((HEADS, SIZE))
    direction = history.direction(place.array(g), place.array(2 * g))
    np.testing.assert_array_equal(to_numpy(direction), -2 * g)


def test_a_pair_without_positive_curvature_is_left_out(place):
    history = History(place.zeros(1, SIZE), MEMORY)
    s = place.array(np.ones((1, SIZE)))
    history.push(place.array([0]), s, -s, -s)
    np.testing.assert_array_equal(to_numpy(history.direction(s, s)), -np.ones((1, SIZE)))
