"""Convolutions as matrix products: the same layers, whose gradients take less time on a CPU.

In training on maps that lie channels-last, oneDNN computes the gradient of a convolution's weights in float32
at half the processor's rate. Matrix products reach nearly all of it.

Shapes: B images, C channels and D channels of the result, H × W positions and H' × W' of the result, K × L
positions of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bottleneck.processor import vector_units

# Fewest channels, on both sides of a convolution, with which matrix products are faster (docs/measured.md).
CHANNELS = 128


def faster_convolutions() -> AbstractContextManager[object]:
    """Return a `with` block in which convolutions are computed as is fastest on this processor."""
    return MatrixConvolutions() if _products_are_faster() else nullcontext()


@cache
def _products_are_faster() -> bool:
    """Whether the processor has AVX2 and no AVX-512, for which the library's kernels were not measured."""
    units = vector_units() or []
    return "avx2" in units and "avx512f" not in units


class MatrixConvolutions(TorchFunctionMode):
    """In a `with` block, `conv2d` in float32 on a CPU is computed, or derived, by matrix products.

    Others are computed as usual: in bfloat16, with groups, dilated, between few channels, on maps that do not
    lie channels-last.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `func`, or its replacement."""
        return (conv2d if func is F.conv2d else func)(*args, **(kwargs or {}))


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """(B, C, H, W) → (B, D, H', W'), equal to `torch.nn.functional.conv2d` but for rounding.

    weight : (D, C / groups, K, L), bias : (D,).
    """
    usual = groups == 1 and set(_pair(dilation)) == {1} and not isinstance(padding, str)
    if (
        not usual
        or min(weight.shape[:2]) < CHANNELS
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or not x.is_contiguous(memory_format=torch.channels_last)
    ):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    assert not isinstance(padding, str)
    steps, edges = _pair(stride), _pair(padding)
    if weight.shape[2:] == (1, 1) and edges == (0, 0):
        pixels = x.permute(0, 2, 3, 1)[:, :: steps[0], :: steps[1]]
        return F.linear(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2)
    y: Tensor = _Convolution.apply(x, weight, steps, edges)
    return y if bias is None else y + bias[:, None, None]


class _Convolution(torch.autograd.Function):
    """A convolution whose gradient by its weights is a sum of matrix products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.places = stride, padding
        return torch.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.places
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            asked = [True, False, False]
            by_x = torch.ops.aten.convolution_backward(
                slope, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, asked
            )[0]
        if ctx.needs_input_grad[1]:
            by_weight = weight_gradient(x, slope, weight.shape[2:], stride, padding)
        return by_x, by_weight, None, None


def weight_gradient(
    x: Tensor, slope: Tensor, kernel: Sequence[int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """(D, C, K, L) gradient of the weights: for each position of the kernel a product of two matrices.

    x : (B, C, H, W). slope : (B, D, H', W'), the gradient by the result.
    """
    (K, L), (down, right), (top, left) = kernel, stride, padding
    (D, height, width), C = slope.shape[1:], x.shape[1]
    slopes = slope.permute(0, 2, 3, 1).reshape(-1, D).t()
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))
    gradient = x.new_empty(D, K, L, C)
    for i in range(K):
        for j in range(L):
            seen = padded[:, i::down, j::right][:, :height, :width]
            torch.mm(slopes, seen.reshape(-1, C), out=gradient[:, i, j])
    return gradient.permute(0, 3, 1, 2)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
