"""The leading eigenvectors of a Gram matrix, which principal components are made of."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

from bottleneck.threads import one_thread


def leading(gram: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `count` largest eigenvalues (d,) of a symmetric matrix (D, D), the largest last, and their
    vectors (D, d); d = min(count, D).

    On one thread: the threads of a BLAS wait for each other at each of D steps, which takes many times as
    long as the work where other programs use the cores.
    """
    last = len(gram) - 1
    with one_thread():
        values, vectors = eigh(gram, subset_by_index=[max(0, last + 1 - count), last])
    return values, vectors
