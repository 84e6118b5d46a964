"""The list of networks: made once for the installed versions, and read from the user's folder afterwards."""

import subprocess
import sys

import pytest

from bottleneck.backbones import listing
from bottleneck.backbones.listing import available, timm_count
from bottleneck.errors import BackboneError


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("user")
        patch.setenv("BOTTLENECK_CACHE", str(path))
        yield path / "listings"


def test_all_weights_of_torchvision_and_the_embedded_network_are_listed():
    listed = {(b.name, b.weights): b for b in available()}
    assert listed["resnet50", "IMAGENET1K_V1"].accuracy == pytest.approx(76.13)
    assert listed["resnet50", "IMAGENET1K_V2"].parameters == 25_557_032
    assert listed["efficientnet_lite0", "embedded"].parameters == 4_652_008
    assert not any(name.startswith("timm/") for name, _ in listed)
    assert len({name for name, _ in listed}) > 75


def test_a_narrow_pattern_opens_each_network():
    listed = {(b.name, b.weights): b for b in available("timm/resnet18")}
    assert listed["timm/resnet18", "a1_in1k"].features == 512
    assert listed["timm/resnet18", "a1_in1k"].parameters == 11_689_512


def test_a_wildcard_matches_whole_names():
    assert {b.name for b in available("squeezenet1_?")} == {"squeezenet1_0", "squeezenet1_1"}


def test_no_match_is_said():
    with pytest.raises(BackboneError, match="No backbone matches 'nonsense'"):
        available("nonsense")


def test_a_second_list_needs_no_library_of_networks(folder):
    first = available("squeezenet1_?")
    code = f"""
import sys
from bottleneck.backbones.listing import available, timm_count
assert repr(available("squeezenet1_?")) == {repr(first)!r}
assert timm_count() == {timm_count()} > 1000
assert available("timm/*")[0].features is None  # more than are opened
print(*[name for name in ("torch", "torchvision", "timm") if name in sys.modules])
"""
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "\n"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"rows": [{}], "timm": 1, "sizes": {}}',
        b'{"sizes": {"a": [1]}}',
        b'{"sizes": []}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_list_is_made_again(folder, content):
    available("squeezenet1_?")
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert {b.name for b in available("squeezenet1_?")} == {"squeezenet1_0", "squeezenet1_1"}
    assert file.stat().st_size > 1000


def test_another_version_of_a_library_is_another_list(folder, monkeypatch):
    available("squeezenet1_?")
    before = set(folder.iterdir())
    monkeypatch.setattr(listing, "package_version", lambda name: "0.0")
    available("squeezenet1_?")
    assert len(set(folder.iterdir()) - before) == 1
