"""Networks for the transfer study: a row of L layers, of which the first n can be copied, frozen or cached.

`alexnet8` is AlexNet's eight layers, scaled to the input; any other name is a backbone, taken by its blocks.

Shapes: B images, C channels, S pixels a side, L layers, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.blocks import affine_layers
from bottleneck.backbones.extractor import Normalise
from bottleneck.backbones.registry import load_backbone
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError, first_line

ALEXNET = "alexnet8"
FEWEST_LAYERS = 3
SMALLEST_SIDE = 16
LARGEST_FIRST_MAP = 64  # pixels a side after the first convolution; larger images are taken with strides
GRID = 4  # pixels a side that the fully connected layers see at most


@dataclass(frozen=True)
class LayeredNetwork:
    """A network that can be cut after each of its layers.

    module : (B, C, S, S) float32 → (B, K) logits.
    halves : L + 1 pairs, the first n layers and the others, sharing the module's parameters and their names.
    layers : names of the L layers.
    preprocess : what images become before the first layer.
    """

    module: nn.Module
    halves: Sequence[tuple[nn.Module, nn.Module]]
    layers: Sequence[str]
    preprocess: Preprocess

    def prefix(self, n: int) -> nn.Module:
        """uint8 pixels (B, S, S, C) → what the first n layers make of them."""
        return nn.Sequential(Normalise(self.preprocess), self.halves[n][0])

    def suffix(self, n: int) -> nn.Module:
        """What the first n layers make → logits; takes pixels where n is 0."""
        return self.halves[n][1] if n else nn.Sequential(Normalise(self.preprocess), self.module)

    @torch.no_grad()
    def copy_layers(self, n: int, state: Mapping[str, Tensor]) -> None:
        """Overwrite the first n layers, BatchNorm statistics included, by those of the network `state`."""
        own = self.module.state_dict()
        for name in self.halves[n][0].state_dict():
            own[name].copy_(state[name])


def build_network(
    name: str, classes: int, *, size: int, channels: int, width: int = 8, seed: int = 0
) -> LayeredNetwork:
    """A network with random weights.

    Parameters
    ----------
    name : "alexnet8", or a backbone as in the registry.
    classes, size, channels : K, S, C.
    width : channels of alexnet8's first layer (AlexNet: 96); the others keep AlexNet's proportions.
    seed : of the weights.

    Raises
    ------
    BackboneError
        Unknown name, too few layers for the study, or images too small.
    """
    if name != ALEXNET:
        return _by_blocks(load_backbone(name, weights="none", seed=seed, in_channels=channels), classes, size)
    if size < SMALLEST_SIDE:
        raise BackboneError(
            f"{ALEXNET} takes images of {SMALLEST_SIDE} pixels or more a side, got {size}.",
            f"Use --image-size {SMALLEST_SIDE}.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = alexnet8(classes, size=size, channels=channels, width=width)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    preprocess = Preprocess(size, size, "bilinear", (0.5,) * channels, (0.25,) * channels, mode)
    halves = [(module[:n], module[n:]) for n in range(len(module) + 1)]
    return LayeredNetwork(module, halves, tuple(module._modules), preprocess)


def alexnet8(classes: int, *, size: int, channels: int = 3, width: int = 8) -> nn.Sequential:
    """AlexNet (Krizhevsky et al. 2012) for S × S images: five convolutions, three fully connected layers.

    Kernels and the first stride shrink with the image; BatchNorm stands in for local response normalisation
    and dropout, so that a base network is trained in seconds. Fully connected layers have 16 × `width` units.
    """
    w = width
    stride = -(-size // LARGEST_FIRST_MAP)
    side = size // stride
    for _ in range(3):  # three poolings
        side = -(-side // 2)
    grid = min(side, GRID)
    layers = OrderedDict(
        conv1=_convolution(channels, w, 2 * stride + 3, stride=stride, pool=True),
        conv2=_convolution(w, 2 * w, 5, pool=True),
        conv3=_convolution(2 * w, 4 * w, 3),
        conv4=_convolution(4 * w, 4 * w, 3),
        conv5=_convolution(4 * w, 3 * w, 3, pool=True),
        fc6=nn.Sequential(nn.AdaptiveAvgPool2d(grid), nn.Flatten(), *_connected(3 * w * grid**2, 16 * w)),
        fc7=nn.Sequential(*_connected(16 * w, 16 * w)),
        fc8=nn.Linear(16 * w, classes),
    )
    return nn.Sequential(layers)


def _convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, pool: bool = False) -> nn.Module:
    parts = [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
    return nn.Sequential(*parts, *([nn.MaxPool2d(3, 2, 1)] if pool else []))


def _connected(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()


def _by_blocks(backbone: Backbone, classes: int, size: int) -> LayeredNetwork:
    """A backbone's blocks as layers, its classifier replaced by one for K classes."""
    name = backbone.name
    _replace_classifier(backbone, classes)
    backbone = Backbone.from_module(backbone.module, backbone.preprocess, name=name)
    blocks = backbone.blocks
    if len(blocks) < FEWEST_LAYERS:
        raise BackboneError(
            f"{name} has {len(blocks)} layers; the study cuts between layers and needs {FEWEST_LAYERS}.",
            f"Use --network {ALEXNET}, or see bottleneck inspect {name}.",
        )
    _require_size(backbone, size)
    halves = [
        (nn.Identity(), backbone.module),
        *(backbone.split(block.node) for block in blocks[:-1]),
        (backbone.module, nn.Identity()),
    ]
    layers = tuple(block.name for block in blocks)
    return LayeredNetwork(backbone.module, halves, layers, backbone.preprocess.override(size, None))


@torch.inference_mode()
def _require_size(backbone: Backbone, size: int) -> None:
    """Raise BackboneError where the whole network does not take images of `size` pixels a side."""
    preprocess = backbone.preprocess
    try:
        backbone.module.eval()(torch.zeros(1, preprocess.channels, size, size))
    except (RuntimeError, ValueError) as error:
        raise BackboneError(
            f"{backbone.name} does not take images of {size} pixels a side: {first_line(error)}.",
            f"Use --image-size {preprocess.size}, its own, or --network {ALEXNET}.",
        ) from None


def _replace_classifier(backbone: Backbone, classes: int) -> None:
    """Put a fresh last layer with K outputs in the place of the network's own."""
    graph = backbone.graph
    affine = [
        node for node in graph.nodes if node.op == "call_module" and affine_layers(backbone.module, node)
    ]
    last = backbone.module.get_submodule(affine[-1].target) if affine else None
    if isinstance(last, nn.Linear):
        fresh = nn.Linear(last.in_features, classes)
    elif isinstance(last, nn.Conv2d):
        fresh = nn.Conv2d(last.in_channels, classes, last.kernel_size)
    else:
        raise BackboneError(
            f"The last layer of {backbone.name} is not linear nor a convolution, so none can replace it.",
            f"Use --network {ALEXNET}.",
        )
    backbone.module.set_submodule(affine[-1].target, fresh)
