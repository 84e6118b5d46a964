"""Weights files: what fits is loaded, what does not is reported, what could run is refused."""

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.backbones.registry import load_backbone, load_from_recipe
from bottleneck.backbones.weights import load_weights, read_weights
from bottleneck.errors import BackboneError


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
