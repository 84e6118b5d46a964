"""Model files: the network comes back whole or not at all."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from bottleneck.backbones.model_file import load_network, read_network, save_model
from bottleneck.errors import ArtifactError
from bottleneck.heads.artifact import load_head
from tests.helpers.heads import head


def network(width=4, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, bias=bias), nn.BatchNorm2d(width))


@pytest.fixture
def path(tmp_path):
    return save_model(tmp_path / "m.safetensors", head(), network().state_dict(), "# card\n")


def test_head_network_and_card_come_back(path):
    other = network()
    nn.init.zeros_(other[0].weight)
    assert load_network(other, path)
    expected = network().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())
    assert load_head(path).class_names == ("a|b", "`c`")
    assert path.with_suffix(".md").read_text() == "# card\n"


def test_a_head_file_holds_no_network(tmp_path):
    path = head().save(tmp_path / "h.safetensors")
    assert not read_network(path)
    assert not load_network(network(), path)


ASK = """
import sys
from bottleneck.backbones.model_file import holds_network
print(holds_network(sys.argv[1]), "torch" in sys.modules)
"""


def test_whether_a_file_holds_a_network_is_answered_without_torch(path, tmp_path):
    statistics = {"1.running_mean": torch.zeros(4)}
    files = [path, save_model(tmp_path / "kept.safetensors", head(), statistics, "# card\n")]
    answers = [
        subprocess.run([sys.executable, "-c", ASK, file], capture_output=True, text=True, check=True).stdout
        for file in files
    ]
    assert [answer.split() for answer in answers] == [["True", "False"], ["False", "False"]]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (network(width=5), r"0\.weight is float32 \(4, 3, 3, 3\), expected float32 \(5, 3, 3, 3\)"),
        (network(bias=False), "0.bias is unknown"),
        (nn.Sequential(network(), nn.Linear(2, 2)), "is missing"),
        (network().double(), "expected float64"),
    ],
)
def test_another_network_is_refused_and_left_as_it_was(path, other, said):
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ArtifactError, match=said):
        load_network(other, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" * 99]
)
def test_a_damaged_file_is_said_to_be_one(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match="expected a model file"):
        read_network(path)
