"""Networks for the transfer study: L layers in a row, of which the first n can be copied and frozen.

`alexnet8` has AlexNet's eight layers, scaled to the input. Any other name is a backbone; its blocks are the
layers.

Shapes: B images, S pixels a side, L layers, K classes.
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
from bottleneck.errors import BackboneError, counted, first_line
from bottleneck.studies.study_config import ALEXNET

FEWEST_LAYERS = 3
SMALLEST_SIDE = 16  # pixels
LARGEST_FIRST_MAP = 64  # pixels a side after the first convolution, whose stride is larger for larger images
GRID = 4  # positions a side that the fully connected layers take, at most


@dataclass(frozen=True)
class LayeredNetwork:
    """A network that can be cut after each of its layers.

    module : (B, channels, S, S) float32 → (B, K) logits.
    cuts : for n = 0 … L the first n layers and the others, with the module's parameters and their names.
    layers : names of the L layers.
    preprocess : of the images, before the first layer.
    """

    module: nn.Module
    cuts: Sequence[tuple[nn.Module, nn.Module]]
    layers: Sequence[str]
    preprocess: Preprocess

    def prefix(self, n: int) -> nn.Module:
        """Return a module: uint8 pixels (B, S, S, channels) → output of the first n layers."""
        return nn.Sequential(Normalise(self.preprocess), self.cuts[n][0])

    def suffix(self, n: int) -> nn.Module:
        """Return a module: output of the first n layers, or uint8 pixels if n is 0 → logits (B, K)."""
        return self.cuts[n][1] if n else nn.Sequential(Normalise(self.preprocess), self.module)

    @torch.no_grad()
    def copy_layers(self, n: int, state: Mapping[str, Tensor]) -> None:
        """Copy the first n layers, with BatchNorm statistics, from the state dict `state` of a network."""
        tensors = self.module.state_dict()
        for name in self.cuts[n][0].state_dict():
            tensors[name].copy_(state[name])


def build_network(
    name: str, classes: int, *, size: int, channels: int, width: int = 8, seed: int = 0
) -> LayeredNetwork:
    """Build a network with random weights.

    Parameters
    ----------
    name : "alexnet8", or a backbone as in the registry.
    classes, size : K, S.
    channels : of the images, 1, 3 or 4.
    width : channels of alexnet8's first layer (AlexNet: 96); the others are in AlexNet's proportions.
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
    cuts = [(module[:n], module[n:]) for n in range(len(module) + 1)]
    return LayeredNetwork(module, cuts, tuple(module._modules), preprocess)


def alexnet8(classes: int, *, size: int, channels: int = 3, width: int = 8) -> nn.Sequential:
    """Build AlexNet (Krizhevsky et al. 2012) for S × S images: five convolutions, three linear layers.

    The first kernel and stride follow the image size. BatchNorm replaces local response normalisation and
    dropout, so that a base network is trained in seconds. Fully connected layers have 16 × `width` units.
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
    """Take a backbone's blocks as layers, with a new classifier for K classes."""
    name = backbone.name
    _replace_classifier(backbone, classes)
    backbone = Backbone.from_module(backbone.module, backbone.preprocess, name=name)
    blocks = backbone.blocks
    if len(blocks) < FEWEST_LAYERS:
        raise BackboneError(
            f"{name} has {counted(len(blocks), 'layer')}; the study cuts between layers and needs "
            f"{FEWEST_LAYERS}.",
            f"Use --network {ALEXNET}, or see bottleneck inspect {name}.",
        )
    _require_size(backbone, size)
    cuts: list[tuple[nn.Module, nn.Module]] = [
        (nn.Identity(), backbone.module),
        *(backbone.split(block.node) for block in blocks[:-1]),
        (backbone.module, nn.Identity()),
    ]
    layers = tuple(block.name for block in blocks)
    return LayeredNetwork(backbone.module, cuts, layers, backbone.preprocess.override(size, None))


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
    """Replace the network's last layer by a new one with K outputs."""
    graph = backbone.graph
    affine = [
        node for node in graph.nodes if node.op == "call_module" and affine_layers(backbone.module, node)
    ]
    last = backbone.module.get_submodule(affine[-1].target) if affine else None
    fresh: nn.Module
    if isinstance(last, nn.Linear):
        fresh = nn.Linear(last.in_features, classes)
    elif isinstance(last, nn.Conv2d):
        height, width = last.kernel_size
        fresh = nn.Conv2d(last.in_channels, classes, (height, width))
    else:
        raise BackboneError(
            f"The last layer of {backbone.name} is not linear nor a convolution, so none can replace it.",
            f"Use --network {ALEXNET}.",
        )
    backbone.module.set_submodule(affine[-1].target, fresh)
