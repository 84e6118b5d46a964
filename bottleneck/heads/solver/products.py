"""Products of large matrices by the library that is fastest on this processor.

torch multiplies with MKL, which on processors of AMD takes its kernels for AVX2. oneDNN, with which torch
computes linear layers, takes those for AVX-512 there. Both multiply and add in float32.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from bottleneck.heads.solver.arrays import Array, library, transposed
from bottleneck.processor import is_of_amd, vector_units


def times_transposed(a: Array, b: Array) -> Array:
    """Return a bᵀ (c, B) for a (c, D) and b (B, D) of one type; the same bits for the same shapes."""
    if isinstance(a, np.ndarray):
        return a @ b.T
    torch = library(a)
    if len(a) and a.dtype == b.dtype == torch.float32 and a.device.type == "cpu" and _onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return a @ b.T


def with_rows(vectors: Array, rows: Array) -> Array:
    """Return the products (A, k, M) of k vectors (A, k, N), k small, with the rows (A, M, N) of each head.

    NumPy multiplies one vector after the other: a head's rows then come from a core's cache. A product with
    two columns takes twice as long in OpenBLAS. In MKL it takes four times as long as with two rows.
    """
    if isinstance(rows, np.ndarray):
        return (rows[:, None] @ vectors[..., None])[..., 0]
    return vectors @ transposed(rows)


@cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN has wider kernels here than MKL, and this version of torch gives it without a layer."""
    import torch

    wider = is_of_amd() and "avx512f" in (vector_units() or ())
    return wider and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
