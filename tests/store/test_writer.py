"""The writer computes exactly what is missing and keeps everything else."""

import os

import numpy as np
import pytest

from bottleneck.errors import CacheError
from bottleneck.files import FileStat
from bottleneck.samples import SampleTable, Target
from bottleneck.store.reader import FeatureCache, describe
from bottleneck.store.spec import NodeSpec
from bottleneck.store.tables import objects
from bottleneck.store.verify import Check
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import CTIME, MAP, ROOT, SPEC, VIEWED, A, B, World, content, digest_of


def stamp(path):
    """Changes when, and only when, a file is replaced."""
    return os.stat(path).st_ino, os.stat(path).st_mtime_ns


def test_a_first_run_stores_every_image_or_names_its_failure(path, world):
    summary = world.extract(path, [A, B, MAP, VIEWED])
    assert (summary.images, summary.computed, summary.reused) == (11, 9, 2)
    assert (summary.failed, summary.removed) == (1, 0)
    assert content(path) == world.expected([A, B, MAP, VIEWED])
    assert sorted(os.listdir(path.parent)) == ["cache--blocks.3.h5", "cache.h5", "cache.h5.lock"]


def test_a_second_run_computes_nothing_and_leaves_the_files_alone(path, world):
    world.extract(path, [A, MAP])
    before = [stamp(file) for file in sorted(path.parent.glob("*.h5"))]
    world.computed.clear()
    summary = world.extract(path, [A, MAP])
    assert (summary.images, summary.computed, summary.reused, summary.failed) == (11, 0, 11, 1)
    assert world.computed == []
    assert [stamp(file) for file in sorted(path.parent.glob("*.h5"))] == before


def test_the_engines_of_all_rows_are_told_in_parts_and_files_and_unknown_ones_as_unknown(path, world):
    told = []
    for number, engine in enumerate(("", "onnx", "torch", "")):
        world.engine = engine
        world.put(f"new/{number}.jpg", f"new {number}".encode(), number)
        nodes = [A, B, MAP] if engine else [A]
        with CacheWriter(path, SPEC, nodes, ROOT) as writer:
            world.feed(writer)
            if number == 1:
                continue  # its rows stay in parts
            writer.finish(world.samples(0))
        with FeatureCache(path) as cache:
            told.append(cache.engines)
            assert describe(path)["nodes"][A.name]["engines"] == cache.engines[A.name]
    assert told[0] == {A.name: ("",)}
    assert told[1] == {A.name: ("", "onnx", "torch"), B.name: ("onnx", "torch"), MAP.name: ("onnx", "torch")}
    assert told[2] == told[1] | {B.name: ("", "onnx", "torch")}
    with CacheWriter(path.with_name("p.h5"), SPEC, [A], ROOT) as writer:
        world.engine = "openvino"
        world.feed(writer)
    with FeatureCache(path.with_name("p.h5")) as unfinished:
        assert not unfinished.finished
        assert unfinished.engines == {A.name: ("openvino",)}


@pytest.mark.parametrize("change", ["rename", "copy", "touch", "remove"])
def test_what_moves_no_bytes_computes_nothing(path, world, change):
    world.extract(path, [A, MAP])
    world.computed.clear()
    content_, mtime = world.files["a/0003.jpg"]
    if change != "copy":
        del world.files["a/0003.jpg"]
    if change == "touch":
        world.put("a/0003.jpg", content_, mtime + 1)
    elif change != "remove":
        world.put("b/elsewhere.jpg", content_, mtime)
    map_before = stamp(path.with_name("cache--blocks.3.h5"))
    summary = world.extract(path, [A, MAP])
    assert world.computed == []
    assert summary.computed == 0
    assert summary.removed == (change in ("rename", "remove"))
    assert content(path) == world.expected([A, MAP])
    assert stamp(path.with_name("cache--blocks.3.h5")) == map_before


def test_added_and_changed_images_are_the_only_ones_computed(path, world):
    world.extract(path)
    world.computed.clear()
    world.put("c/new.jpg", b"new")
    world.put("a/0003.jpg", b"changed", mtime=99)
    assert world.extract(path).computed == 2
    assert sorted(world.computed) == sorted([(A.name, digest_of(b"new")), (A.name, digest_of(b"changed"))])
    assert content(path) == world.expected([A])


def test_a_new_node_is_computed_for_all_and_the_old_one_only_for_new_images(path, world):
    world.extract(path, [A])
    world.computed.clear()
    world.put("c/new.jpg", b"new")
    world.extract(path, [B])
    assert (A.name, digest_of(b"new")) in world.computed
    assert sum(name == A.name for name, _ in world.computed) == 1
    assert sum(name == B.name for name, _ in world.computed) == 10
    assert content(path) == world.expected([A, B])


def test_adding_a_node_or_an_image_leaves_another_nodes_map_alone(path, world):
    world.extract(path, [A, MAP])
    before = stamp(path.with_name("cache--blocks.3.h5"))
    world.put("c/new.jpg", b"new")
    world.extract(path, [B])
    assert stamp(path.with_name("cache--blocks.3.h5")) == before
    with (
        FeatureCache(path) as cache,
        pytest.raises(CacheError, match=r"lacks the rows of 1 of 12.*c/new.jpg") as e,
    ):
        cache.features(MAP.name)
    assert "bottleneck extract" in e.value.hint
    assert f"--node {MAP.name}" in e.value.hint
    world.extract(path, [MAP])
    assert content(path) == world.expected([A, B, MAP])


def test_labels_alone_are_updated_with_nothing_computed_and_equal_bytes(path, world):
    world.extract(path)
    with FeatureCache(path) as cache:
        features = cache.features(A.name).read(0, 99).tobytes()
    summary = world.extract(path, label=1)
    assert (summary.computed, summary.reused) == (0, 11)
    assert content(path) == world.expected([A], label=1)
    assert content(path)[A.name] == features


def test_views_are_adopted_by_a_run_that_does_not_name_them(path, world):
    world.extract(path, [VIEWED])
    world.put("c/new.jpg", b"new")
    plain = NodeSpec(VIEWED.node, VIEWED.pool, VIEWED.shape)
    world.extract(path, [plain])
    assert content(path) == world.expected([VIEWED])


def test_views_can_be_added_later(path, world):
    world.extract(path, [NodeSpec(VIEWED.node, VIEWED.pool, VIEWED.shape)])
    world.extract(path, [VIEWED])
    assert content(path) == world.expected([VIEWED])


def test_a_cache_of_no_images_is_a_cache(path):
    assert World().extract(path, [A, MAP]).images == 0
    assert content(path) == World().expected([A, MAP])


def test_names_that_are_no_unicode_survive(path):
    key = os.fsdecode(b"caf\xe9/\xff.jpg")
    target = Target("label", "class", np.array([0]), (os.fsdecode(b"caf\xe9"),))
    samples = SampleTable(objects([key]), np.array([[0]]), objects(["train"]), {"label": target})
    with CacheWriter(path, SPEC, [A], os.fsdecode(b"/data/\xff")) as writer:
        writer.plan([key], [FileStat(1, 1, CTIME, 1)])
        writer.add([(key, b"1" * 32, FileStat(1, 1, CTIME, 1))], {A.name: np.zeros((1, 5), np.float32)})
        writer.finish(samples)
    with FeatureCache(path) as cache:
        assert list(cache.images.key) == list(cache.samples.key) == [key]
        assert cache.samples.targets["label"].class_names == target.class_names
    with CacheWriter(path, SPEC, [A], os.fsdecode(b"/data/\xff")) as writer:
        assert writer.plan([key], [FileStat(1, 1, CTIME, 1)]).reused == 1


def test_a_new_map_may_hold_two_contents_of_one_key(path, world):
    """It keeps the row of the old main file's content for who has that open."""
    world.extract(path, [A, MAP])
    world.put("a/0003.jpg", b"changed", 99)
    world.extract(path, [A, MAP])
    with FeatureCache(path.with_name("cache--blocks.3.h5")) as companion:
        assert list(companion.images.key).count("a/0003.jpg") == 2
    check = Check()
    check.cache(path)
    assert check.problems == []
    assert content(path) == world.expected([A, MAP])
