"""What a cache says about its network, and what the user may ask for beside it; without torch."""

import subprocess
import sys

import pytest

from bottleneck.backbones.recipe import file_sha256, request_differences, split_name
from bottleneck.errors import BackboneError

PUBLISHED = {"name": "resnet50", "weights": "IMAGENET1K_V2", "weights_sha256": "ab", "in_channels": 3}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet50", ("resnet50", None)),
        ("resnet50:IMAGENET1K_V1", ("resnet50", "IMAGENET1K_V1")),
        ("resnet50:none", ("resnet50", "none")),
        ("timm/resnet50.a1_in1k", ("timm/resnet50", "a1_in1k")),
        ("timm/resnet50", ("timm/resnet50", None)),
        ("my.nets:build", ("my.nets:build", None)),
    ],
)
def test_a_name_may_carry_its_weights(name, parts):
    assert split_name(name) == parts


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ({}, []),
        ({"name": "resnet50"}, []),
        ({"name": "resnet50:IMAGENET1K_V2"}, []),
        ({"name": "resnet50:IMAGENET1K_V1"}, ["backbone.weights"]),
        ({"name": "resnet18"}, ["backbone.name"]),
        ({"weights": "none"}, ["backbone.weights"]),
        ({"weights": "DEFAULT"}, []),
        ({"in_channels": 1}, ["backbone.in_channels"]),
        ({"seed": 7}, []),
        ({"depth": 2}, ["backbone.depth"]),
        ({"name": "vgg16", "weights": "none", "in_channels": 3}, ["backbone.name", "backbone.weights"]),
    ],
)
def test_only_what_is_asked_for_can_differ(asked, fields):
    assert request_differences(PUBLISHED, **asked) == fields


def test_the_seed_counts_for_random_weights():
    random = {"name": "resnet18", "weights": "none", "seed": 1, "in_channels": 3}
    assert request_differences(random, seed=1) == []
    assert request_differences(random, seed=2) == ["backbone.seed"]


def test_a_weights_file_is_compared_by_its_bytes(tmp_path):
    file, renamed, other = (tmp_path / name for name in ("a.pth", "b.pth", "c.pth"))
    file.write_bytes(b"weights"), renamed.write_bytes(b"weights"), other.write_bytes(b"others")
    recipe = {"name": "resnet18", "weights": "file", "file_sha256": file_sha256(file)}
    assert request_differences(recipe, weights=str(renamed)) == []
    assert request_differences(recipe, weights=str(other)) == ["backbone.weights"]
    with pytest.raises(BackboneError, match=r"absent\.pth cannot be read"):
        request_differences(recipe, weights=str(tmp_path / "absent.pth"))


def test_comparing_recipes_needs_no_torch():
    code = "import sys, bottleneck.backbones.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
