"""A node under all its names: what was asked is found, and the user is told under which name it is stored."""

import json
import shutil

import h5py
import numpy as np
import pytest

from bottleneck import FeatureCache, evaluate, extract, fit_heads
from bottleneck.backbones.registry import load_backbone
from bottleneck.errors import CacheError
from bottleneck.heads.artifact import load_head
from bottleneck.store.convert import export as export_cache
from bottleneck.store.layout import statistics_path, structure_checksum
from bottleneck.studies.rank.rank import rank
from bottleneck.studies.similar.similar import similar

STORED = "features.block3@avg2"
NAMES = ("block3@avg2", "2@avg2", STORED)  # by block, by index, by path


@pytest.fixture(scope="module")
def named(images, tmp_path_factory):
    """A cache that was extracted by one of the names."""
    path = tmp_path_factory.mktemp("named") / "c.h5"
    nodes = (NAMES[0], "bottleneck")
    result = extract(images, path, backbone="small_cnn", nodes=nodes, engine="torch", dtype="float32")
    return path, result


def aliases(notes):
    return [(note.details["given"], note.details["node"]) for note in notes if note.code == "node-alias"]


def without_aliases(path, copy):
    """A copy of a cache as earlier versions wrote it."""
    shutil.copy(path, copy)
    shutil.copy(statistics_path(path), statistics_path(copy))
    with h5py.File(copy, "r+") as file:
        for dataset in file["features"].values():
            dataset.attrs.pop("aliases", None)
        file.attrs["sha256"] = structure_checksum(file)
    return copy


def test_extract_tells_the_stored_name_and_finds_it_again(named, images, tmp_path):
    path, result = named
    assert set(result.nodes) == {STORED, "bottleneck"}
    assert aliases(result.notes) == [(NAMES[0], STORED)]
    again = extract(images, path, nodes=NAMES, engine="torch")
    assert again.computed == 0
    assert set(again.nodes) == {STORED, "bottleneck"}
    assert aliases(again.notes) == [(name, STORED) for name in NAMES[:2]]


def test_the_cache_knows_all_names_of_the_network(named):
    """Every name that the network resolves to the node, and no other one."""
    path, _ = named
    network = load_backbone("small_cnn", weights="none")
    with FeatureCache(path) as cache:
        rows = cache.features(STORED).read(0, 9)
        for name in network.nodes:
            same = network.resolve(name) == STORED.partition("@")[0]
            assert (cache.stored_name(f"{name}@avg2") == STORED) == same
        for name in NAMES:
            np.testing.assert_array_equal(cache.features(name).read(0, 9), rows)
            assert (
                cache.sample_rows(f"{name}+bottleneck").shape
                == cache.sample_rows(f"{STORED}+bottleneck").shape
            )
        assert cache.stored_name("bottleneck@native") == "bottleneck"
        for other in ("block3", "block3@max", "block2@avg2"):
            with pytest.raises(CacheError, match="has no features of node"):
                cache.node(other)
        with pytest.raises(CacheError, match="twice"):
            cache.sample_rows(f"{NAMES[0]}+{NAMES[1]}")


@pytest.mark.parametrize("name", [*NAMES[:2], f"{NAMES[0]}+bottleneck"])
@pytest.mark.parametrize("old", [False, True])
def test_heads_are_fitted_under_the_stored_name(named, tmp_path, name, old):
    """An earlier version's cache has no other names; its network is asked."""
    path = without_aliases(named[0], tmp_path / "old.h5") if old else named[0]
    stored = name.replace(name.partition("+")[0], STORED)
    result = fit_heads(path, nodes=[name, stored], C=0.01, output=tmp_path / "heads")
    assert aliases(result.notes) == [(name, stored)]
    (record,) = result.heads
    assert record["node"] == load_head(record["path"]).node == stored
    assert evaluate(record["path"], path)["accuracy"] == record["accuracy"]["test"]


def test_a_name_that_is_no_node_is_refused_as_before(named, tmp_path):
    for path in (named[0], without_aliases(named[0], tmp_path / "old.h5")):
        with pytest.raises(CacheError, match="no features of node 'block9'"):
            fit_heads(path, nodes=["block9"], output=tmp_path)
        with pytest.raises(CacheError, match="no features of node 'block2'"):
            fit_heads(path, nodes=["block2"], output=tmp_path)


def test_similar_rank_and_export_take_all_names(named, tmp_path):
    path, _ = named
    found = similar(path, all_images=True, node=NAMES[0])
    assert (found.node, aliases(found.notes)) == (STORED, [(NAMES[0], STORED)])
    ranking = rank([path], node=NAMES[0], check=True, output=tmp_path / "heads")
    assert aliases(ranking.notes) == [(NAMES[0], STORED)]
    arrays = export_cache(path, tmp_path / "c.npz", nodes=[NAMES[1]])["arrays"]
    assert f"features/{STORED}" in arrays
    json.dumps(found.to_json())
