"""Random networks whose BatchNorm statistics come from the user's images."""

import numpy as np
import pytest
import torch

from bottleneck.backbones.batchnorm import calibrate_batchnorm, set_statistics, statistics
from bottleneck.backbones.registry import load_backbone, load_from_recipe
from bottleneck.errors import BackboneError


def _deep(seed=0):
    backbone = load_backbone("timm/resnet10t", weights="none", seed=seed)
    backbone.preprocess = backbone.preprocess.override(image_size=64)
    return backbone


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)


def test_normalised_activations_have_the_batch_s_mean_and_variance(tiny, pixels):
    calibrate_batchnorm(tiny, pixels)
    for node in ("stem.norm", "stage2.norm1", "stage3.norm1"):
        values = tiny.extractor([f"{node}@none"])(torch.from_numpy(pixels))[0]
        torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
        torch.testing.assert_close(values.var((0, 2, 3), correction=0), torch.ones(4), rtol=0, atol=1e-2)


def test_activations_of_a_deep_random_network_stay_in_range():
    untouched, calibrated = _deep(), _deep()
    calibrate_batchnorm(calibrated, PIXELS)
    before, after = (
        b.extractor(["bottleneck"])(torch.from_numpy(PIXELS))[0] for b in (untouched, calibrated)
    )
    assert after.abs().max() < 20
    assert not torch.allclose(before, after)


def test_the_recipe_covers_the_statistics_and_rebuilds_with_them():
    backbone = _deep()
    seeded = dict(backbone.recipe)
    calibrate_batchnorm(backbone, PIXELS)
    assert backbone.recipe["weights_sha256"] != seeded["weights_sha256"]
    rebuilt = load_from_recipe(backbone.recipe, statistics=statistics(backbone))
    for (name, value), other in zip(
        backbone.module.state_dict().items(), rebuilt.module.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    with pytest.raises(BackboneError, match="statistics of the random timm/resnet10t are missing"):
        load_from_recipe(backbone.recipe)
    calibrate_batchnorm(rebuilt, PIXELS[::-1].copy() // 2)
    with pytest.raises(BackboneError, match="weights_sha256 differ"):
        load_from_recipe(backbone.recipe, statistics=statistics(rebuilt))


def test_only_statistics_are_touched(tiny, pixels):
    before = {name: value.clone() for name, value in tiny.module.named_parameters()}
    tiny.module.eval()
    calibrate_batchnorm(tiny, pixels)
    assert all(torch.equal(value, before[name]) for name, value in tiny.module.named_parameters())
    assert not any(child.training for child in tiny.module.modules())
    assert not any(child._forward_pre_hooks for child in tiny.module.modules())


def test_statistics_of_another_network_are_refused(tiny):
    with pytest.raises(BackboneError, match="not of this network"):
        set_statistics(tiny, {"stem.norm.running_mean": np.zeros(3, np.float32)})


def test_one_image_is_too_few(tiny, pixels):
    with pytest.raises(BackboneError, match="at least two images, got 1"):
        calibrate_batchnorm(tiny, pixels[:1])


def test_a_network_without_batchnorm_stays_as_it_is():
    backbone = load_backbone("squeezenet1_1", weights="none")
    recipe = dict(backbone.recipe)
    calibrate_batchnorm(backbone, PIXELS)
    assert backbone.recipe == recipe
