"""Which library computes, and what the two do differently."""

import numpy as np
import pytest
import torch

from bottleneck.heads.solver import arrays
from bottleneck.heads.solver.arrays import Place, to_numpy
from bottleneck.threads import WorkerPool


def test_torch_that_is_chosen_inside_of_a_pool_is_serial_there(place):
    before = torch.get_num_threads()
    with WorkerPool() as pool:
        assert Place.of(pool, 10, 10, 2) == place
        assert torch.get_num_threads() == 1
        assert Place.of(pool, 10, 10, 0) == Place("numpy")  # no passes
    assert torch.get_num_threads() == before


def test_many_products_and_devices_are_torchs(monkeypatch):
    used = []
    monkeypatch.setattr(WorkerPool, "use_torch", lambda self: used.append(self.device))
    monkeypatch.setattr(arrays, "TORCH_FROM", 1 << 29)
    monkeypatch.setattr(arrays, "numpy_is_faster", lambda: False)
    assert Place.of(WorkerPool(), 800, 1280, 50).library == "numpy"
    assert Place.of(WorkerPool(), 50_000, 1280, 50).library == "torch"
    assert Place.of(WorkerPool("cuda:0"), 8, 8, 0) == Place("torch", "cuda:0")
    assert used == ["cpu", "cuda:0"]


@pytest.mark.parametrize(
    ("amd", "units", "numpy"),
    [
        (True, ["avx2"], True),
        (True, ["avx2", "avx512f"], False),
        (False, ["avx2"], False),
        (True, None, False),
    ],
)
def test_numpy_computes_for_many_rows_where_it_was_measured(monkeypatch, amd, units, numpy):
    monkeypatch.undo()
    monkeypatch.setattr(arrays, "is_of_amd", lambda: amd)
    monkeypatch.setattr(arrays, "vector_units", lambda: units)
    monkeypatch.setattr(WorkerPool, "use_torch", lambda self: None)
    expected = "numpy" if numpy else "torch"
    assert Place.of(WorkerPool(), 50_000, 1280, 50).library == expected
    assert Place.of(WorkerPool(), 50_000, 1280, 50, streamed=True).library == "torch"
    assert Place.of(WorkerPool("cuda:0"), 50_000, 1280, 50).library == "torch"


def test_functions_that_differ_agree_with_float64(place):
    generator = np.random.default_rng(0)
    z = generator.uniform(-100, 100, (4, 3, 5))
    x = place.array(z, np.float32)
    np.testing.assert_allclose(to_numpy(arrays.sigmoid(x)), 1 / (1 + np.exp(-z)), rtol=1e-4, atol=1e-30)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        to_numpy(arrays.softmax(x)), e / e.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-30
    )
    root = generator.standard_normal((2, 6, 6))
    blocks = root @ root.swapaxes(1, 2) + np.eye(6)
    inverse = arrays.inverse_of_positive(place.array(blocks))
    np.testing.assert_allclose(to_numpy(inverse), np.linalg.inv(blocks), atol=1e-10)
    blocks[1, 0, 0] = -1
    assert arrays.inverse_of_positive(place.array(blocks)) is None


@pytest.mark.parametrize("upper", [True, False])
def test_triangles_with_small_diagonals_are_solved_as_torch_does(upper):
    """Those of steps that are nearly alike; LAPACK's general solver takes 50 of these for singular."""
    generator = np.random.default_rng(0)
    R = np.triu(generator.normal(size=(300, 10, 10)), 1) + 1e-3 * np.eye(10)
    R, b = R if upper else R.swapaxes(1, 2), generator.normal(size=(300, 10, 1))
    expected = torch.linalg.solve_triangular(torch.from_numpy(R), torch.from_numpy(b), upper=upper).numpy()
    np.testing.assert_allclose(arrays.solve_triangular(R, b, upper=upper), expected, rtol=1e-9)
