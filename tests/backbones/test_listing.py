"""The list of backbones."""

import pytest

from bottleneck.backbones.registry import available
from bottleneck.errors import BackboneError


def test_all_weights_of_torchvision_and_the_embedded_network_are_listed():
    listed = {(b.name, b.weights): b for b in available()}
    assert listed["resnet50", "IMAGENET1K_V1"].accuracy == pytest.approx(76.13)
    assert listed["resnet50", "IMAGENET1K_V2"].parameters == 25_557_032
    assert listed["efficientnet_lite0", "embedded"].parameters == 4_652_008
    assert not any(name.startswith("timm/") for name, _ in listed)
    assert len({name for name, _ in listed}) > 75


def test_a_narrow_pattern_opens_each_network():
    listed = {(b.name, b.weights): b for b in available("timm/resnet18")}
    assert listed["timm/resnet18", "a1_in1k"].features == 512
    assert listed["timm/resnet18", "a1_in1k"].parameters == 11_689_512


def test_a_wildcard_matches_whole_names():
    assert {b.name for b in available("squeezenet1_?")} == {"squeezenet1_0", "squeezenet1_1"}


def test_no_match_is_said():
    with pytest.raises(BackboneError, match="No backbone matches 'nonsense'"):
        available("nonsense")
