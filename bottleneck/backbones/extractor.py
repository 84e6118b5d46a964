"""The module that feature extraction runs: uint8 pixels in, one float32 tensor per node out.

    pixels ──► Normalise ──► trunk ──► one Pool per node

Shapes: B images, H × W pixels or positions, L tokens, C channels, D features.
Layouts of a node's tensor: NCHW and NHWC maps, NLC tokens, NC vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bottleneck.backbones.graph import layout_of
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError
from bottleneck.names import POOLS


class Pool(nn.Module):
    """The pool behind `NODE@POOL`: turns a map into a vector. Vectors pass every pool unchanged.

    avg, max : over all positions; D = C.
    avg2, avg3 : averages over each cell of a 2 × 2 or 3 × 3 grid, which keep coarse positions; D = 4 C, 9 C.
    token : the first token, of class, which stands before the patches of a vision transformer.
    flatten : all values in the order of the tensor.
    none : the map unchanged.

    Tokens are arranged in the square grid of their patches. Tokens beyond the square (class, registers) come
    first and are left out of averages, maxima and grids.

    Parameters
    ----------
    kind : str
        One of `names.POOLS`.
    row : tuple of int
        Shape of one image's part of the tensor.
    """

    def __init__(self, kind: str, row: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.layout, self.row = kind, layout_of(row), row
        if kind not in POOLS:
            raise BackboneError(f"Unknown pool {kind!r}; expected one of {', '.join(POOLS)}.")
        if not self.layout and kind not in ("flatten", "none"):
            raise BackboneError(
                f"A tensor of shape {row} is neither a map nor tokens nor a vector: {kind} cannot pool it.",
                "Use the pool flatten or none.",
            )
        if kind == "token" and self.layout != "NC" and not self.tokens_before:
            raise BackboneError(
                f"A tensor of shape {row} has no class token before its positions.", "Use the pool avg."
            )

    def forward(self, x: Tensor) -> Tensor:
        """Float tensor (B, …) → (B, D), or (B, …) for `none`."""
        if self.kind == "none" or self.layout == "NC":
            return x
        if self.kind == "flatten":
            return x.flatten(1)
        if self.kind == "token":
            return x[:, 0]
        return _REDUCTIONS[self.kind](self.channels_first(x)).flatten(1)

    def channels_first(self, x: Tensor) -> Tensor:
        """A map or tokens → (B, C, H, W)."""
        if self.layout == "NHWC":
            return x.permute(0, 3, 1, 2)
        if self.layout == "NLC":
            side = math.isqrt(self.row[0])
            return x[:, self.tokens_before :].transpose(1, 2).reshape(-1, self.row[1], side, side)
        return x

    @property
    def tokens_before(self) -> int:
        """Number of tokens before the square of patches."""
        return self.row[0] - math.isqrt(self.row[0]) ** 2 if self.layout == "NLC" else 0

    def extra_repr(self) -> str:
        """Part of what `print` shows."""
        return f"{self.kind}, {self.layout}"


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "avg2": lambda x: F.adaptive_avg_pool2d(x, 2),
    "avg3": lambda x: F.adaptive_avg_pool2d(x, 3),
}


class Normalise(nn.Module):
    """uint8 pixels (B, H, W, C) → the network's input (B, C, H, W), by the mean and std of `preprocess`."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(preprocess.mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(preprocess.std), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """The result has the dtype of the buffers, which `.half()` and `.double()` change."""
        width, channels = pixels.shape[2:]
        # Whole lines of pixels at a time: broadcasting over 3 channels is many times slower in the engines.
        lines = (pixels.flatten(2).to(self.mean.dtype) - self.mean.repeat(width)) / self.std.repeat(width)
        return lines.unflatten(2, (width, channels)).permute(0, 3, 1, 2)


class Extractor(nn.Module):
    """Normalise, run the trunk once, pool each node.

    It contains everything after decoding, resizing and cropping, so that the engine does all arithmetic, and
    can be exported with a free batch size.
    """

    def __init__(self, trunk: nn.Module, pools: Sequence[Pool], preprocess: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(preprocess)
        self.trunk = trunk
        self.pools = nn.ModuleList(pools)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, H, W, C) → float32 (B, D) or a map (B, …) per node."""
        nodes = self.trunk(self.normalise(pixels))
        return tuple(pool(node).float() for pool, node in zip(self.pools, nodes, strict=True))
