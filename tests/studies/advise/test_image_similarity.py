"""Similarity: the divergence of the statistics, the scale of anchors, networks without BatchNorm."""

import numpy as np
import pytest
import torch
from torch import nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.data.preprocess import Preprocess
from bottleneck.studies.advise import image_similarity as module_under_test
from bottleneck.studies.advise.image_similarity import (
    BETWEEN,
    DIFFERENT,
    SIMILAR,
    Reading,
    anchors,
    probability_similar,
    read,
    similarity,
)

PREPROCESS = Preprocess(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3)


def network(*, norm=True, seed=0):
    torch.manual_seed(seed)
    norms = [nn.BatchNorm2d(6) if norm else nn.Identity() for _ in range(4)]
    convolutions = [nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(4)]
    body = [layer for pair in zip(convolutions, norms, strict=True) for layer in (*pair, nn.ReLU())]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()


def images(n=12, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (n, 16, 16, 3), dtype=np.uint8)


def fit_statistics(module, pixels):
    """Give the BatchNorm layers the statistics that `pixels` have in them."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
    module.train()
    with torch.no_grad():
        module((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    module.eval()


def test_images_that_set_the_statistics_are_at_no_distance():
    module = network()
    fit_statistics(module, images())
    assert max(read(module, PREPROCESS, images()).quarters) < 1e-4
    dark = read(module, PREPROCESS, images(high=60))
    assert min(dark.quarters) > 0.01
    assert dark.distance > 0.1


def test_the_divergence_is_jeffreys_of_the_channels_gaussians():
    module = network()[:2]  # one convolution, one BatchNorm
    fit_statistics(module, images())
    module = nn.Sequential(*module, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    dark = images(high=90, seed=1)
    with torch.no_grad():
        channels = module[0]((torch.from_numpy(dark).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    channels = channels.movedim(1, 0).flatten(1).double().numpy()
    norm = module[1]
    q = torch.distributions.Normal(norm.running_mean.double(), (norm.running_var.double() + norm.eps).sqrt())
    p = torch.distributions.Normal(
        torch.from_numpy(channels.mean(1)), torch.from_numpy(np.sqrt(channels.var(1) + norm.eps))
    )
    both = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    assert read(module, PREPROCESS, dark).quarters == pytest.approx((np.median(both.numpy()),), rel=1e-4)


def test_the_reading_does_not_depend_on_the_batch(monkeypatch):
    module = network()
    whole = read(module, PREPROCESS, images())
    monkeypatch.setattr(module_under_test, "BATCH", 5)
    assert read(module, PREPROCESS, images()).quarters == pytest.approx(whole.quarters, rel=1e-4)


def test_behaviour_counts_the_classes_in_use():
    module = network()
    module[-1].weight.data.zero_()
    module[-1].bias.data = torch.tensor([50.0, 50.0, 0.0, 0.0, 0.0])
    reading = read(module, PREPROCESS, images())
    assert reading.classes == pytest.approx(2.0, abs=1e-6)
    assert reading.entropy == pytest.approx(np.log(2) / np.log(5), abs=1e-6)


def scale(near=0.08, far=0.3):
    """Readings of anchors at known distances."""
    values = dict.fromkeys(SIMILAR, near) | dict.fromkeys(DIFFERENT, far) | dict.fromkeys(BETWEEN, 0.15)
    return {name: Reading((value,), 0.5, 10.0, 9) for name, value in values.items()}


def test_the_scale_is_laid_out_by_the_anchors():
    def at(distance):
        return probability_similar(Reading((distance,), 0.5, 10.0, 9), scale())

    assert at(0.08) == pytest.approx(0.9)
    assert at(0.3) == pytest.approx(0.1)
    assert at(np.sqrt(0.08 * 0.3)) == pytest.approx(0.5)
    assert at(0.01) > 0.99
    assert at(3.0) < 0.01


def test_a_network_that_cannot_tell_the_anchors_apart_says_so():
    reading = Reading((0.01,), 0.5, 10.0, 9)
    assert probability_similar(reading, scale(near=0.3, far=0.2)) == 0.5


def test_a_network_without_batchnorm_is_judged_by_its_classifier():
    backbone = Backbone.from_module(network(norm=False), PREPROCESS)
    found = similarity(backbone, images())
    assert found.measure == "classifier behaviour"
    assert found.reading.quarters is None
    assert found.reading.distance == found.reading.entropy
    assert "classifier behaviour" in found.text


def test_the_verdict_names_its_probability_and_its_nearest_anchor():
    backbone = Backbone.from_module(network(), PREPROCESS)
    values = similarity(backbone, images()).to_json()
    assert set(values["anchors"]) == {*SIMILAR, *BETWEEN, *DIFFERENT}
    assert values["nearest_anchor"] in values["anchors"]
    assert f"{max(values['probability_similar'], 1 - values['probability_similar']):.2f}" in values["text"]
    assert values["verdict"] == ("similar" if values["probability_similar"] >= 0.5 else "different")


def test_anchors_are_always_the_same_pictures():
    for (name, first), (_, second) in zip(anchors(), anchors(), strict=True):
        assert [image.tobytes() for image in first] == [image.tobytes() for image in second], name
        assert all(image.mode == "RGB" for image in first)
