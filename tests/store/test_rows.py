"""Rows come in any order from any number of files, as numpy would give them."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from bottleneck.errors import CacheError
from bottleneck.store import layout, rows
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import NodeSpec
from tests.helpers.world import MAP, ROOT, VIEWED, A, B, row_of, world_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache whose datasets have many small chunks."""
    path = tmp_path_factory.mktemp("rows") / "cache.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK_BYTES", 30)
        world_of(40).extract(path, [A, B, MAP, VIEWED])
    with FeatureCache(path) as opened:
        yield opened


def whole(cache, node, views=False):
    return np.stack([row_of(digest, node, views) for digest in cache.images.digests()]).astype(node.dtype)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_take_is_numpys(cache, data):
    node = data.draw(st.sampled_from([A, B, MAP]))
    indices = data.draw(st.lists(st.integers(0, len(cache.images) - 1), max_size=60))
    block = data.draw(st.sampled_from([1, 100, 10**6]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BLOCK_BYTES", block)
        taken = cache.features(node.name).take(np.array(indices, np.int64))
    assert taken.dtype == node.dtype
    np.testing.assert_array_equal(taken, whole(cache, node)[indices])


@settings(max_examples=40, deadline=None)
@given(st.integers(-60, 60), st.integers(-60, 60))
def test_read_is_a_slice(cache, start, stop):
    np.testing.assert_array_equal(cache.features(A.name).read(start, stop), whole(cache, A)[start:stop])


@pytest.mark.parametrize("block", [1, 64, 1000, 10**7])
def test_blocks_cover_all_rows_once(cache, block, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_BYTES", 30)
    blocks = list(cache.features(A.name).blocks(block))
    np.testing.assert_array_equal(np.concatenate(blocks), whole(cache, A))
    assert max(len(b) for b in blocks) * 10 <= max(block, 30)


def test_views_have_an_axis_of_their_own(cache):
    assert cache.views(VIEWED.name).shape == (42, 3, 4)
    np.testing.assert_array_equal(cache.views(VIEWED.name).read(0, 42), whole(cache, VIEWED, views=True))


@pytest.mark.parametrize("views", [False, True])
def test_sample_rows_are_features_then_covariates_in_float32(cache, views):
    chosen = np.array([7, 3, 3])
    got = cache.sample_rows(VIEWED.name, chosen, views=views)
    features = whole(cache, VIEWED, views)[cache.samples.image[chosen, 0]].astype(np.float32)
    covariates = cache.samples.covariates[chosen].astype(np.float32)
    if views:
        covariates = np.repeat(covariates[:, None], 3, axis=1)
    expected = np.concatenate([features, covariates], axis=-1)
    assert (got.shape, got.dtype, len(got)) == (expected.shape, np.float32, 3)
    np.testing.assert_array_equal(got.read(0, 3), expected)
    np.testing.assert_array_equal(got.take(np.array([2, 0])), expected[[2, 0]])


def test_sample_rows_put_the_images_of_a_sample_side_by_side(cache):
    table = cache.samples
    pairs = type(table)(table.key[:5], np.array([[0, 1], [1, 2], [2, 2], [3, 0], [9, 8]]), table.split[:5])
    got = rows.SampleRows(cache.features(A.name), pairs).read(0, 5)
    features = whole(cache, A).astype(np.float32)
    np.testing.assert_array_equal(
        got, np.concatenate([features[pairs.image[:, 0]], features[pairs.image[:, 1]]], 1)
    )


def test_a_map_has_no_sample_rows(cache):
    with pytest.raises(CacheError, match="is a map") as caught:
        cache.sample_rows(MAP.name)
    assert f"--node {MAP.node}" in caught.value.hint


def test_an_unknown_node_is_named_with_those_there_are(cache):
    with pytest.raises(CacheError, match=r"'layer9'; it has: .*blocks\.5") as caught:
        cache.features("layer9")
    assert "--node layer9" in caught.value.hint


def test_a_node_without_views_says_how_to_add_them(cache):
    with pytest.raises(CacheError, match="no views") as caught:
        cache.views(A.name)
    assert f"--node {A.name} --views 3`" in caught.value.hint  # as many as its other node has: one recipe


def test_rows_of_many_parts_are_read_with_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr("bottleneck.store.committer.PART_ROWS", 2)
    monkeypatch.setattr("bottleneck.store.cachefile.MAX_OPEN", 3)
    world = world_of(12)
    world.extract(tmp_path / "x.h5", [A], consolidate=False)
    before = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)
    with FeatureCache(tmp_path / "x.h5") as opened:
        np.testing.assert_array_equal(opened.features(A.name).read(0, 99), whole(opened, A))
        assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) <= before + 3


def test_a_row_larger_than_a_block_is_a_chunk_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_BYTES", 10)
    big = NodeSpec("big", "flatten", (1000,))
    world_of(3).extract(tmp_path / "x.h5", [big])
    with FeatureCache(tmp_path / "x.h5") as opened:
        np.testing.assert_array_equal(opened.features(big.name).read(0, 9), whole(opened, big))


def test_a_damaged_row_is_told_with_a_command_that_can_be_pasted(tmp_path):
    path = tmp_path / "my cache.h5"
    world_of(6).extract(path, [A])
    with h5py.File(path) as file:
        offset = file[f"features/{A.name}"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\1\7" * 20)
    with FeatureCache(path) as opened, pytest.raises(CacheError) as caught:
        opened.features(A.name).read(0, 3)
    assert (
        caught.value.message
        == f"{path} is damaged: rows 0 to 7 of node {A.name!r} do not match their checksums."
    )
    assert f"`bottleneck extract {ROOT} -o '{path}'`" in caught.value.hint


def test_threads_that_ask_first_find_each_row_in_its_own_file(monkeypatch):
    """Threads that decode ask for digests; the index may be made by their first question."""
    add = rows._Group.add
    monkeypatch.setattr(rows._Group, "add", lambda self, column: (time.sleep(0.005), add(self, column)))
    digests = np.random.default_rng(0).integers(0, 256, (6, 4, 32), dtype=np.uint8)
    catalog = rows.Catalog()
    for number, digest in enumerate(digests):
        catalog.add_rows(
            SimpleNamespace(map_name=None, digest=digest, nodes={"a": A}, engines={}, path=str(number))
        )
    asked = digests.reshape(-1, 32)
    with ThreadPoolExecutor(8) as pool:
        missing = list(pool.map(lambda _: catalog.missing(asked, A.datasets).any(), range(8)))
    assert not any(missing)
    [group] = catalog._groups.values()
    files, row = group.locate(asked)
    np.testing.assert_array_equal(files, np.repeat(np.arange(6), 4))
    np.testing.assert_array_equal(row, np.tile(np.arange(4), 6))
