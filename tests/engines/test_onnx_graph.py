"""Stored graphs: found again without torch, never used when damaged, never the cause of a failure."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from bottleneck.engines.base import build_engine
from bottleneck.engines.onnx_graph import GraphCache, StoredGraph
from bottleneck.files import user_cache
from tests.helpers.networks import TinyExtractor, eager, photos, refuse_to_make


def stored(fill=1, size=1000):
    reference = np.eye(2, dtype=np.float32), np.ones((2, 3), np.float32)
    return StoredGraph(bytes([fill]) * size, photos(2), reference, {"n": fill})


def test_what_is_stored_comes_back(tmp_path):
    cache = GraphCache(tmp_path / "graphs")
    assert cache.load("key", "fp32") is None
    cache.store(stored(), "key", "fp32")
    back = cache.load("key", "fp32")
    assert (back.graph, back.details) == (stored().graph, {"n": 1})
    np.testing.assert_array_equal(back.probe, stored().probe)
    for rows, original in zip(back.reference, stored().reference, strict=True):
        np.testing.assert_array_equal(rows, original)
    assert cache.load("key", "int8") is None
    assert [path.suffix for path in cache.folder.iterdir()] == [".graph"]


def test_no_damage_goes_unnoticed(tmp_path, caplog):
    cache = GraphCache(tmp_path)
    cache.store(stored(), "key")
    path = cache.path("key")
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for position in random.integers(0, len(whole), 200):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        assert cache.load("key") is None, position
    for length in random.integers(0, len(whole), 50):
        path.write_bytes(whole[:length])
        assert cache.load("key") is None, length
    assert "cannot be used and is made again" in caplog.text
    path.write_bytes(whole)
    assert cache.load("key") is not None


def test_the_least_recently_used_go_first(tmp_path):
    cache = GraphCache(tmp_path, limit=50_000)
    for name in "abc":
        cache.store(stored(size=10_000), name)
    for age, name in enumerate("abc"):
        os.utime(cache.path(name), (age, age))
    assert cache.load("a") is not None  # used again, so "b" is now the oldest
    cache.store(stored(size=10_000), "d")
    assert [name for name in "abcd" if cache.path(name).exists()] == ["a", "c", "d"]


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = GraphCache(tmp_path / "file" / "graphs")
    cache.store(stored(), "key")
    assert "not stored" in caplog.text
    assert cache.load("key") is None


def test_the_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "own"))
    assert user_cache() == tmp_path / "own"
    monkeypatch.delenv("BOTTLENECK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache() == tmp_path / "xdg" / "bottleneck"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "bottleneck"


LATER_RUN = """
import sys, hashlib
import numpy as np
from bottleneck.engines.base import build_engine
pixels = np.load(sys.argv[1])
engine = build_engine(lambda: 1 / 0, pixels[:2], key="tiny", device="cpu", threads=2)
assert "torch" not in sys.modules
print(hashlib.sha256(b"".join(rows.tobytes() for rows in engine(pixels))).hexdigest())
"""


def test_later_runs_need_neither_torch_nor_the_network_and_repeat_to_the_bit(shared_graphs, tmp_path):
    pixels = photos(10, seed=4)
    np.save(tmp_path / "pixels.npy", pixels)
    engine = build_engine(TinyExtractor, photos(8), key="tiny", device="cpu", threads=1)
    ours = hashlib.sha256(b"".join(rows.tobytes() for rows in engine(pixels))).hexdigest()
    command = [sys.executable, "-c", LATER_RUN, str(tmp_path / "pixels.npy")]
    theirs = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for _ in "12"
    ]
    assert theirs == [ours, ours]


def test_a_damaged_or_deceitful_graph_is_made_again(graphs, caplog):
    cache = GraphCache()
    build_engine(TinyExtractor, photos(8), key="k", device="cpu")
    sound = cache.load("k", "fp32")

    content = bytearray(cache.path("k", "fp32").read_bytes())
    content[len(content) // 2] ^= 1
    cache.path("k", "fp32").write_bytes(content)
    with pytest.raises(AssertionError, match="needs no extractor"):
        build_engine(refuse_to_make, photos(8), key="k", device="cpu")

    wrong = tuple(rows + 1 for rows in sound.reference)
    cache.store(StoredGraph(sound.graph, sound.probe, wrong), "k", "fp32")
    engine = build_engine(TinyExtractor, photos(8), key="k", device="cpu")
    assert "The stored graph is made again: relative difference" in caplog.text
    for rows, reference in zip(engine(photos(3)), eager(TinyExtractor(), photos(3)), strict=True):
        np.testing.assert_allclose(rows, reference, rtol=1e-4, atol=1e-6)
    build_engine(refuse_to_make, photos(8), key="k", device="cpu")  # and stored again

    cache.store(StoredGraph(b"no graph", sound.probe, sound.reference), "k", "fp32")
    with pytest.raises(AssertionError, match="needs no extractor"):
        build_engine(refuse_to_make, photos(8), key="k", device="cpu")
