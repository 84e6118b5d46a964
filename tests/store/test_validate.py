"""Files that anyone may have made are refused before any of their data is read."""

import json
from dataclasses import replace

import h5py
import pytest

from bottleneck.errors import CacheError
from bottleneck.store.cachefile import CacheFile
from bottleneck.store.layout import seal
from bottleneck.store.reader import FeatureCache
from bottleneck.store.validate import open_untrusted
from tests.helpers.hostile import HOSTILE, make
from tests.helpers.world import VIEWED, A, B, world_of


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A cache of six images and two copies."""
    path = tmp_path_factory.mktemp("sound") / "sound.h5"
    world_of(6).extract(path, [A, B])
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_before_its_data_is_read(name, sound, tmp_path, monkeypatch):
    path = make(name, sound, tmp_path / "hostile.h5")

    def read(self, *_):
        raise AssertionError(f"{self.name} was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", read)
    with pytest.raises(CacheError, match=HOSTILE[name][0]) as caught:
        CacheFile(path)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    with pytest.raises(CacheError):
        FeatureCache(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a feature cache"),
        (b"PK\x03\x04 a zip file", "not a feature cache"),
        (b"\x89HDF\r\n\x1a\n", "cannot open"),
        (b"\x89HDF\r\n\x1a\n" + bytes(4096), "cannot open"),
    ],
)
def test_what_is_no_hdf5_is_refused(data, reason, tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(data)
    with pytest.raises(CacheError, match=reason):
        open_untrusted(path)


def test_an_absent_file_and_a_folder_are_named_with_the_next_command(tmp_path):
    for path, message in (
        (tmp_path / "absent.h5", "no feature cache"),
        (tmp_path, "is a folder; expected a"),
    ):
        with pytest.raises(CacheError, match=message) as caught:
            open_untrusted(path)
        assert "bottleneck extract" in caught.value.hint


def test_unknown_but_harmless_content_is_ignored(tmp_path):
    world = world_of(3)
    path = tmp_path / "x.h5"
    world.extract(path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("notes/page", data=[1, 2, 3], chunks=(3,), fletcher32=True)
        file["notes/page"].attrs["sha256"] = "0"
        seal(file)
    with FeatureCache(path) as cache:
        assert list(cache.nodes) == [A.name]


@pytest.mark.parametrize("name", ["columns", "shard"])
def test_samples_with_a_deeply_nested_attribute_are_damaged(name, tmp_path):
    path = tmp_path / "c.h5"
    world_of(3).extract(path, [A])
    with h5py.File(path, "r+") as file:
        file["samples/key"].attrs[name] = "[" * 100_000
        seal(file)
    with FeatureCache(path) as cache, pytest.raises(CacheError, match="its samples cannot be read"):
        _ = cache.samples


@pytest.mark.parametrize("value", [5, [1], "x"])
def test_views_that_are_no_object_are_refused(value, tmp_path):
    path = tmp_path / "c.h5"
    world_of(3).extract(path, [VIEWED])
    with h5py.File(path, "r+") as file:
        file[VIEWED.dataset(views=True)].attrs["views"] = json.dumps(value)
        seal(file)
    with pytest.raises(CacheError, match="a recipe cannot be read"):
        FeatureCache(path)


@pytest.mark.parametrize("value", [[1], {"cosine": "high"}, {"cosine": 0.9, "images": "all"}])
def test_an_agreement_of_decodings_that_no_run_measured_is_refused(value, tmp_path):
    path = tmp_path / "c.h5"
    world_of(3).extract(path, [A])
    with h5py.File(path, "r+") as file:
        file[A.dataset()].attrs["decoding_agreement"] = json.dumps(value)
        seal(file)
    with pytest.raises(CacheError, match="a recipe cannot be read"):
        FeatureCache(path)


def test_a_command_in_a_hint_quotes_what_a_stranger_named(tmp_path):
    path = tmp_path / "c.h5"
    world_of(3).extract(path, [A])
    with FeatureCache(path) as cache, pytest.raises(CacheError) as caught:
        cache.views("bottleneck; echo")
    assert "--node 'bottleneck; echo'`" in caught.value.hint
    (tmp_path / "my cache--shard-1-of-2.h5").touch()
    with pytest.raises(CacheError) as caught:
        FeatureCache(tmp_path / "my cache.h5")
    assert caught.value.hint.endswith(f"-o '{tmp_path}/my cache.h5'")


@pytest.mark.parametrize("value", [{"pixels_sha256": 5}, {"pixels_sha256": "\ud800"}, {"engine": 3}, []])
def test_a_calibration_that_no_engine_wrote_is_refused(value, tmp_path):
    path = tmp_path / "c.h5"
    world_of(3).extract(path, [A])
    with FeatureCache(path) as cache:
        node = replace(cache.node(A.name), calibration=value)
        fingerprint = node.fingerprint(cache.spec)
    with h5py.File(path, "r+") as file:
        attributes = file[node.dataset()].attrs
        attributes["calibration"], attributes["fingerprint"] = json.dumps(value), fingerprint
        seal(file)
    with pytest.raises(CacheError, match="a recipe cannot be read"):
        FeatureCache(path)
