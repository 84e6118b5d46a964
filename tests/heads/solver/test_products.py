"""Products are those of float64 but for float32's rounding, by whichever library."""

import numpy as np
import pytest
import torch

from bottleneck.heads.solver import products
from bottleneck.heads.solver.arrays import to_numpy
from bottleneck.heads.solver.products import times_transposed, with_rows


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize(("c", "D", "B"), [(1, 1, 1), (0, 7, 5), (3, 40, 0), (5, 1280, 300), (65, 33, 1)])
def test_the_product_is_exact_but_for_rounding(monkeypatch, onednn, c, D, B):
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: onednn)
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, D, generator=random) for n in (c, B))
    for left, right in ((a, b), (a, b.T.contiguous().T)):  # rows, or columns, beside each other in memory
        product = times_transposed(left, right)
        assert (product.shape, product.dtype) == ((c, B), torch.float32)
        exact = left.double() @ right.double().T
        torch.testing.assert_close(product.double(), exact, rtol=0, atol=1e-6 * max(1, D) ** 0.5 * 10)
        assert torch.equal(product, times_transposed(left, right))


def test_other_types_are_multiplied_by_torch(monkeypatch):
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)
    a = torch.arange(6, dtype=torch.float64).view(2, 3)
    assert torch.equal(times_transposed(a, a), a @ a.T)


@pytest.mark.parametrize(
    ("amd", "units", "taken"),
    [(True, ["avx2", "avx512f"], True), (True, ["avx2"], False), (False, ["avx512f"], False)],
)
def test_onednn_is_taken_where_it_was_measured(monkeypatch, amd, units, taken):
    monkeypatch.setattr(products, "is_of_amd", lambda: amd)
    monkeypatch.setattr(products, "vector_units", lambda: units)
    products._onednn_is_faster.cache_clear()
    try:
        assert products._onednn_is_faster() is taken
    finally:
        products._onednn_is_faster.cache_clear()


@pytest.mark.parametrize(("A", "k", "M", "N"), [(3, 2, 40, 81), (1, 1, 8, 1), (5, 2, 8, 1281), (0, 2, 8, 5)])
def test_products_with_the_rows_of_each_head_are_exact_but_for_rounding(place, A, k, M, N):
    generator = np.random.default_rng(0)
    vectors, rows = generator.standard_normal((A, k, N)), generator.standard_normal((A, M, N))
    product = to_numpy(with_rows(place.array(vectors, np.float32), place.array(rows, np.float32)))
    np.testing.assert_allclose(product, vectors @ rows.swapaxes(1, 2), rtol=0, atol=1e-5 * N**0.5)
