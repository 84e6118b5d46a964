"""The part of a network that feature extraction runs: uint8 pixels in, one float32 array per node out.

Shapes: B images, H × W pixels, C channels, D features.
"""

import torch
from torch import Tensor, nn

from bottleneck.data.preprocess import Preprocess


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
