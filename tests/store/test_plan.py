"""A plan needs no writer: it reads the state of a cache, takes no lock and writes nothing; trusted stats."""

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

from bottleneck import files
from bottleneck.errors import CacheError, FingerprintError
from bottleneck.files import EARLIEST, SECOND, FileStat, stat_of
from bottleneck.store.plan import plan_run, trusted
from bottleneck.store.spec import CacheSpec, NodeSpec, Origin
from bottleneck.store.state import CacheState
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import MAP, ROOT, SPEC, A, B

ORIGIN = Origin(SPEC, ROOT)
TIME = 1_600_000_000 * SECOND
FINE = TIME + 123_456_789


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


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        ([FileStat()], [False]),  # unknown
        ([FileStat(5, TIME)], [True]),  # a remote file with a time of its own
        ([FileStat(5, 0)], [False]),
        ([FileStat(5, -1)], [False]),
        ([FileStat(5, 315_532_800 * SECOND)], [False]),  # 1980-01-01
        ([FileStat(5, EARLIEST - 1)], [False]),
        ([FileStat(5, TIME), FileStat(5, TIME)], [False, False]),  # a swap would not show
        ([FileStat(5, TIME), FileStat(6, TIME)], [True, True]),
        ([FileStat(size, TIME) for size in range(3)], [False] * 3),  # one constant
        ([FileStat(5, 0, -1, 77)] * 3, [True] * 3),  # a version tag vouches
        ([FileStat(5, 0, FINE, 77)] * 3, [True] * 3),  # so does the kernel's clock
        ([FileStat(5, TIME, TIME, 1), FileStat(5, TIME, TIME, 2)], [False, False]),  # squashfs, ISO, FAT
        ([FileStat(5, TIME, TIME, 1)], [True]),
        ([FileStat(5, TIME, 0, 1)], [True]),
        ([FileStat(5, 0, 0, 1)], [False]),
    ],
)
def test_a_stat_is_trusted_where_a_change_must_show(stats, expected):
    assert trusted(np.array(stats)).tolist() == expected


def test_a_time_that_many_files_share_is_a_constant_but_a_second_that_few_share_is_not():
    honest = [FileStat(number, TIME + number // 2 * SECOND) for number in range(400)]
    assert trusted(np.array(honest)).all()
    constant = [FileStat(1000 + number, TIME - SECOND) for number in range(10)]
    assert trusted(np.array(honest + constant)).tolist() == [True] * 400 + [False] * 10


def test_any_way_to_change_a_local_file_changes_its_stat(tmp_path, monkeypatch):
    monkeypatch.setattr("bottleneck.files.CLOCK_TICK", 0)
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"1234")
    other.write_bytes(b"5678")
    for changed in (
        lambda: path.write_bytes(b"4321"),
        lambda: other.replace(path),
        lambda: os.utime(path, ns=(5, 5)),
    ):
        before = stat_of(path)
        time.sleep(0.05)  # the file system's clock ticks
        changed()
        os.utime(path, ns=(7, before.mtime_ns))
        assert stat_of(path) != before
        assert stat_of(path)[:2] == before[:2]


def test_a_file_of_this_very_moment_is_not_vouched_for(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    monkeypatch.setattr("bottleneck.files.CLOCK_TICK", 10**12)
    assert stat_of(path)[2:] == (-1, -1)
