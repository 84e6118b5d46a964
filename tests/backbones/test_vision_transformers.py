"""Vision transformers: the size of their images, and their tokens, are those of timm and torchvision."""

import re

import numpy as np
import pytest
import timm
import torch
import torchvision.models as zoo
from PIL import Image
from timm.layers import resample_abs_pos_embed
from torchvision.models.vision_transformer import interpolate_embeddings

from bottleneck import extract
from bottleneck.backbones.registry import load_backbone, load_from_recipe
from bottleneck.errors import BackboneError
from bottleneck.store.reader import FeatureCache

TINY = "timm/vit_tiny_patch16_224"
SIZE = 96  # 6 × 6 patches
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8))


def normalised(backbone):
    mean, std = (torch.tensor(values) for values in (backbone.preprocess.mean, backbone.preprocess.std))
    return ((PIXELS / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of a network for 224 pixels, as they are published."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), path)
    return path


def test_another_image_size_resamples_the_positions_as_timm_does(file):
    backbone = load_backbone(TINY, weights=str(file), image_size=SIZE)
    oracle = timm.create_model("vit_tiny_patch16_224", img_size=SIZE).eval()
    state = torch.load(file, weights_only=True)
    oracle.load_state_dict(state | {"pos_embed": resample_abs_pos_embed(state["pos_embed"], [6, 6])})
    with torch.inference_mode():
        tokens = oracle.forward_features(normalised(backbone))
        vector = oracle.forward_head(tokens, pre_logits=True)
        nodes = ("bottleneck", "norm@token", "norm@avg", "norm@none", "blocks.3@token")
        rows = backbone.extractor(nodes)(PIXELS)
    assert (backbone.preprocess.size, backbone.recipe["image_size"]) == (SIZE, SIZE)
    assert tokens.shape == (2, 37, 192)
    torch.testing.assert_close(rows[0], vector, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[1], tokens[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[2], tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[3], tokens, rtol=1e-4, atol=1e-5)
    assert rows[4].shape == (2, 192)


def test_torchvisions_positions_are_resampled_as_torchvision_does(tmp_path):
    torch.manual_seed(0)
    published = zoo.vit_b_32()
    torch.nn.init.normal_(published.heads.head.weight)  # zero at first
    torch.save(published.state_dict(), tmp_path / "b32.pth")
    backbone = load_backbone("vit_b_32", weights=str(tmp_path / "b32.pth"), image_size=SIZE)
    oracle = zoo.vit_b_32(image_size=SIZE).eval()
    oracle.load_state_dict(interpolate_embeddings(SIZE, 32, published.state_dict()))
    with torch.inference_mode():
        torch.testing.assert_close(
            backbone.module(normalised(backbone)), oracle(normalised(backbone)), rtol=1e-4, atol=1e-5
        )
    assert backbone.node_shape("encoder@none")[0] == (10, 768)


def test_the_recipe_rebuilds_the_network_of_that_size():
    backbone = load_backbone(TINY, weights="none", seed=3, image_size=SIZE)
    again = load_from_recipe(backbone.recipe)
    assert again.recipe == backbone.recipe
    assert again.node_shape("bottleneck")[0] == (192,)
    assert "image_size" not in load_backbone(TINY, weights="none", image_size=224).recipe


def test_registers_are_no_patches():
    """A class token and four registers stand before 6 × 6 patches."""
    name = "timm/vit_small_patch14_reg4_dinov2"
    backbone = load_backbone(name, weights="none", image_size=84)
    with torch.inference_mode():
        pixels = PIXELS[:, :84, :84]
        whole, mean, token = backbone.extractor(("norm@none", "norm@avg", "norm@token"))(pixels)
    assert whole.shape == (2, 41, 384)
    torch.testing.assert_close(mean, whole[:, 5:].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(token, whole[:, 0])


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        (TINY, 100, r"patches of 16 × 16 pixels; 100 is no multiple of 16. Use --image-size 112 or 96"),
        (TINY, 8, r"patches of 16 × 16 pixels; 8 is no multiple of 16. Use --image-size 16\."),
        ("vit_b_32", 100, r"patches of 32 × 32 pixels; 100 is no multiple of 32. Use --image-size 128 or 96"),
        ("timm/vit_small_patch14_reg4_dinov2", 28, r"needs more than 28 pixels a side"),
    ],
)
def test_sizes_that_give_no_whole_patches_are_refused(name, size, text):
    with pytest.raises(BackboneError) as error:
        load_backbone(name, weights="none", image_size=size)
    assert re.search(text, f"{error.value.message} {error.value.hint}")


def test_a_map_has_no_class_token():
    with pytest.raises(BackboneError, match="has no class token before its positions"):
        load_backbone("resnet18", weights="none").extractor(("layer4@token",))


def test_extract_takes_the_size_and_a_second_run_needs_no_flag(tmp_path, file):
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (120, 120, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    cache = tmp_path / "vit.h5"
    options = {"weights": str(file), "nodes": ("bottleneck", "norm"), "engine": "torch"}
    first = extract(tmp_path / "images", cache, backbone=TINY, image_size=SIZE, **options)
    with FeatureCache(cache) as opened:
        assert opened.spec.backbone["image_size"] == SIZE
        before = opened.features("norm").read(0, 3)
    assert (first.computed, first.failed) == (3, 0)
    second = extract(tmp_path / "images", cache, **options | {"nodes": ("blocks.5@token",)})
    assert second.computed == 3
    with FeatureCache(cache) as opened:
        np.testing.assert_array_equal(opened.features("norm").read(0, 3), before)
