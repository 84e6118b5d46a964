"""The small CNN: its sizes worked out by hand."""

import pytest
import torch

from bottleneck.backbones.families.small_cnn import SmallCNN
from bottleneck.backbones.registry import load_backbone
from bottleneck.errors import BackboneError


def test_four_grey_images_of_512_pixels_and_two_covariates():
    """Convolutions 24,384 and their BatchNorm 240; 230,402 · 128 + 128, BatchNorm 256, one logit 129."""
    with torch.device("meta"):
        network = SmallCNN(1, size=512, images=4, covariates=2)
    assert network.classifier[0].in_features == 30 * 30 * 64 * 4 + 2 == 230_402
    assert sum(p.numel() for p in network.parameters()) == 29_516_593
    logits = network(torch.empty(3, 4, 1, 512, 512, device="meta"), torch.empty(3, 2, device="meta"))
    assert logits.shape == (3, 1)


def test_a_block_is_convolution_relu_pool_norm():
    block = SmallCNN().features.block2
    assert [type(layer).__name__ for layer in block] == ["Conv2d", "ReLU", "MaxPool2d", "BatchNorm2d"]
    assert (block.conv.in_channels, block.conv.out_channels, block.conv.padding) == (8, 16, (0, 0))


@pytest.mark.parametrize("depth", range(1, 7))
def test_depth_gives_so_many_blocks(depth):
    backbone = load_backbone("small_cnn", depth=depth)
    assert [b.name for b in backbone.blocks] == [*(f"block{i + 1}" for i in range(depth)), "classifier"]
    assert backbone.node_shape("bottleneck@avg") == ((8 * 2 ** (depth - 1),), "NC")
    assert backbone.recipe["depth"] == depth


def test_the_usual_depth_is_recorded_where_none_is_asked_for():
    assert load_backbone("small_cnn").recipe == load_backbone("small_cnn", depth=4).recipe


def test_images_of_a_sample_are_read_alike_and_in_their_order():
    torch.manual_seed(0)
    network = SmallCNN(1, 1, size=8, images=2, covariates=1).eval()
    images, covariates = torch.rand(3, 2, 1, 8, 8), torch.rand(3, 1)
    rows = [network.features(images[:, i]).flatten(1) for i in range(2)]
    expected = network.classifier(torch.cat([*rows, covariates], 1))
    torch.testing.assert_close(network(images, covariates), expected)
    assert not torch.allclose(network(images.flip(1), covariates), expected)


def test_more_than_two_classes_have_a_logit_each():
    assert SmallCNN(size=32, depth=2, classes=5).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("depth", "size", "reason"), [(7, 512, "1 to 6"), (0, 512, "1 to 6"), (4, 40, "too small")]
)
def test_impossible_sizes_are_refused(depth, size, reason):
    with pytest.raises(BackboneError, match=reason):
        SmallCNN(depth=depth, size=size)
