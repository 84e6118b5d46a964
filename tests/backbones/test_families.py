"""Every family of networks: block lists, feature widths, exact cuts, one training step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bottleneck.backbones.batchnorm import calibrate_batchnorm
from bottleneck.backbones.extractor import Normalise
from bottleneck.backbones.inspect import freeze, trainable
from bottleneck.backbones.registry import load_backbone, outline

# name: (bottleneck width, map behind it, block names from the stem to before the classifier)
FAMILIES = {
    "efficientnet_lite0": (1280, (1280, 7, 7), ["stem", *(f"blocks.{i}" for i in range(7))]),
    "efficientnet_lite1": (1280, (1280, 8, 8), ["stem", *(f"blocks.{i}" for i in range(7))]),
    "efficientnet_lite2": (1280, (1280, 9, 9), ["stem", *(f"blocks.{i}" for i in range(7))]),
    "alexnet": (9216, (256, 6, 6), ["block1", "block2", "block3"]),
    "vgg11": (25088, (512, 7, 7), [f"block{i}" for i in range(1, 6)]),
    "vgg16_bn": (25088, (512, 7, 7), [f"block{i}" for i in range(1, 6)]),
    "resnet18": (512, (512, 7, 7), ["stem", "layer1", "layer2", "layer3", "layer4"]),
    "resnet50": (2048, (2048, 7, 7), ["stem", "layer1", "layer2", "layer3", "layer4"]),
    "resnext50_32x4d": (2048, (2048, 7, 7), ["stem", "layer1", "layer2", "layer3", "layer4"]),
    "wide_resnet50_2": (2048, (2048, 7, 7), ["stem", "layer1", "layer2", "layer3", "layer4"]),
    "densenet121": (1024, (1024, 7, 7), ["stem", *(f"denseblock{i}" for i in range(1, 5))]),
    "googlenet": (
        1024,
        (1024, 7, 7),
        ["stem", *(f"inception{i}" for i in ["3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"])],
    ),
    "inception_v3": (
        2048,
        (2048, 8, 8),
        ["stem", *(f"Mixed_{i}" for i in ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"])],
    ),
    "squeezenet1_1": (512, (512, 13, 13), ["stem", *(f"features.{i}" for i in [3, 4, 6, 7, 9, 10, 11, 12])]),
    "shufflenet_v2_x0_5": (1024, (1024, 7, 7), ["stem", "stage2", "stage3", "stage4"]),
    "mobilenet_v2": (1280, (1280, 7, 7), ["stem", *(f"features.{i}" for i in range(1, 18))]),
    "mobilenet_v3_small": (576, (576, 7, 7), ["stem", *(f"features.{i}" for i in range(1, 12))]),
    "mnasnet0_5": (1280, (1280, 7, 7), ["stem", *(f"layers.{i}" for i in range(8, 14))]),
    "efficientnet_b0": (1280, (1280, 7, 7), ["stem", *(f"features.{i}" for i in range(1, 8))]),
    "efficientnet_v2_s": (1280, (1280, 12, 12), ["stem", *(f"features.{i}" for i in range(1, 7))]),
    "regnet_y_400mf": (440, (440, 7, 7), ["stem", "block1", "block2", "block3", "block4"]),
    "convnext_tiny": (768, (768, 7, 7), ["stem", "features.1", "features.3", "features.5", "features.7"]),
    "vit_b_32": (768, (50, 768), ["stem", *(f"encoder_layer_{i}" for i in range(12))]),
    "swin_t": (768, (768, 7, 7), ["stem", "features.1", "features.3", "features.5", "features.7"]),
    "maxvit_t": (512, (512, 7, 7), ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"]),
    "timm/resnet18d": (512, (512, 7, 7), ["stem", "layer1", "layer2", "layer3", "layer4"]),
    "timm/convnext_atto": (320, (320, 7, 7), ["stem", "stages.0", "stages.1", "stages.2", "stages.3"]),
    "timm/mobilenetv3_small_050": (288, (288, 7, 7), ["stem", *(f"blocks.{i}" for i in range(5))]),
    "timm/vit_tiny_patch16_224": (192, (197, 192), ["stem", *(f"blocks.{i}" for i in range(12))]),
    "timm/swin_tiny_patch4_window7_224": (768, (7, 7, 768), ["stem", *(f"layers.{i}" for i in range(4))]),
    "timm/regnety_002": (368, (368, 7, 7), ["stem", "s1", "s2", "s3", "s4"]),
    "small_cnn": (9216, (64, 12, 12), ["block1", "block2", "block3", "block4"]),
}
# Small enough to be run in every test run, one of each kind of graph, with an image size that they take.
QUICK = {
    "efficientnet_lite0": 64,
    "resnet18": 48,
    "squeezenet1_1": 48,
    "shufflenet_v2_x0_5": 48,
    "mobilenet_v3_small": 48,
    "timm/convnext_atto": 64,
    "small_cnn": 224,
}
# Slow to open up, and much like another one here.
SLOW = (
    "vgg16_bn",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "googlenet",
    "efficientnet_v2_s",
    "regnet_y_400mf",
    "vit_b_32",
    "swin_t",
    "maxvit_t",
    "timm/swin_tiny_patch4_window7_224",
    "timm/regnety_002",
)
FIXED_SIZE = ("vit", "maxvit", "swin", "inception", "googlenet", "alexnet", "timm/vit", "timm/swin")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in SLOW else ()) for name in FAMILIES]
)
def test_blocks_and_widths_have_the_family_s_own_names_and_numbers(name):
    backbone = outline(name)
    width, shape, blocks = FAMILIES[name]
    assert [block.name for block in backbone.blocks] == [*blocks, "classifier"]
    assert backbone.num_features == width
    assert backbone.node_shape("bottleneck@none")[0] == shape


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [("vgg16", 224, 25088), ("vgg16", 150, 4 * 4 * 512), ("alexnet", 150, 3 * 3 * 256)],
)
def test_vgg_s_bottleneck_is_the_last_block_flattened_at_any_size(name, size, width):
    """The pooling to a fixed grid, which only serves the published classifier, is not in the features."""
    backbone = outline(name)
    preprocess = backbone.preprocess.override(image_size=size)
    assert backbone.node_shape("bottleneck", preprocess) == ((width,), "NC")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet50", 25_557_032),
        ("densenet121", 7_978_856),
        ("vgg16", 138_357_544),
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite1", 5_416_680),
        ("efficientnet_lite2", 6_092_072),
    ],
)
def test_parameters_are_the_published_numbers(name, parameters):
    assert sum(p.numel() for p in outline(name).module.parameters()) == parameters


@pytest.mark.parametrize("name", QUICK)
def test_cut_at_every_block_and_trained_by_its_top(name):
    _cut_and_train(name, QUICK[name])


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in QUICK])
def test_cut_at_every_block_and_trained_by_its_top_long(name):
    _cut_and_train(name, None if name.startswith(FIXED_SIZE) else 64)


def _cut_and_train(name, size):
    backbone = load_backbone(name, weights="none")
    size = size or backbone.preprocess.size
    backbone.preprocess = replace(backbone.preprocess, size=size)
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    calibrate_batchnorm(backbone, pixels)
    images = Normalise(backbone.preprocess)(torch.from_numpy(pixels))
    with torch.inference_mode():
        expected = backbone.module(images)
        assert expected.abs().max() < 1e3
        for block in backbone.blocks[:-1]:
            trunk, top = backbone.split(block.node)
            assert torch.equal(top(trunk(images)), expected), block
        (features,) = backbone.extractor(["bottleneck"])(torch.from_numpy(pixels))
        assert features.shape == (2, *backbone.node_shape("bottleneck")[0])
    _train_two_blocks(backbone, images)


def _train_two_blocks(backbone, images):
    top_two = backbone.blocks[-3]
    _, top = backbone.split(top_two.node)
    freeze(backbone, top_two.node)
    free = set(trainable(backbone))
    assert free == {name for name, _ in top.named_parameters()}
    before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    backbone.module.train()
    optimiser = torch.optim.SGD([p for p in backbone.module.parameters() if p.requires_grad], lr=0.1)
    (backbone.module(images) - 1).square().mean().backward()
    optimiser.step()
    state = backbone.module.state_dict()
    changed = {name for name, value in state.items() if not torch.equal(value, before[name])}
    assert changed
    assert changed <= set(top.state_dict())
