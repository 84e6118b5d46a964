"""Names, blocks, features: what a backbone says about its network."""

import numpy as np
import pytest
import torch
from torch import nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.extractor import Pool
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError


def test_blocks_are_the_stages_from_stem_to_classifier(tiny):
    assert [(b.index, b.name, b.node) for b in tiny.blocks] == [
        (0, "stem", "stem"),
        (1, "stage1", "stage1"),
        (2, "stage2", "stage2"),
        (3, "stage3", "stage3"),
        (4, "classifier", "head"),
    ]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("stage2", "stage2"),
        ("stage2.relu_1", "stage2"),
        (2, "stage2"),
        ("2", "stage2"),
        (-2, "stage3"),
        ("-1", "head"),
        ("classifier", "head"),
        ("bottleneck", "bottleneck"),
        ("stage1.conv1", "stage1.conv1"),
    ],
)
def test_a_node_is_stored_under_one_name(tiny, asked, name):
    assert tiny.resolve(asked) == name


@pytest.mark.parametrize(("asked", "suggestion"), [("stag2", "stage2"), ("stage1.conv7", "stage1.conv1")])
def test_unknown_node_suggests_close_ones(tiny, asked, suggestion):
    with pytest.raises(BackboneError, match=suggestion):
        tiny.resolve(asked)


@pytest.mark.parametrize("index", [5, -6])
def test_unknown_block_says_how_many_there_are(tiny, index):
    with pytest.raises(BackboneError, match=r"no block .* it has 5"):
        tiny.resolve(index)


def test_every_listed_node_resolves_to_a_listed_node(tiny):
    assert {tiny.resolve(node) for node in tiny.nodes} <= set(tiny.nodes)
    assert {"stem.conv", "stage1.add", "flatten", "bottleneck"} <= set(tiny.nodes)


def test_features_are_those_of_the_network_on_normalised_pixels(tiny, pixels):
    kept = {}
    hooks = [
        tiny.module.stage2.register_forward_hook(lambda module, inputs, output: kept.update(stage2=output)),
        tiny.module.head.register_forward_hook(lambda module, inputs, output: kept.update(head=inputs[0])),
    ]
    scaled = (pixels / 255 - tiny.preprocess.mean) / tiny.preprocess.std
    tiny.module(torch.from_numpy(scaled.transpose(0, 3, 1, 2)).float())
    for hook in hooks:
        hook.remove()
    extractor = tiny.extractor(["bottleneck", "stage2@none", "stage2"])
    bottleneck, stage, average = extractor(torch.from_numpy(pixels))
    torch.testing.assert_close(bottleneck, kept["head"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stage, kept["stage2"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(average, kept["stage2"].mean((2, 3)), rtol=1e-5, atol=1e-5)


def test_in_place_operations_do_not_reach_back_into_a_node(tiny, pixels):
    """`stage1.norm1` is followed by an in-place ReLU and `stage1.conv2` by an in-place sum."""
    nodes, pixels = ["stage1.norm1@none", "stage1.conv2@none"], torch.from_numpy(pixels)
    alone = [tiny.extractor([node])(pixels)[0] for node in nodes]
    together = tiny.extractor([*nodes, "bottleneck"])(pixels)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[1])
    assert alone[0].min() < 0


def test_a_row_does_not_depend_on_its_batch(tiny, pixels):
    extractor = tiny.extractor(["bottleneck", "stage1@avg2"])
    together = extractor(torch.from_numpy(pixels))
    alone = [extractor(torch.from_numpy(row[None])) for row in pixels]
    for node, rows in enumerate(together):
        torch.testing.assert_close(rows, torch.cat([a[node] for a in alone]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "layout"),
    [
        ("bottleneck", (4,), "NC"),
        ("bottleneck@none", (4, 8, 8), "NCHW"),
        ("bottleneck@avg2", (16,), "NC"),
        ("stage1", (4,), "NC"),
        ("stage1@max", (4,), "NC"),
        ("stage1@avg3", (36,), "NC"),
        ("stage1@flatten", (256,), "NC"),
        ("stage1@none", (4, 8, 8), "NCHW"),
        ("flatten@avg2", (4,), "NC"),
        ("classifier", (5,), "NC"),
    ],
)
def test_node_shape_is_the_shape_of_the_rows(tiny, pixels, name, shape, layout):
    assert tiny.node_shape(name) == (shape, layout)
    assert tuple(tiny.extractor([name])(torch.from_numpy(pixels))[0].shape) == (3, *shape)


def test_another_image_size_changes_maps_and_not_averages(tiny):
    larger = tiny.preprocess.override(image_size=32)
    assert tiny.node_shape("stage3@none", larger) == ((4, 16, 16), "NCHW")
    assert tiny.node_shape("stage3", larger) == ((4,), "NC")


def test_unknown_pool_is_named_with_the_choices(tiny):
    with pytest.raises(BackboneError, match=r"'median'.*avg.*none"):
        tiny.extractor(["stage1@median"])


def test_network_of_a_fixed_size_gives_features_below_its_classifier_at_others():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
            self.head = nn.Linear(6 * 12 * 12, 2)

        def forward(self, x):
            return self.head(self.conv2(self.conv1(x).relu()).relu().flatten(1))

    backbone = Backbone.from_module(Fixed(), Preprocess(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3))
    small = backbone.preprocess.override(image_size=8)
    assert backbone.num_features == 6 * 12 * 12
    assert backbone.node_shape("bottleneck", small) == ((6 * 4 * 4,), "NC")
    assert backbone.node_shape("bottleneck@avg", small) == ((6,), "NC")
    with pytest.raises(BackboneError, match="cannot give head at 8 × 8 pixels"):
        backbone.node_shape("head", small)


def test_network_without_classifier_ends_at_its_output(tiny):
    tiny.module.head = nn.Identity()
    backbone = Backbone.from_module(tiny.module, tiny.preprocess)
    assert backbone.node_shape("bottleneck") == ((4,), "NC")
    tiny = Backbone.from_module(nn.Sequential(tiny.module.stem, tiny.module.stage1), tiny.preprocess)
    assert tiny.node_shape("bottleneck") == ((4,), "NC")
    assert tiny.node_shape("bottleneck@none") == ((4, 8, 8), "NCHW")


def test_network_that_decides_by_values_is_refused():
    class Deciding(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    backbone = Backbone.from_module(Deciding(), Preprocess(8, 8, "bilinear", (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(BackboneError, match="Deciding cannot be split into nodes"):
        _ = backbone.blocks


def test_tokens_are_pooled_without_the_class_token():
    class Tokens(nn.Module):
        """9 tokens of a 3 × 3 grid behind one class token."""

        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 4, 4, 4)
            self.mix = nn.Linear(4, 4)
            self.token = nn.Parameter(torch.full((1, 1, 4), 100.0))
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1)
            return self.head(self.mix(tokens)[:, 0])

    backbone = Backbone.from_module(Tokens(), Preprocess(12, 12, "bilinear", (0.5,) * 3, (0.5,) * 3))
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8))
    whole, average, grid, native = backbone.extractor(["mix@none", "mix", "mix@avg3", "bottleneck"])(pixels)
    assert backbone.node_shape("mix@none") == ((10, 4), "NLC")
    assert torch.equal(native, whole[:, 0])
    torch.testing.assert_close(average, whole[:, 1:].mean(1))
    torch.testing.assert_close(grid.reshape(2, 4, 9), whole[:, 1:].transpose(1, 2))


def test_grid_pool_keeps_where_things_are(tiny, pixels):
    whole, grid = tiny.extractor(["stage1@none", "stage1@avg2"])(torch.from_numpy(pixels))
    quarter = whole[:, :, :4, 4:].mean((2, 3))
    torch.testing.assert_close(grid.reshape(3, 4, 2, 2)[:, :, 0, 1], quarter)


@pytest.mark.parametrize("kind", ["avg", "max", "avg2", "avg3"])
def test_channels_last_maps_are_pooled_like_channels_first(kind):
    first = torch.rand(2, 5, 6, 6)
    last = first.permute(0, 2, 3, 1)
    assert Pool(kind, (6, 6, 5)).layout == "NHWC"
    assert torch.equal(Pool(kind, (6, 6, 5))(last), Pool(kind, (5, 6, 6))(first))


def test_a_tensor_without_positions_is_only_flattened():
    assert Pool("flatten", (2, 3, 4))(torch.rand(7, 2, 3, 4)).shape == (7, 24)
    with pytest.raises(BackboneError, match=r"shape \(2, 3, 4\) is neither a map"):
        Pool("avg", (2, 3, 4))
