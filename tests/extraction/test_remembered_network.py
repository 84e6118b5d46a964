"""A network that is known from an earlier run is loaded only where an engine needs it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bottleneck import FeatureCache, extract
from bottleneck.errors import BackboneError
from bottleneck.extraction import prepare
from bottleneck.extraction.remembered_network import RememberedNetwork

LITE = {"backbone": "efficientnet_lite0", "image_size": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images, their features, and the user's folder after this first run."""
    place, random = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    (place / "images" / "a").mkdir(parents=True)
    for number in range(3):
        pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "images" / "a" / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOTTLENECK_CACHE", str(place / "user"))
        extract(place / "images", place / "first.h5", **LITE)
    return place


@pytest.fixture(autouse=True)
def user(made, tmp_path, monkeypatch):
    """A copy of the user's folder that a test may change; its records of networks."""
    shutil.copytree(made / "user", tmp_path / "user")
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "user"))
    return tmp_path / "user" / "networks"


def test_a_second_cache_needs_no_network_and_is_the_same(made, tmp_path, monkeypatch):
    def refuse(request):
        raise AssertionError("the network is loaded")

    monkeypatch.setattr(prepare, "_load_new", refuse)
    second = extract(made / "images", tmp_path / "second.h5", **LITE)
    with FeatureCache(made / "first.h5") as one, FeatureCache(second.cache) as two:
        assert one.spec == two.spec
        assert {name: node.to_json() for name, node in one.nodes.items()} == {
            name: node.to_json() for name, node in two.nodes.items()
        }
        np.testing.assert_array_equal(
            one.features("bottleneck").read(0, 3), two.features("bottleneck").read(0, 3)
        )
    with pytest.raises(AssertionError, match="is loaded"):  # a node that was not asked for before
        extract(made / "images", tmp_path / "third.h5", nodes=("blocks.2",), **LITE)


def test_the_libraries_of_networks_are_not_imported_for_a_known_one(made, tmp_path):
    code = f"""
import sys
from bottleneck import extract
extract({str(made / "images")!r}, {str(tmp_path / "second.h5")!r}, **{LITE!r})
print(*[name for name in ("torchvision", "timm", "onnx", "sklearn") if name in sys.modules])
"""
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "\n"
    )


def test_a_network_that_has_changed_is_told_and_forgotten(made, tmp_path, user):
    (file,) = user.iterdir()
    record = json.loads(file.read_bytes())
    record["recipe"]["weights_sha256"] = "0" * 64
    file.write_text(json.dumps(record))
    with pytest.raises(BackboneError, match="has other weights than when it was last used"):
        extract(made / "images", tmp_path / "second.h5", **LITE)
    assert extract(made / "images", tmp_path / "second.h5", **LITE).computed == 3


@pytest.mark.parametrize(
    "content", ["", "{}", '{"recipe": 1, "preprocess": 2, "nodes": 3}', "[" * 100_000, None]
)
def test_a_damaged_record_is_made_again(made, tmp_path, user, content):
    (file,) = user.iterdir()
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole) | {"nodes": []}) if content is None else content)
    extract(made / "images", tmp_path / "second.h5", **LITE)
    assert file.read_text() == whole


@pytest.mark.parametrize("flags", [{"backbone": "small_cnn"}, {"weights": "none"}])
def test_random_networks_are_not_kept(made, tmp_path, user, flags):
    extract(made / "images", tmp_path / "first.h5", engine="torch", **{**LITE, **flags})
    assert len(list(user.iterdir())) == 1  # that of the first run


def test_a_weights_file_is_known_by_its_content(tmp_path):
    file = tmp_path / "w.pth"
    request = {"name": "efficientnet_lite0", "weights": str(file), "trust_code": False}
    paths = []
    for content in (b"1", b"2", b"1"):
        file.write_bytes(content)
        paths.append(RememberedNetwork(request)._path)
    assert paths[0] == paths[2] != paths[1]
