"""Inspect: costs of blocks, modules by index, what is trainable. Freeze: no gradient, no change."""

import copy
import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from bottleneck.backbones.inspect import freeze, inspect_backbone, trainable
from bottleneck.backbones.registry import load_backbone, load_from_recipe, outline
from bottleneck.cli.main import group
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


def _train(module, images, steps=3):
    module.train()
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        loss = module(images).logsumexp(1).mean() + step
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize("up_to", ["stage1", 1, "stage1.add", -4])
def test_frozen_part_is_bit_identical_after_training_and_the_rest_is_not(tiny, images, up_to):
    before = copy.deepcopy(tiny.module.state_dict())
    freeze(tiny, up_to)
    _train(tiny.module, images)
    changed = {n for n, value in tiny.module.state_dict().items() if not torch.equal(value, before[n])}
    assert {name.split(".")[0] for name in changed} == {"stage2", "stage3", "head"}
    assert {"stage2.norm1.running_mean", "stage3.conv2.weight", "head.bias"} <= changed


def test_frozen_trunk_says_in_training_what_was_cached(tiny, images):
    trunk, _ = tiny.split("stage2")
    cached = trunk(images)
    freeze(tiny, "stage2")
    assert torch.equal(trunk.train()(images), cached)


def test_freezing_holds_through_either_half_and_a_copy(tiny, images):
    trunk, _ = tiny.split("stage2")
    freeze(tiny, "stage2")
    for module in (trunk, copy.deepcopy(trunk)):
        before = copy.deepcopy(module.state_dict())
        module.train()(images)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_lower_node_frees_what_a_higher_one_froze(tiny):
    everything = trainable(tiny)
    freeze(tiny, "classifier")
    assert trainable(tiny) == []
    freeze(tiny, "stage3")
    assert trainable(tiny) == ["head.weight", "head.bias"]
    freeze(tiny, None)
    assert trainable(tiny) == everything
    assert type(tiny.module.stage1.norm1) is torch.nn.BatchNorm2d
    assert tiny.module.train().stage1.norm1.training


def test_networks_are_traced_alike_when_frozen(tiny, images):
    freeze(tiny, "stage2")
    expected = tiny.module(images)
    trunk, top = tiny.split("stage1")
    assert torch.equal(top(trunk(images)), expected)


def test_inner_node_freezes_only_what_it_needs(tiny):
    """A node beside a residual freezes its own branch and what lies below it."""
    freeze(tiny, "stage2.conv1")
    free = trainable(tiny)
    assert "stage2.conv1.weight" not in free
    assert "stage2.conv2.weight" in free


def practitioners_network(images, covariates, outputs):
    """The network of the practitioners' note, 512 × 512 grey pixels, written down layer by layer."""
    layers, inputs = [], 1
    for width in (8, 16, 32, 64):
        layers += [nn.Conv2d(inputs, width, 3), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(width)]
        inputs = width
    body = nn.Sequential(*layers, nn.Flatten())
    D = body(torch.zeros(2, 1, 512, 512)).shape[1]
    head = nn.Linear(images * D + covariates, 128), nn.BatchNorm1d(128), nn.Linear(128, outputs)
    return sum(p.numel() for part in (body, *head) for p in part.parameters())


@pytest.mark.parametrize(
    ("images", "covariates", "classes", "linear"),
    [
        (4, 2, 2, "Linear(230402, 128)"),
        (4, 2, None, "Linear(230402, 128)"),
        (1, 0, 3, "Linear(57600, 128)"),
        (2, None, 5, "Linear(115200, 128)"),
    ],
)
def test_the_small_network_has_the_counts_of_the_practitioners_note(images, covariates, classes, linear):
    network = outline("small_cnn", in_channels=1, image_size=512)
    result = inspect_backbone(network, images=images, covariates=covariates, classes=classes)
    outputs = 1 if (classes or 2) == 2 else classes
    assert result.parameters == practitioners_network(images, covariates or 0, outputs)
    assert sum(row.parameters for row in result.blocks) == result.parameters == result.trainable
    assert (result.classifier[0], result.classifier[-1]) == (linear, f"Linear(128, {outputs})")


@pytest.mark.parametrize("size", [64, 100, 512, 513])
@pytest.mark.parametrize("weights", [None, "none"])
def test_the_small_network_is_inspected_at_any_size(size, weights):
    arguments = ["inspect", "small_cnn", "--in-channels", "1", "--image-size", str(size), "--json"]
    arguments += ["--weights", weights] if weights else []
    written = json.loads(CliRunner().invoke(group, arguments).stdout)
    side = size
    for _ in range(4):
        side = (side - 2) // 2
    assert written["features"] == 64 * side**2
    assert written["blocks"][-1]["parameters"] == 128 * 64 * side**2 + 128 + 256 + 129


def test_the_count_of_the_note_itself():
    assert practitioners_network(4, 2, 1) == 29_516_593


def test_the_command_shows_the_classifier_of_several_images_and_numbers():
    arguments = [
        "inspect",
        "small_cnn",
        "--in-channels",
        "1",
        "--image-size",
        "512",
        "--images",
        "4",
        "--covariates",
        "2",
    ]
    shown = CliRunner().invoke(group, arguments).stdout
    assert "29,516,593 parameters" in shown
    assert "Linear(230402, 128)" in shown


def test_an_image_too_small_for_the_small_network_is_refused():
    with pytest.raises(BackboneError, match="16 × 16 pixels are too small for 4 blocks"):
        outline("small_cnn", image_size=16)


def test_a_new_classifier_on_a_published_network_is_one_linear_layer():
    network = outline("resnet18")
    own, new = inspect_backbone(network), inspect_backbone(network, images=2, covariates=3, classes=5)
    assert new.classifier == ("Linear(1027, 5)",)
    assert own.parameters - new.parameters == 513 * 1000 - 1028 * 5
    assert new.macs == 2 * (own.macs - 512 * 1000) + 1027 * 5


def test_a_network_for_a_size_is_rebuilt_from_its_recipe():
    backbone = load_backbone("small_cnn", weights="none", image_size=64)
    assert load_from_recipe(backbone.recipe).recipe == backbone.recipe
    assert "image_size" not in load_backbone("small_cnn", weights="none").recipe
