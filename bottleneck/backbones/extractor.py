"""The part of a network that feature extraction runs: uint8 pixels in, one float32 array per node out.

Shapes: B images, H × W pixels, C channels, D features.

How a map becomes a vector: the pools behind `NODE@POOL`.

Layouts: NCHW and NHWC maps of H × W positions, NLC tokens, NC vectors (which every pool leaves as they are).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bottleneck.backbones.graph import layout_of
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError
from bottleneck.names import POOLS

NATIVE = "native"


class Pool(nn.Module):
    """One pool for maps of one layout.

    avg, max : over all positions; D = C.
    avg2, avg3 : averages over a 2 × 2 or 3 × 3 grid, which keep where things are; D = 4 C, 9 C.
    flatten : all values in their own order.
    none : the map as it is.

    Tokens are seen as the square grid that they were cut from; tokens beyond the square (class, registers)
    lead the row and are left out of averages, maxima and grids.
    """

    def __init__(self, kind: str, row: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.layout = kind, layout_of(row)
        self.row = row
        if kind not in POOLS:
            raise BackboneError(f"Unknown pool {kind!r}; expected one of {', '.join(POOLS)}.")
        if not self.layout and kind not in ("flatten", "none"):
            raise BackboneError(
                f"A tensor of shape {row} is no map, no tokens and no vector: {kind} cannot pool it.",
                "Use the pool flatten or none.",
            )

    def forward(self, x: Tensor) -> Tensor:
        """Float tensor (B, …) → (B, D), or (B, …) for `none`."""
        if self.kind == "none" or self.layout == "NC":
            return x
        if self.kind == "flatten":
            return x.flatten(1)
        return _REDUCTIONS[self.kind](self.channels_first(x)).flatten(1)

    def channels_first(self, x: Tensor) -> Tensor:
        if self.layout == "NHWC":
            return x.permute(0, 3, 1, 2)
        if self.layout == "NLC":
            tokens, channels = self.row
            side = int(tokens**0.5)
            grid = x[:, tokens - side * side :]
            return grid.transpose(1, 2).reshape(-1, channels, side, side)
        return x

    def extra_repr(self) -> str:
        """Shown by `print`."""
        return f"{self.kind}, {self.layout}"


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "avg2": lambda x: F.adaptive_avg_pool2d(x, 2),
    "avg3": lambda x: F.adaptive_avg_pool2d(x, 3),
}


class Normalise(nn.Module):
    """uint8 pixels (B, H, W, C) → the network's input (B, C, H, W), by the mean and std of `preprocess`."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(preprocess.mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(preprocess.std), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """The buffers' dtype is the result's, so that `.half()` and `.double()` do what they say."""
        width, channels = pixels.shape[2:]
        # whole lines of pixels at a time: engines are 15 times slower at broadcasting over 3 channels
        lines = (pixels.flatten(2).to(self.mean.dtype) - self.mean.repeat(width)) / self.std.repeat(width)
        return lines.unflatten(2, (width, channels)).permute(0, 3, 1, 2)


class Extractor(nn.Module):
    """Normalise, run the trunk once, pool each node.

    Everything after decoding, resizing and cropping is in this graph, so that an engine that runs it needs no
    arithmetic on the host. It traces and exports with any batch size.
    """

    def __init__(self, trunk: nn.Module, pools: list[nn.Module], preprocess: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(preprocess)
        self.trunk = trunk
        self.pools = nn.ModuleList(pools)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """uint8 (B, H, W, C) → float32 (B, D) or a map (B, …) per node."""
        nodes = self.trunk(self.normalise(pixels))
        return tuple(pool(node).float() for pool, node in zip(self.pools, nodes, strict=True))
