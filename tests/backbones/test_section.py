"""Sections of backbones: fed with the cached map they give the features, and train what they should."""

import pytest
import torch

from bottleneck.backbones.registry import load_backbone
from bottleneck.backbones.section import Section, find_cut
from bottleneck.errors import BackboneError


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("resnet18", weights="none")


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("head_node", "unfreeze", "fed_with", "blocks"),
    [
        ("bottleneck", 1, "layer3@none", ("layer4",)),
        ("bottleneck", "2", "layer2@none", ("layer4", "layer3")),
        ("bottleneck", "layer3", "layer2@none", ("layer4", "layer3")),
        ("bottleneck", "layer4.1", "layer4.0@none", ("layer4",)),
        ("layer3@avg2", 1, "layer2@none", ("layer3",)),
        ("layer2.0@max", 1, "layer1@none", ("layer2",)),
        ("bottleneck", "all", None, ("layer4", "layer3", "layer2", "layer1", "stem")),
    ],
)
def test_a_section_gives_the_heads_features_from_the_map(
    backbone, pixels, head_node, unfreeze, fed_with, blocks
):
    preprocess = backbone.preprocess.override(64, None)
    cut = find_cut(backbone, head_node, unfreeze)
    assert cut.node == fed_with
    assert cut.blocks == blocks
    nodes = [head_node, *([cut.node] if cut.node else [])]
    with torch.no_grad():
        features, *maps = backbone.extractor(nodes, preprocess)(pixels)
        found = Section(backbone, cut, head_node, preprocess)(maps[0] if maps else pixels)
    torch.testing.assert_close(found, features, rtol=1e-5, atol=1e-6)


def test_the_parameters_of_a_cut_are_those_of_the_section(backbone):
    cut = find_cut(backbone, "bottleneck", 2)
    section = Section(backbone, cut, "bottleneck", backbone.preprocess)
    named = {name for parameters in cut.parameters for name, _ in parameters}
    assert named == {name for name, _ in section.body.named_parameters()}
    assert {name.partition(".")[0] for name in named} == {"layer3", "layer4"}


def test_fixed_statistics_stay_to_the_bit_and_others_move(backbone, pixels):
    preprocess = backbone.preprocess.override(64, None)
    cut = find_cut(backbone, "bottleneck", 1)
    maps = backbone.extractor([cut.node], preprocess)(pixels)[0].detach()
    before = {name: buffer.clone() for name, buffer in backbone.module.named_buffers()}
    fixed = Section(backbone, cut, "bottleneck", preprocess).train()
    fixed(maps).sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in backbone.module.named_buffers())
    Section(backbone, cut, "bottleneck", preprocess, statistics=True).train()(maps)
    moved = {
        name for name, buffer in backbone.module.named_buffers() if not torch.equal(before[name], buffer)
    }
    assert moved
    assert all(name.startswith("layer4.") for name in moved)
    backbone.module.load_state_dict(before, strict=False)


def test_more_blocks_than_there_are(backbone):
    with pytest.raises(BackboneError, match=r"Cannot unfreeze 6 blocks.*there are 5"):
        find_cut(backbone, "bottleneck", 6)


def test_a_block_above_the_head(backbone):
    with pytest.raises(BackboneError, match="lies below it"):
        find_cut(backbone, "layer2@avg", "layer4")
