"""Backbones by name: the list, where weights come from, and the errors when they cannot be obtained."""

import sys

import numpy as np
import pytest
import torch
import torchvision.models as zoo

from bottleneck.backbones.families import torchvision_models
from bottleneck.backbones.recipe import LoadOptions, request_differences
from bottleneck.backbones.registry import load_backbone, load_from_recipe, outline
from bottleneck.errors import BackboneError

NET = """
import torch
from torch import nn

def build():
    body = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(4, 2))

def named():
    from bottleneck.backbones.backbone import Backbone
    from bottleneck.data.preprocess import Preprocess

    preprocess = Preprocess(32, 40, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Backbone.from_module(build(), preprocess, class_names=["ant", "bee"])

def small():
    from bottleneck.backbones.families.small_cnn import SmallCNN

    return SmallCNN(size=224)

def wrong():
    return "a network"
"""


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty folder where torchvision keeps its weights, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(url, *args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub/checkpoints"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet51", "resnet50"),
        ("efficientnet-lite0", "efficientnet_lite0"),
        ("timm/resnet181", "timm/resnet18"),
    ],
)
def test_unknown_backbone_suggests_close_ones(name, suggestion):
    with pytest.raises(BackboneError, match=suggestion):
        load_backbone(name)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("resnet50:IMAGENET1K_V9", "IMAGENET1K_V1, IMAGENET1K_V2"),
        ("resnet50:imagenet1k_v1", "IMAGENET1K_V1, IMAGENET1K_V2"),
        ("efficientnet_lite0:IMAGENET1K_V1", "embedded"),
        ("small_cnn:IMAGENET1K_V1", "none or a file"),
        ("timm/resnet18.nonsense", "a1_in1k, a2_in1k"),
    ],
)
def test_unknown_weights_are_refused_with_the_choices(name, choices):
    with pytest.raises(BackboneError, match=choices):
        load_backbone(name)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "densenet121"])
def test_weights_put_where_torchvision_would_put_them_are_loaded(torch_home, name):
    entry = zoo.get_model_weights(name).DEFAULT
    expected = load_backbone(name, weights="none", seed=3).module.state_dict()
    published = {
        key.replace(".norm1", ".norm.1").replace(".conv2", ".conv.2"): v for key, v in expected.items()
    }
    if name != "densenet121":  # whose published file spells its layers so
        published = expected
    torch.save(published, torch_home / entry.url.split("/")[-1])
    backbone = load_backbone(name)
    assert all(torch.equal(value, expected[key]) for key, value in backbone.module.state_dict().items())
    assert backbone.recipe["weights"] == "IMAGENET1K_V1"
    assert backbone.class_names[207] == "golden retriever"
    assert load_from_recipe(backbone.recipe).recipe == backbone.recipe


def test_without_network_the_wanted_file_and_its_place_are_said(torch_home):
    with pytest.raises(BackboneError) as caught:
        load_backbone("resnet50")
    said = str(caught.value)
    assert f"{torch_home}/resnet50-11ad3fa6.pth" in said
    assert "https://download.pytorch.org/models/resnet50-11ad3fa6.pth" in said
    assert "\n" not in said


def test_without_network_timm_s_wanted_repository_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", _unreachable)
    with pytest.raises(BackboneError, match=r"timm/resnet18.a1_in1k .*wanted.*--weights FILE"):
        load_backbone("timm/resnet18")


def _unreachable(*args, **kwargs):
    raise OSError("no route to host")


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_networks_that_normalise_by_themselves_see_what_torchvision_shows_them(name):
    """torchvision: ImageNet normalisation outside, undone for (x − 0.5) / 0.5 inside; here once."""
    torch.manual_seed(0)
    reference = zoo.get_model(name, weights=None, transform_input=True, aux_logits=False, init_weights=False)
    published = zoo.get_model_weights(name).DEFAULT.transforms()
    pixels = torch.rand(1, 3, 8, 8)
    theirs = reference._transform_input(
        (pixels - torch.tensor(published.mean)[:, None, None]) / torch.tensor(published.std)[:, None, None]
    )
    ours = outline(name).preprocess
    mean, std = (torch.tensor(v)[:, None, None] for v in (ours.mean, ours.std))
    torch.testing.assert_close((pixels - mean) / std, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["resnet18:IMAGENET1K_V1", "efficientnet_v2_s", "vit_b_16:IMAGENET1K_SWAG_E2E_V1"]
)
def test_preprocessing_is_the_weights_own(name):
    bare, _, weights = name.partition(":")
    published = zoo.get_model_weights(bare)[weights or "DEFAULT"].transforms()
    preprocess = torchvision_models.architecture(bare, weights or None).preprocess
    assert [preprocess.size] == published.crop_size
    assert [preprocess.resize] == published.resize_size
    assert preprocess.interpolation == published.interpolation.value
    assert list(preprocess.mean) == published.mean


def test_timm_s_data_configuration_is_the_preprocessing():
    preprocess = outline("timm/vit_tiny_patch16_224").preprocess
    assert (preprocess.size, preprocess.resize, preprocess.interpolation) == (224, 248, "bicubic")
    assert preprocess.mean == (0.5, 0.5, 0.5)


def test_random_weights_depend_on_their_seed_alone():
    torch.manual_seed(11)
    one = load_backbone("squeezenet1_1", weights="none", seed=4)
    drawn = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(torch.rand(1), drawn)
    assert one.recipe == load_backbone("squeezenet1_1:none", seed=4).recipe
    assert (
        one.recipe["weights_sha256"]
        != load_backbone("squeezenet1_1", weights="none", seed=5).recipe["weights_sha256"]
    )
    assert one.class_names is None
    assert request_differences(one.recipe, name="squeezenet1_1", weights="none", seed=4) == []


def test_recipe_is_refused_where_the_rebuilt_network_differs():
    recipe = load_backbone("squeezenet1_1", weights="none").recipe
    assert load_from_recipe(recipe).recipe == recipe
    with pytest.raises(BackboneError, match="weights_sha256 differ"):
        load_from_recipe(recipe | {"weights_sha256": "0" * 64})
    with pytest.raises(BackboneError, match="names no backbone"):
        load_from_recipe({"weights": "none"})


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", 5), ("weights", [1]), ("seed", "x"), ("seed", 2**70), ("depth", "x"), ("image_size", [1])],
)
def test_a_recipe_with_a_field_of_another_type_is_refused(field, value):
    recipe = {"name": "small_cnn", "weights": "none", "seed": 0, "in_channels": 3}
    with pytest.raises(BackboneError, match=f"The recipe has {field} "):
        load_from_recipe(recipe | {field: value})


@pytest.fixture
def user_net(tmp_path, monkeypatch):
    (tmp_path / "my_net_module.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    yield "my_net_module:build"
    sys.modules.pop("my_net_module", None)


def test_a_user_s_function_is_a_backbone_once_trusted(user_net):
    backbone = load_backbone(user_net, trust_code=True, seed=2)
    assert backbone.num_features == 4
    assert load_from_recipe(backbone.recipe, LoadOptions(trust_code=True)).recipe == backbone.recipe


def test_a_user_s_small_cnn_is_rebuilt_from_its_recipe(user_net):
    backbone = load_backbone("my_net_module:small", trust_code=True)
    assert load_from_recipe(backbone.recipe, LoadOptions(trust_code=True)).recipe == backbone.recipe


def test_a_user_s_function_may_say_how_its_images_are_preprocessed(user_net):
    backbone = load_backbone("my_net_module:named", trust_code=True)
    assert backbone.name == "my_net_module:named"
    assert (backbone.preprocess.size, backbone.preprocess.resize) == (32, 40)
    assert backbone.class_names == ("ant", "bee")


def test_code_that_only_a_file_names_is_not_imported(user_net):
    recipe = load_backbone(user_net, trust_code=True).recipe
    del sys.modules["my_net_module"]
    with pytest.raises(BackboneError, match="not imported without your permission"):
        load_from_recipe(recipe)
    assert "my_net_module" not in sys.modules


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my_net_module:absent", "AttributeError"),
        ("no_such_module_here:build", "ModuleNotFoundError"),
        ("my_net_module:wrong", "returned a str"),
    ],
)
def test_code_that_gives_no_network_is_named(user_net, name, reason):
    with pytest.raises(BackboneError, match=reason):
        load_backbone(name, trust_code=True)


def test_weights_serve_a_user_s_network_too(user_net, tmp_path):
    state = {
        name: value + 1
        for name, value in load_backbone(user_net, trust_code=True).module.state_dict().items()
    }
    torch.save(state, tmp_path / "w.pth")
    backbone = load_backbone(user_net, weights=str(tmp_path / "w.pth"), trust_code=True)
    assert torch.equal(backbone.module.state_dict()["4.bias"], state["4.bias"])


def test_depth_is_refused_where_it_means_nothing():
    with pytest.raises(BackboneError, match="small_cnn"):
        load_backbone("resnet18", weights="none", depth=3)


def test_recipes_are_json_values():
    recipe = load_backbone("squeezenet1_1", weights="none", in_channels=1).recipe
    assert all(isinstance(value, str | int | bool) for value in recipe.values())
    assert not any(isinstance(value, np.generic) for value in recipe.values())
