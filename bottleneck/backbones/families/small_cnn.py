"""A small convolutional network that is trained from random weights: the baseline for transfer learning.

Shapes: B samples, M images of a sample, C channels, S pixels a side, P covariates, D features of an image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bottleneck.backbones.families.architecture import Architecture
from bottleneck.backbones.listed import Listed
from bottleneck.data.preprocess import CHANNELS, Preprocess
from bottleneck.errors import BackboneError, counted
from bottleneck.names import SMALL_CNN, SMALL_CNN_DEPTH

NAME = SMALL_CNN
MAX_DEPTH = 6
_SIZE = 224  # pixels a side by default
_HIDDEN = 128


class SmallCNN(nn.Module):
    """Blocks of 3 × 3 convolution (no padding), ReLU, 2 × 2 max-pool, BatchNorm with 8, 16, 32 … channels.

    The classifier reads the flattened maps of all images of a sample and its covariates, M·D + P numbers.

    Parameters
    ----------
    in_channels : int
    depth : int
        Blocks, 1 to 6.
    size : int
        Pixels a side; 512 pixels give 30 × 30 × 64 values before flattening at depth 4.
    classes : int
    images, covariates : int
        M and P.
    """

    def __init__(
        self,
        in_channels: int = 3,
        depth: int = SMALL_CNN_DEPTH,
        *,
        size: int = _SIZE,
        classes: int = 2,
        images: int = 1,
        covariates: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= depth <= MAX_DEPTH:
            raise BackboneError(f"small_cnn has 1 to {MAX_DEPTH} blocks, not {depth}.")
        widths = [in_channels, *(8 << i for i in range(depth))]
        side = size
        for _ in range(depth):
            side = (side - 2) // 2
        if side < 1:
            raise BackboneError(
                f"Images of {size} × {size} pixels are too small for {counted(depth, 'block')} of small_cnn."
            )
        self.depth, self.images, self.covariates = depth, images, covariates
        self.features = nn.Sequential(
            OrderedDict((f"block{i + 1}", _block(widths[i], widths[i + 1])) for i in range(depth))
        )
        self.classifier = classifier(images * widths[-1] * side * side + covariates, classes)

    def forward(self, images: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Logits (B, classes); for two classes (B, 1), the logit of the second, for a sigmoid.

        images : float (B, C, S, S), or (B, M, C, S, S) if M > 1.
        covariates : float (B, P), required if P > 0.
        """
        if self.images > 1:
            rows = self.features(images.flatten(0, 1)).unflatten(0, (-1, self.images)).flatten(1)
        else:
            rows = self.features(images).flatten(1)
        if self.covariates and covariates is not None:
            rows = torch.cat([rows, covariates], 1)
        return self.classifier(rows)


def classifier(inputs: int, classes: int) -> nn.Sequential:
    """A hidden layer of 128 with BatchNorm, ReLU and dropout, then the logits; two classes share one."""
    return nn.Sequential(
        nn.Linear(inputs, _HIDDEN),
        nn.BatchNorm1d(_HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(_HIDDEN, 1 if classes == 2 else classes),
    )


def names() -> list[str]:
    """The one name."""
    return [NAME]


def listed() -> Iterator[Listed]:
    """The one row."""
    yield Listed(NAME, "none")


def architecture(
    name: str = NAME,
    weights: str | None = None,
    *,
    in_channels: int = 3,
    depth: int | None = None,
    image_size: int | None = None,
) -> Architecture:
    """The network as a backbone for one image per sample; it has no published weights.

    image_size : pixels a side, which decide the width of its classifier; 224 by default
    """
    if weights is not None:
        raise BackboneError(f"{name} has no weights {weights!r}; expected none or a file.")
    depth = SMALL_CNN_DEPTH if depth is None else depth
    modes = {channels: mode for mode, channels in CHANNELS.items()}
    if in_channels not in modes:
        raise BackboneError(f"Images of {in_channels} channels are not supported; expected 1, 3 or 4.")
    half, size = (0.5,) * in_channels, image_size or _SIZE
    return Architecture(
        name=name,
        build=lambda classes: SmallCNN(in_channels, depth, size=size, classes=classes or 2),
        preprocess=Preprocess(size, size, "bilinear", half, half, modes[in_channels]),
        depth=depth,
        image_size=image_size,
    )


def _block(inputs: int, outputs: int) -> nn.Module:
    layers = OrderedDict(
        conv=nn.Conv2d(inputs, outputs, 3), relu=nn.ReLU(), pool=nn.MaxPool2d(2), norm=nn.BatchNorm2d(outputs)
    )
    return nn.Sequential(layers)
