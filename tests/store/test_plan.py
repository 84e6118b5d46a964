"""Planning needs no writer: it reads the state of a cache, takes no lock and writes nothing."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from bottleneck import files
from bottleneck.errors import CacheError, FingerprintError
from bottleneck.store.plan import plan_run
from bottleneck.store.spec import CacheSpec, NodeSpec, Origin
from bottleneck.store.state import CacheState
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import MAP, ROOT, SPEC, A, B

ORIGIN = Origin(SPEC, ROOT)


def plan_of(path, world, nodes, **keywords):
    with CacheState(path, ORIGIN, nodes) as state:
        return plan_run(state, world.keys, [world.stat(key) for key in world.keys], **keywords)


def entries(folder):
    return {name: os.stat(folder / name).st_mtime_ns for name in os.listdir(folder)}


def test_a_plan_of_a_new_cache_makes_no_folder(path, world):
    plan = plan_of(path.parent / "new" / "cache.h5", world, [A])
    assert (plan.to_read, plan.reused, plan.failed) == (12, 0, 0)
    assert os.listdir(path.parent) == []


def test_a_plan_leaves_cache_parts_and_lock_alone(path, world):
    world.extract(path, [A])
    world.put("c/new.jpg", b"new")
    with CacheWriter(path, SPEC, [A, MAP], ROOT) as writer:
        world.feed(writer, stop_after=3)
    before = entries(path.parent), entries(path.parent / "cache.h5.parts")
    first, second = (plan_of(path, world, [A, MAP]) for _ in range(2))
    assert (entries(path.parent), entries(path.parent / "cache.h5.parts")) == before
    assert [work.nodes for work in first.work] == [work.nodes for work in second.work]
    for one, two in zip(first.work, second.work, strict=True):
        np.testing.assert_array_equal(one.images, two.images)


def test_a_plan_can_be_made_while_a_writer_is_at_work(path, world):
    with CacheWriter(path, SPEC, [A], ROOT):
        assert plan_of(path, world, [A]).to_read == 12


def test_a_plan_is_what_the_writer_plans(path, world):
    world.extract(path, [A])
    world.put("c/new.jpg", b"new")
    plan = plan_of(path, world, [A, B])
    with CacheWriter(path, SPEC, [A, B], ROOT) as writer:
        theirs = writer.plan(world.keys, [world.stat(key) for key in world.keys])
    assert [(work.nodes, work.images.tolist()) for work in plan.work] == [
        (work.nodes, work.images.tolist()) for work in theirs.work
    ]
    assert (plan.reused, plan.failed) == (theirs.reused, theirs.failed) == (0, 1)
    assert (plan.feature_bytes, plan.disk_bytes) == (theirs.feature_bytes, theirs.disk_bytes)
    assert plan.feature_bytes == B.bytes_of(12) + A.bytes_of(1)


def test_keys_given_up_are_failures_not_work(path, world):
    plan = plan_of(path, world, [A], given_up=["a/0000.jpg", "b/bad.jpg"])
    assert (plan.to_read, plan.failed) == (10, 2)


def test_other_settings_are_refused_without_a_writer(path, world):
    world.extract(path, [A])
    other = Origin(CacheSpec({"name": "other"}, SPEC.preprocess), ROOT)
    with pytest.raises(FingerprintError):
        CacheState(path, other, [A])


def test_the_need_is_parts_and_new_files_and_nothing_without_work(path, world, monkeypatch):
    world.extract(path, [A])
    assert plan_of(path, world, [A]).disk_bytes == 0
    big = NodeSpec("layer3", "none", (1024, 14, 14), layout="NCHW")
    plan = plan_of(path, world, [big])
    assert plan.feature_bytes == 11 * 1024 * 14 * 14 * 2
    assert plan.disk_bytes > 2 * plan.feature_bytes
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=plan.disk_bytes - 1))
    with pytest.raises(CacheError, match="Extracting 11 images needs"):
        plan.require_space(path.parent)
