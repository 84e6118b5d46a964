"""The library whose arrays the solver computes with: NumPy for few rows on the CPU, else torch.

torch takes two seconds of a core to import, which a small problem does not need. On processors of AMD without
AVX-512, NumPy's OpenBLAS multiplies faster than MKL and oneDNN, with which torch does, and NumPy computes for
many rows as well. The solver's modules call what both libraries have under one name, `xp.where(…)` or
`x.sum(axis=1)`, with xp = `library(x)`. What they name or do differently is here, and in `products`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from bottleneck.processor import is_of_amd, vector_units
from bottleneck.threads import WorkerPool

Array: TypeAlias = Any  # a numpy.ndarray or a torch.Tensor
TORCH_FROM = 1 << 29  # products of a pass; from there on, faster ones may repay the import of torch
READING = 30  # columns whose products cost as much as reading the rows

Call = TypeVar("Call", bound=Callable[..., Any])


def quiet(call: Call) -> Call:
    """Return `call` without NumPy's warnings of 0 / 0 and overflow, of which torch does not warn.

    The solver replaces what is not finite.
    """

    @wraps(call)
    def inner(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return call(*args, **kwargs)

    return inner  # type: ignore[return-value]


@dataclass(frozen=True)
class Place:
    """Where arrays are made: "numpy" or "torch", and for torch a device."""

    library: str = "numpy"
    device: str = "cpu"

    @classmethod
    def of(cls, pool: WorkerPool, n: int, width: int, columns: int, *, streamed: bool = False) -> Place:
        """Return the place of a problem that `pool` solves.

        columns : multiplied by the n rows of `width` features in each pass; 0 where there are no passes.
        streamed : rows are converted from float16 in each pass, which torch does faster.
        """
        products = n * width * (columns + READING) if columns else -1
        without_torch = products < TORCH_FROM or (numpy_is_faster() and not streamed)
        if pool.device == "cpu" and without_torch:
            return cls()
        pool.use_torch()
        return cls("torch", pool.device)

    @property
    def xp(self) -> Any:
        """The library as a module."""
        if self.library == "numpy":
            return np
        import torch

        return torch

    def array(self, values: Any, dtype: DTypeLike | None = None) -> Array:
        """Return `values`, a NumPy array or a list, as an array of this place; of `dtype` if it is given."""
        values = np.asarray(values, dtype)
        if self.library == "numpy":
            return values
        return self.xp.from_numpy(np.require(values, requirements="W")).to(self.device)

    def zeros(self, *shape: int, dtype: DTypeLike = np.float64) -> Array:
        """Return zeros of a shape."""
        if self.library == "numpy":
            return np.zeros(shape, dtype)
        return self.xp.zeros(shape, dtype=getattr(self.xp, np.dtype(dtype).name), device=self.device)


def numpy_is_faster() -> bool:
    """Whether NumPy multiplies faster than torch on this processor, however many rows there are."""
    return is_of_amd() and "avx512f" not in (vector_units() or ("avx512f",))


def library(x: Array) -> Any:
    """Return the module, numpy or torch, whose array x is."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def place_of(x: Array) -> Place:
    """Return where x is."""
    return Place() if isinstance(x, np.ndarray) else Place("torch", str(x.device))


def cast(x: Array, dtype: DTypeLike) -> Array:
    """Return x in `dtype`; x itself where it has it."""
    if isinstance(x, np.ndarray):
        return x.astype(dtype, copy=False)
    return x.to(getattr(_torch(), np.dtype(dtype).name))


def dtype_of(x: Array) -> np.dtype:
    """Return the dtype of x as NumPy's."""
    return x.dtype if isinstance(x, np.ndarray) else np.dtype(str(x.dtype).removeprefix("torch."))


def to_numpy(x: Array) -> np.ndarray:
    """Return x as a NumPy array on the host."""
    return x if isinstance(x, np.ndarray) else x.numpy(force=True)


def zeros_like(x: Array, *shape: int, dtype: DTypeLike | None = None) -> Array:
    """Return zeros of another shape, beside x; of the dtype of x unless another is given."""
    return place_of(x).zeros(*shape, dtype=dtype_of(x) if dtype is None else dtype)


def take_along(x: Array, index: Array) -> Array:
    """Return the numbers of x at `index` along axis 1."""
    return np.take_along_axis(x, index, 1) if isinstance(x, np.ndarray) else x.gather(1, index)


def put_along(x: Array, index: Array, values: Array | float) -> None:
    """Set the numbers of x at `index` along axis 1, in place."""
    if isinstance(x, np.ndarray):
        np.put_along_axis(x, index, values, 1)
    else:
        x.scatter_(1, index, values)


def transposed(x: Array) -> Array:
    """Return x with its last two axes swapped, a view."""
    return library(x).swapaxes(x, -1, -2)


def sigmoid(z: Array) -> Array:
    """Return 1 / (1 + exp −z)."""
    if not isinstance(z, np.ndarray):
        return _torch().sigmoid(z)
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, e) / (1 + e)


def softmax(z: Array) -> Array:
    """Return the softmax over axis 1."""
    if not isinstance(z, np.ndarray):
        return _torch().softmax(z, 1)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def solve_triangular(R: Array, b: Array, *, upper: bool) -> Array:
    """Return R⁻¹ b for triangular matrices R (A, m, m) and right sides b (A, m, k).

    NumPy has LAPACK's general solver alone. Of an upper triangle it exchanges no rows, and computes what a
    solver of triangles does. Of a lower one it would, and take some with small diagonals for singular.
    """
    if isinstance(R, np.ndarray):
        return np.linalg.solve(R, b) if upper else np.linalg.solve(R[:, ::-1, ::-1], b[:, ::-1])[:, ::-1]
    return _torch().linalg.solve_triangular(R, b, upper=upper)


def inverse_of_positive(blocks: Array) -> Array | None:
    """Return the inverses of symmetric matrices (…, m, m); None if one is not positive definite."""
    if not isinstance(blocks, np.ndarray):
        factor, failed = _torch().linalg.cholesky_ex(blocks)
        return None if failed.any() else _torch().cholesky_inverse(factor)
    try:
        factor = np.linalg.inv(np.linalg.cholesky(blocks))
    except np.linalg.LinAlgError:
        return None
    return factor.swapaxes(-1, -2) @ factor  # positive definite, as rounded inverses of `blocks` are not


def _torch() -> ModuleType | Any:
    return sys.modules["torch"]
