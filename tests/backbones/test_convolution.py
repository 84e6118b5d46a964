"""Convolutions as matrix products: the same values and gradients, and only where they are faster."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bottleneck.backbones import convolution
from bottleneck.backbones.convolution import MatrixConvolutions
from bottleneck.backbones.registry import load_backbone
from bottleneck.backbones.section import Section, find_cut


class WeightGradients(TorchDispatchMode):
    """Counts the gradients of weights that are left to the library's convolutions."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.count += args[-1][1]
        return func(*args, **(kwargs or {}))


def gradients(layer, x):
    """The result, and the gradients by x and by the parameters, of a loss that weighs every value."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    slopes = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    return (y.detach(), *torch.autograd.grad((y * slopes).sum(), [x, *layer.parameters()]))


def channels_last(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).contiguous(memory_format=torch.channels_last)


CASES = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": 3, "padding": 1, "bias": False},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (3, 2), "padding": (0, 1), "stride": (1, 2)},
    {"kernel_size": 1, "padding": 1},
]


@pytest.mark.parametrize("size", [(6, 7), (7, 6)])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_values_and_gradients_are_those_of_the_library(options, size):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(128, 160, **options), channels_last(3, 128, *size)
    expected = gradients(layer, x)
    with MatrixConvolutions(), WeightGradients() as library:
        found = gradients(layer, x)
    assert library.count == 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "options",
    [{"groups": 128}, {"dilation": 2}, {"padding": "same"}, {"channels": 64}, {"layout": "NCHW"}],
    ids=str,
)
def test_other_convolutions_are_left_to_the_library(options):
    options = dict(options)
    channels, layout = options.pop("channels", 128), options.pop("layout", "NHWC")
    layer, x = nn.Conv2d(channels, 128, 3, **options), channels_last(2, channels, 7, 7)
    x = x.contiguous() if layout == "NCHW" else x
    expected = gradients(layer, x)
    with MatrixConvolutions(), WeightGradients() as library:
        found = gradients(layer, x)
    assert library.count == 1
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_in_bfloat16_the_library_computes_all():
    layer, x = nn.Conv2d(128, 128, 3), channels_last(2, 128, 7, 7)
    with torch.autocast("cpu", torch.bfloat16), MatrixConvolutions(), WeightGradients() as library:
        layer(x).float().sum().backward()
    assert library.count == 1


def test_weights_that_are_frozen_get_no_gradient():
    layer, x = nn.Conv2d(128, 128, 3).requires_grad_(False), channels_last(2, 128, 7, 7).requires_grad_()
    with MatrixConvolutions():
        layer(x).sum().backward()
    assert layer.weight.grad is None
    expected = F.conv_transpose2d(torch.ones(2, 128, 5, 5), layer.weight)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("units", "by_products"), [(["avx2", "fma"], True), (["avx2", "avx512f"], False)])
def test_a_section_takes_products_where_they_were_measured_to_be_faster(units, by_products, monkeypatch):
    monkeypatch.setattr(convolution, "vector_units", lambda: units)
    convolution._products_are_faster.cache_clear()
    backbone = load_backbone("resnet18", weights="none")
    cut = find_cut(backbone, "bottleneck", 1)
    section = Section(backbone, cut, "bottleneck", backbone.preprocess.override(64, None)).train()
    try:
        with WeightGradients() as library:
            section(torch.rand(2, 256, 4, 4, dtype=torch.float16)).sum().backward()
    finally:
        convolution._products_are_faster.cache_clear()
    assert (library.count == 0) == by_products
    assert all(parameter.grad is not None for parameters in cut.parameters for _, parameter in parameters)
