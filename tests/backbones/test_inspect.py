"""What inspect says: costs of blocks, modules by index, what would train."""

import pytest
import torch

from bottleneck.backbones.inspect import inspect_backbone
from bottleneck.backbones.registry import outline
from bottleneck.errors import BackboneError


@pytest.fixture(scope="module")
def densenet():
    return outline("densenet121")


def test_blocks_of_a_small_network_by_hand(tiny):
    rows = inspect_backbone(tiny, freeze_to="stage3").blocks
    stem, stage, head = rows[0], rows[1], rows[-1]
    assert (stem.parameters, stem.shape, stem.cached_bytes) == (3 * 4 * 9 + 4 + 8, (4, 8, 8), 2 * 4 * 64)
    assert stem.macs == 3 * 4 * 9 * 64
    assert stage.parameters == 2 * 4 * 4 * 9 + 4 + 8
    assert stage.macs == 2 * 4 * 4 * 9 * 64
    assert (head.parameters, head.trainable, head.shape) == (4 * 5 + 5, 25, (5,))
    assert [row.trainable for row in rows[:-1]] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/convnext_atto"])
def test_blocks_hold_all_parameters_once(name):
    result = inspect_backbone(outline(name))
    assert sum(row.parameters for row in result.blocks) == result.parameters
    assert sum(row.macs for row in result.blocks) == result.macs


def test_resnet50_costs_what_is_published():
    result = inspect_backbone(outline("resnet50"))
    assert result.parameters == 25_557_032
    assert result.macs == pytest.approx(4.089e9, rel=1e-3)
    assert next(row for row in result.blocks if row.name == "layer3").cached_bytes == 401_408


@pytest.mark.parametrize(
    "free",
    [
        ["features.9", "features.10"],
        ["features[9]", "features.denseblock4"],
        ["features.transition3", "features.10"],
    ],
)
def test_densenet_s_transition3_and_denseblock4_by_index_or_name(densenet, free):
    assert inspect_backbone(densenet, free=free).trainable == 2_684_416


def test_free_takes_blocks_and_ranges(tiny):
    sizes = [row.parameters for row in inspect_backbone(tiny).blocks]
    for free, expected in [
        (["2-3"], sizes[2] + sizes[3]),
        (["4"], sizes[4]),
        (["stage1", "classifier"], sizes[1] + sizes[4]),
    ]:
        assert inspect_backbone(tiny, free=free).trainable == expected, free


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"free": ["features.99"]}, r"no module or block 'features.99'.*--modules"),
        ({"free": ["3-9"]}, "no block"),
        ({"freeze_to": "stage9"}, "stage1"),
        ({"freeze_to": "stage1", "free": ["stem"]}, "--freeze-to and --free"),
    ],
)
def test_what_is_not_there_is_named(tiny, options, reason):
    with pytest.raises(BackboneError, match=reason):
        inspect_backbone(tiny, **options)


def test_every_module_has_its_index_in_its_parent(densenet):
    modules = {row.path: row for row in inspect_backbone(densenet, modules=True).modules}
    assert modules["features.transition3"].index == "features[9]"
    assert modules["classifier"].index == "[1]"
    assert modules["features.denseblock4"].type == "_DenseBlock"
    assert len(modules) == len(list(densenet.module.modules())) - 1


def test_state_lists_parameters_and_buffers_as_the_state_dict_does(tiny):
    state = inspect_backbone(tiny, freeze_to="stem", state=True).state
    assert [row.name for row in state] == list(tiny.module.state_dict())
    rows = {row.name: row for row in state}
    assert (rows["stem.conv.weight"].shape, rows["stem.conv.weight"].requires_grad) == ((4, 3, 3, 3), False)
    assert rows["head.weight"].requires_grad
    assert (rows["stem.norm.running_mean"].kind, rows["stem.norm.running_mean"].requires_grad) == (
        "buffer",
        False,
    )


def test_another_image_size_changes_shapes_and_costs(tiny):
    larger = inspect_backbone(tiny, preprocess=tiny.preprocess.override(image_size=32))
    assert larger.blocks[1].shape == (4, 16, 16)
    assert larger.blocks[1].macs == 4 * inspect_backbone(tiny).blocks[1].macs


def test_an_image_size_that_the_network_refuses_is_named():
    vit = outline("vit_b_32")
    smaller = vit.preprocess.override(image_size=64)
    with pytest.raises(BackboneError, match=r"vit_b_32 .* 64 × 64 pixels"):
        inspect_backbone(vit, preprocess=smaller)


def test_parts_that_were_not_asked_for_are_not_in_the_json(tiny):
    assert {"modules", "state"}.isdisjoint(inspect_backbone(tiny).to_json())
    assert {"modules", "state"} <= inspect_backbone(tiny, modules=True, state=True).to_json().keys()


def test_an_outline_has_shapes_but_no_storage():
    assert all(p.device == torch.device("meta") for p in outline("resnet18").module.parameters())
