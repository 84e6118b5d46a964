"""Grey and four-channel images: the first convolution is folded, not trained anew."""

import numpy as np
import pytest
import torch
from torch import nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.channels import adapt_channels
from bottleneck.backbones.registry import load_backbone, load_from_recipe, outline
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError

COLOURFUL = Preprocess(16, 16, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Plain(nn.Module):
    def __init__(self, padding=0, bias=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=padding, bias=bias)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


def _pair(**options):
    """The same network for RGB and for grey."""
    backbones = []
    for channels in (3, 1):
        torch.manual_seed(3)
        module = Plain(**options)
        preprocess = adapt_channels(module, COLOURFUL, channels)
        backbones.append(Backbone.from_module(module, preprocess))
    return backbones


@pytest.mark.parametrize("bias", [False, True])
def test_a_grey_image_gives_what_its_copies_in_three_channels_give(bias):
    colour, grey = _pair(bias=bias)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), dtype=np.uint8))
    expected = colour.extractor(["conv@none"])(pixels.expand(-1, -1, -1, 3))[0]
    torch.testing.assert_close(grey.extractor(["conv@none"])(pixels)[0], expected, rtol=1e-5, atol=1e-5)
    assert (grey.preprocess.mode, len(grey.preprocess.mean)) == ("L", 1)


def test_only_a_padded_border_is_a_little_apart():
    colour, grey = _pair(padding=1)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), dtype=np.uint8))
    expected = colour.extractor(["conv@none"])(pixels.expand(-1, -1, -1, 3))[0]
    folded = grey.extractor(["conv@none"])(pixels)[0]
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(folded[inside], expected[inside], rtol=1e-5, atol=1e-5)
    assert (folded - expected).abs().max() < 0.3 * expected.abs().max()


def test_equal_normalisation_of_the_colours_needs_no_bias():
    """The embedded network normalises all three alike: the sum is exact everywhere."""
    colour, grey = (load_backbone(in_channels=channels) for channels in (3, 1))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), dtype=np.uint8))
    preprocess = [b.preprocess.override(image_size=64) for b in (colour, grey)]
    expected = colour.extractor(["bottleneck"], preprocess[0])(pixels.expand(-1, -1, -1, 3))[0]
    torch.testing.assert_close(
        grey.extractor(["bottleneck"], preprocess[1])(pixels)[0], expected, rtol=1e-4, atol=1e-4
    )
    assert grey.module.conv_stem.bias is None
    assert load_from_recipe(grey.recipe).recipe == grey.recipe
    assert grey.recipe["weights_sha256"] != colour.recipe["weights_sha256"]


def test_a_fourth_channel_is_heard_and_the_size_of_responses_kept():
    torch.manual_seed(0)
    module, reference = Plain(), Plain()
    reference.load_state_dict(module.state_dict())
    preprocess = adapt_channels(module, COLOURFUL, 4)
    assert (preprocess.mode, len(preprocess.std)) == ("RGBA", 4)
    flat = torch.ones(1, 3, 16, 16)
    torch.testing.assert_close(module.conv(torch.ones(1, 4, 16, 16)), reference.conv(flat))
    assert module.conv.weight[:, 3].abs().min() > 0


@pytest.mark.parametrize(("channels", "reason"), [(2, "2 channels"), (5, "5 channels")])
def test_other_numbers_of_channels_are_refused(channels, reason):
    with pytest.raises(BackboneError, match=reason):
        outline("resnet18", in_channels=channels)


def test_a_network_that_does_not_begin_with_colours_is_refused():
    with pytest.raises(BackboneError, match="does not begin with a convolution of three channels"):
        adapt_channels(nn.Sequential(nn.Conv2d(5, 4, 3)), COLOURFUL, 1)
