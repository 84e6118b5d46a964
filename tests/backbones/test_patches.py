"""Patches that excite a channel, on a network whose channels are known."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.patches import first_kernels, patches_of_source, strongest_patches
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError, SourceError
from bottleneck.report.image_sheets import draw_filters, draw_patches


class Colours(nn.Module):
    """Channel c of the first layer is the mean of colour c over 3 × 3 pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)
        weight = torch.zeros(3, 3, 3, 3)
        weight[[0, 1, 2], [0, 1, 2]] = 1 / 9
        self.conv.weight = nn.Parameter(weight)

    def forward(self, x):
        return self.head(self.conv2(self.pool(self.conv(x))).mean((2, 3)))


@pytest.fixture
def colours():
    torch.manual_seed(0)
    return Backbone.from_module(Colours(), Preprocess(32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3))


@pytest.fixture
def spots():
    """12 dark images; image i has a 6 × 6 spot of colour i % 3 at a place of its own."""
    pixels = np.zeros((12, 32, 32, 3), np.uint8)
    for i in range(12):
        pixels[i, 2 * i : 2 * i + 6, 24 - 2 * i : 30 - 2 * i, i % 3] = 255 - i
    return pixels


def test_patches_show_what_the_channel_looks_for(colours, spots):
    (found,) = strongest_patches(colours, spots, ["conv"], channels=3, patches=4)
    assert found.crops.shape == (3, 4, 3, 3, 3)
    for channel, crops, activations in zip(found.channels, found.crops, found.activations, strict=True):
        others = [c for c in range(3) if c != channel]
        assert crops[..., channel].min() > 240
        assert crops[..., others].max() == 0
        assert (np.diff(activations) <= 0).all()


def test_patches_grow_from_low_to_high(colours, spots):
    low, high = strongest_patches(colours, spots, ["conv", "conv2"])
    assert low.crops.shape[2] < high.crops.shape[2]


def test_a_vector_has_no_patches(colours, spots):
    with pytest.raises(BackboneError, match="head has no positions"):
        strongest_patches(colours, spots, ["conv", "head"])


def test_patches_of_a_folder_are_drawn(colours, spots, tmp_path):
    for i, image in enumerate(spots):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = patches_of_source(colours, str(tmp_path), limit=20)
    assert [patches.node for patches in found] == [b.node for b in colours.blocks[:-1]]
    assert found[0].crops.shape[1] == 9
    with Image.open(draw_patches(found, tmp_path / "out/patches.png")) as picture:
        assert picture.size[0] == 4 + 100 + 9 * 68
        assert len(picture.getcolors(10**6)) > 10


def test_a_source_without_a_readable_image_is_refused(colours, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match="None of 1 image "):
        patches_of_source(colours, str(tmp_path))


def test_kernels_are_drawn_in_their_own_colours(colours, tmp_path):
    with Image.open(draw_filters(first_kernels(colours), tmp_path / "filters.png")) as picture:
        assert picture.width <= 800
        rows = [y for y in range(picture.height) if picture.getpixel((36, y)) == (255, 128, 128)]
        middle = sum(rows) // len(rows)
        middles = [picture.getpixel((36 + 68 * i, middle)) for i in range(3)]
        labels = [picture.crop((4 + 68 * i, max(rows) + 1, 68 + 68 * i, picture.height)) for i in range(3)]
        assert len({label.tobytes() for label in labels}) == 3  # each kernel has its own number
        assert np.asarray(picture.crop((0, 0, picture.width, 20))).min() < 100  # a title
    assert middles == [(255, 128, 128), (128, 255, 128), (128, 128, 255)]


def test_kernels_of_other_depths_are_drawn_grey(tmp_path):
    with Image.open(draw_filters(np.ones((1, 5, 3, 3)), tmp_path / "filters.png")) as picture:
        shown = np.asarray(picture)
    middle = next(y for y in range(shown.shape[0] - 40, 0, -1) if (shown[y, 4:68] == 255).all())
    assert (shown[middle - 20 : middle, 4:68] == 255).all()


def test_a_network_without_convolution_has_no_kernels(tiny):
    backbone = Backbone.from_module(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), tiny.preprocess)
    with pytest.raises(BackboneError, match="no convolution"):
        first_kernels(backbone)
