"""`bottleneck inspect` and `bottleneck backbones` on the command line."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from bottleneck.cli.main import group
from bottleneck.errors import BackboneError


def _json(*arguments):
    result = CliRunner().invoke(group, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_inspect_lists_the_blocks_that_design_promises():
    values = _json("inspect", "resnet18", "--freeze-to", "layer3")
    assert values["name"] == "resnet18"
    assert values["parameters"] == 11_689_512
    assert [block["name"] for block in values["blocks"]] == [
        "stem",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "classifier",
    ]
    assert set(values["blocks"][0]) >= {
        "index",
        "name",
        "parameters",
        "trainable",
        "shape",
        "macs",
        "cached_bytes",
    }
    assert values["trainable"] == sum(block["parameters"] for block in values["blocks"][4:])


def test_inspect_shows_modules_and_state_where_asked():
    values = _json("inspect", "small_cnn", "--modules", "--parameters", "--free", "features.0,classifier")
    assert {
        "path": "features.block1",
        "index": "features[0]",
        "type": "Sequential",
        "parameters": 240,
    } in values["modules"]
    assert values["state"][0]["requires_grad"]
    shown = CliRunner().invoke(
        group, ["inspect", "small_cnn", "--modules", "--parameters"], catch_exceptions=False
    )
    assert "features[0]" in shown.stdout


def test_inspect_draws_kernels(tmp_path):
    values = _json("inspect", "efficientnet_lite0", "--filters", str(tmp_path / "f.png"))
    with Image.open(values["filters"]) as picture:
        assert picture.width == 4 + 8 * 68  # eight kernels in a row, below a title
        assert picture.height > 4 * 68


def test_inspect_wants_images_for_patches():
    with pytest.raises(BackboneError, match=r"--patches .* and --source .* belong together"):
        CliRunner().invoke(group, ["inspect", "resnet18", "--patches", "f.png"], catch_exceptions=False)


def test_backbones_are_listed_by_pattern():
    values = _json("backbones", "shufflenet_v2_x0")
    assert {"name", "weights", "accuracy", "parameters", "features"} == set(values["backbones"][0])
    assert values["backbones"][0]["features"] == 1024
