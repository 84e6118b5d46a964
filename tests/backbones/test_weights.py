"""Weights files: what does not fit is reported, what could run is refused. Channels: folded, not trained."""

import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.backbones.registry import load_backbone, load_from_recipe, outline
from bottleneck.backbones.weights import adapt_channels, load_weights, read_weights
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError

COLOURFUL = Preprocess(16, 16, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def squeezenet():
    return load_backbone("squeezenet1_1", weights="none", seed=5).module.state_dict()


def _equal(module, state):
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model": state}],
)
def test_pth_is_loaded_bare_or_wrapped(squeezenet, tmp_path, wrap):
    torch.save(wrap(squeezenet), tmp_path / "w.pth")
    backbone = load_backbone("squeezenet1_1", weights=str(tmp_path / "w.pth"))
    assert _equal(backbone.module, squeezenet)
    assert backbone.recipe["weights"] == "file"
    assert len(backbone.class_names) == 1000


def test_both_formats_and_a_parallel_prefix_give_the_same_network(squeezenet, tmp_path):
    torch.save({f"module.{name}": value for name, value in squeezenet.items()}, tmp_path / "w.pt")
    save_file(squeezenet, tmp_path / "w.safetensors")
    one, two = (load_backbone("squeezenet1_1", weights=str(tmp_path / f)) for f in ("w.pt", "w.safetensors"))
    assert one.recipe["weights_sha256"] == two.recipe["weights_sha256"]
    assert one.recipe["file_sha256"] != two.recipe["file_sha256"]


def test_a_classifier_of_other_classes_is_taken_from_the_file(tmp_path):
    module = load_backbone("shufflenet_v2_x0_5", weights="none").module
    module.fc = nn.Linear(1024, 37)
    torch.save(module.state_dict(), tmp_path / "pets.pth")
    backbone = load_backbone("shufflenet_v2_x0_5", weights=str(tmp_path / "pets.pth"))
    assert backbone.node_shape("classifier") == ((37,), "NC")
    assert backbone.class_names is None
    assert (
        load_from_recipe(backbone.recipe, LoadOptions(str(tmp_path / "pets.pth"))).recipe == backbone.recipe
    )


def test_recipe_of_a_file_asks_for_the_file_and_checks_it(squeezenet, tmp_path):
    torch.save(squeezenet, tmp_path / "w.pth")
    recipe = load_backbone("squeezenet1_1", weights=str(tmp_path / "w.pth")).recipe
    with pytest.raises(BackboneError, match=r"came from a file .*--weights FILE"):
        load_from_recipe(recipe)
    torch.save({name: value + 1 for name, value in squeezenet.items()}, tmp_path / "other.pth")
    with pytest.raises(BackboneError, match="file_sha256, weights_sha256 differ"):
        load_from_recipe(recipe, LoadOptions(str(tmp_path / "other.pth")))


def test_weights_of_another_architecture_are_reported_by_key(squeezenet, tmp_path):
    torch.save(squeezenet, tmp_path / "squeezenet.pth")
    with pytest.raises(
        BackboneError, match=r"fit resnet18: .* missing \(conv1.weight.* unexpected \(features"
    ):
        load_backbone("resnet18", weights=str(tmp_path / "squeezenet.pth"))


def test_keys_that_are_missing_unexpected_or_reshaped_are_all_named():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = module.state_dict()
    del state["0.bias"], state["1.num_batches_tracked"]
    state["2.weight"] = torch.ones(1)
    with pytest.raises(BackboneError, match=r"1 missing \(0.bias\), 1 unexpected \(2.weight\)\."):
        load_weights(module, state, "f", "net")
    state["1.bias"] = torch.ones(4)
    with pytest.raises(BackboneError, match=r"1 of another shape \(1.bias \(4,\) for \(3,\)\)"):
        load_weights(module, state, "f", "net")


class _Touch:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("protocol", "reason"),
    [
        ("torch", r"holds code \(.*open\), .* it was not run"),
        (2, r"holds code \(.*open\), .* it was not run"),
        (4, "is no file of tensors"),
    ],
)
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, protocol, reason):
    content = {"conv1.weight": 1, "hook": _Touch(str(tmp_path / "ran"))}
    file = tmp_path / "evil.pth"
    if protocol == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(BackboneError, match=reason):
        load_backbone("resnet18", weights=str(file))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pth", b""),
        ("text.pth", b"<html>404</html>"),
        ("cut.pth", None),
        ("text.safetensors", b"hello, this is no header at all"),
        ("huge.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    ],
)
def test_damaged_files_are_named(squeezenet, tmp_path, name, content):
    file = tmp_path / name
    if content is None:
        torch.save(squeezenet, file)
        content = file.read_bytes()[:100_000]
    file.write_bytes(content)
    with pytest.raises(BackboneError, match=rf"{name} is (damaged|no file of tensors)"):
        read_weights(file)


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {"a": 1, "b": torch.ones(1)}, {}])
def test_files_without_tensors_by_name_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(BackboneError, match=r"odd\.pth holds"):
        read_weights(tmp_path / "odd.pth")


def test_a_file_that_unpacks_to_far_more_than_its_size_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(BackboneError, match="would unpack"):
        read_weights(tmp_path / "bomb.pth")


def test_absent_file_is_named(tmp_path):
    with pytest.raises(BackboneError, match=r"no weights file .*absent\.pth"):
        load_backbone("resnet18", weights=str(tmp_path / "absent.pth"))


class Plain(nn.Module):
    def __init__(self, padding=0, bias=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=padding, bias=bias)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


def _pair(**options):
    """The same network for RGB and for grey."""
    backbones = []
    for channels in (3, 1):
        torch.manual_seed(3)
        module = Plain(**options)
        preprocess = adapt_channels(module, COLOURFUL, channels)
        backbones.append(Backbone.from_module(module, preprocess))
    return backbones


@pytest.mark.parametrize("bias", [False, True])
def test_a_grey_image_gives_what_its_copies_in_three_channels_give(bias):
    colour, grey = _pair(bias=bias)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), dtype=np.uint8))
    expected = colour.extractor(["conv@none"])(pixels.expand(-1, -1, -1, 3))[0]
    torch.testing.assert_close(grey.extractor(["conv@none"])(pixels)[0], expected, rtol=1e-5, atol=1e-5)
    assert (grey.preprocess.mode, len(grey.preprocess.mean)) == ("L", 1)


def test_only_a_padded_border_is_a_little_apart():
    colour, grey = _pair(padding=1)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), dtype=np.uint8))
    expected = colour.extractor(["conv@none"])(pixels.expand(-1, -1, -1, 3))[0]
    folded = grey.extractor(["conv@none"])(pixels)[0]
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(folded[inside], expected[inside], rtol=1e-5, atol=1e-5)
    assert (folded - expected).abs().max() < 0.3 * expected.abs().max()


def test_equal_normalisation_of_the_colours_needs_no_bias():
    """The embedded network normalises all three alike: the sum is exact everywhere."""
    colour, grey = (load_backbone(in_channels=channels) for channels in (3, 1))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), dtype=np.uint8))
    preprocess = [b.preprocess.override(image_size=64) for b in (colour, grey)]
    expected = colour.extractor(["bottleneck"], preprocess[0])(pixels.expand(-1, -1, -1, 3))[0]
    torch.testing.assert_close(
        grey.extractor(["bottleneck"], preprocess[1])(pixels)[0], expected, rtol=1e-4, atol=1e-4
    )
    assert grey.module.conv_stem.bias is None
    assert load_from_recipe(grey.recipe).recipe == grey.recipe
    assert grey.recipe["weights_sha256"] != colour.recipe["weights_sha256"]


def test_a_fourth_channel_is_heard_and_the_size_of_responses_kept():
    torch.manual_seed(0)
    module, reference = Plain(), Plain()
    reference.load_state_dict(module.state_dict())
    preprocess = adapt_channels(module, COLOURFUL, 4)
    assert (preprocess.mode, len(preprocess.std)) == ("RGBA", 4)
    flat = torch.ones(1, 3, 16, 16)
    torch.testing.assert_close(module.conv(torch.ones(1, 4, 16, 16)), reference.conv(flat))
    assert module.conv.weight[:, 3].abs().min() > 0


@pytest.mark.parametrize(("channels", "reason"), [(2, "2 channels"), (5, "5 channels")])
def test_other_numbers_of_channels_are_refused(channels, reason):
    with pytest.raises(BackboneError, match=reason):
        outline("resnet18", in_channels=channels)


def test_a_network_that_does_not_begin_with_colours_is_refused():
    with pytest.raises(BackboneError, match="does not begin with a convolution of three channels"):
        adapt_channels(nn.Sequential(nn.Conv2d(5, 4, 3)), COLOURFUL, 1)
