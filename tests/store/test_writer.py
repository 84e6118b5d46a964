"""The writer computes exactly what is missing and keeps everything else."""

import os
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from bottleneck.errors import CacheError, FingerprintError
from bottleneck.samples import SampleTable, Target
from bottleneck.store import files
from bottleneck.store.check import Check
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import CacheSpec, NodeSpec
from bottleneck.store.tables import objects
from bottleneck.store.writer import CacheWriter
from tests.store.world import MAP, ROOT, SPEC, VIEWED, A, B, World, content, digest_of, row_of, world_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.h5"


@pytest.fixture
def world():
    return world_of(9)


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


def test_an_unchanged_failure_is_not_tried_again_and_a_changed_one_is(path, world):
    world.extract(path)
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        plan = writer.plan(world.keys, [world.stat(key) for key in world.keys])
        assert (plan.work, plan.failed) == ([], 1)
    world.put("b/bad.jpg", b"mended", mtime=10)
    assert world.extract(path).failed == 0
    assert content(path) == world.expected([A])


def test_a_failure_known_before_the_plan_is_not_work(path):
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.fail("absent.jpg", "There is no such file.")
        plan = writer.plan(["absent.jpg"], [(-1, -1)])
        assert (plan.work, plan.failed) == ([], 1)


def test_a_failure_of_unknown_stat_is_tried_again(path):
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.plan(["u.jpg"], [(-1, -1)])
        writer.fail("u.jpg", "No answer.")
        writer.finish(World().samples())
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        assert len(writer.plan(["u.jpg"], [(-1, -1)]).work) == 1


def test_a_copy_of_an_image_that_fails_fails_for_the_same_reason(path):
    bad, stat = digest_of(b"bad"), (3, 1)
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.plan(["a", "b"], [stat, stat])
        writer.fail("a", "It is no image.", bad, *stat)
        writer.take_over("b", bad, *stat)
        assert writer.finish(World().samples()).failed == 2
    with FeatureCache(path) as cache:
        assert cache.failures == {"a": "It is no image.", "b": "It is no image."}


def test_a_file_that_changed_behind_its_stat_is_a_failure_and_tried_again(path, world):
    world.extract(path, [A])
    world.files["a/0003.jpg"] = (b"IMAGE 3", 3)  # same size, same time
    assert world.extract(path, [B]).failed == 2
    with FeatureCache(path) as cache:
        assert "a/0003.jpg" not in cache.images.key
        assert "content changed" in cache.failures["a/0003.jpg"]
    world.extract(path, [B])
    assert content(path) == world.expected([A, B])


def test_images_that_a_run_never_reached_are_named(path):
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.plan(["a"], [(1, 1)])
        assert writer.finish(World().samples()).failed == 1
    with FeatureCache(path) as cache:
        assert "not read" in cache.failures["a"]


def test_samples_of_several_images_go_with_any_that_failed(path):
    table = SampleTable(
        key=np.array(["s", "t"], object),
        image=np.array([[0, 1], [0, 2]]),
        split=np.array(["train", "test"], object),
    )
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.plan(["a", "b", "c"], [(1, 1)] * 3)
        writer.fail("b", "It is no image.")
        rows = np.zeros((2, 5), np.float32)
        writer.add(["a", "c"], [b"1" * 32, b"2" * 32], [1, 1], [1, 1], {A.name: rows})
        writer.finish(table)
    with FeatureCache(path) as cache:
        assert list(cache.samples.key) == ["t"]
        assert cache.samples.image.tolist() == [[0, 1]]


def test_an_interrupted_run_goes_on_where_its_last_commit_was(path, world, monkeypatch):
    monkeypatch.setattr("bottleneck.store.background.PART_ROWS", 2)
    with CacheWriter(path, SPEC, [A, MAP], ROOT) as writer:
        world.feed(writer, stop_after=7)
    done = set(world.computed)
    world.computed.clear()
    world.extract(path, [A, MAP])
    assert done
    assert not done & set(world.computed)
    assert content(path) == world.expected([A, MAP])


def test_rows_stay_in_parts_where_asked_and_are_consolidated_later(path, world):
    world.extract(path, [A, MAP], consolidate=False)
    assert not path.exists()
    assert content(path) == world.expected([A, MAP])
    log = (path.parent / "cache.h5.parts" / "log").read_bytes()
    assert world.extract(path, [A, MAP], consolidate=False).computed == 0
    assert (path.parent / "cache.h5.parts" / "log").read_bytes() == log
    world.put("c/new.jpg", b"new")
    assert world.extract(path, [A, MAP], consolidate=False).computed == 1
    assert content(path) == world.expected([A, MAP])
    assert world.extract(path, [A]).computed == 0
    assert content(path) == world.expected([A])
    assert not (path.parent / "cache.h5.parts").exists()


@pytest.mark.parametrize(
    ("changed", "field", "shown"),
    [
        ({"backbone": {"name": "other", "weights": "none"}}, "backbone.name", '"hash" there, "other" here'),
        ({"preprocess": {"size": 9, "mean": [0.5, 0.5, 0.5]}}, "preprocess.size", "8 there, 9 here"),
        ({"source_root": "/elsewhere"}, "source_root", '"/photographs" there, "/elsewhere" here'),
        ({"node": NodeSpec("blocks.5", "avg", (5,), dtype="float32")}, "dtype", '"float16" there'),
        ({"node": NodeSpec("blocks.5", "avg", (5,), precision="int8")}, "precision", '"int8" here'),
        ({"node": NodeSpec("blocks.5", "avg", (6,))}, "shape", "[5] there, [6] here"),
    ],
)
@pytest.mark.parametrize("interrupted", [False, True])
def test_other_settings_are_refused_naming_the_fields(path, world, changed, field, shown, interrupted):
    if interrupted:
        with CacheWriter(path, SPEC, [A], ROOT) as writer:
            world.feed(writer)
    else:
        world.extract(path)
    settings = {**SPEC.to_json(), "source_root": ROOT, "node": A} | changed
    spec = CacheSpec(settings["backbone"], settings["preprocess"])
    with pytest.raises(FingerprintError) as caught:
        CacheWriter(path, spec, [settings["node"]], settings["source_root"])
    assert caught.value.fields == (field,)
    assert shown in caught.value.message
    assert "\n" not in str(caught.value)
    world.extract(path)  # the lock is free and nothing was harmed
    assert content(path) == world.expected([A])


@pytest.mark.parametrize(
    ("value", "named"),
    [(65520.0, "--dtype float32"), (-1e9, "--dtype float32"), (np.nan, "NaN"), (np.inf, "infinity")],
)
def test_a_feature_that_cannot_be_stored_is_an_error_that_names_the_image(path, value, named):
    rows = np.zeros((2, 5), np.float32)
    rows[1, 3] = value
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.plan(["a", "b"], [(1, 1)] * 2)
        writer.add(["a", "b"], [b"1" * 32, b"2" * 32], [1, 1], [1, 1], {A.name: rows})
        with pytest.raises(CacheError, match="'b'") as caught:
            writer.finish(World().samples())
    assert named in str(caught.value)


def test_float32_holds_what_float16_cannot(path):
    with CacheWriter(path, SPEC, [B], ROOT) as writer:
        writer.plan(["a"], [(1, 1)])
        writer.add(["a"], [b"1" * 32], [1], [1], {B.name: np.full((1, 7), 1e9, np.float32)})
        writer.finish(World().samples())
    with FeatureCache(path) as cache:
        assert cache.features(B.name).read(0, 1).max() == np.float32(1e9)


def test_an_error_of_the_writing_thread_surfaces_at_the_next_call(path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("bottleneck.store.background.PART_ROWS", 1)
    monkeypatch.setattr(files, "write", fail)
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.plan([str(i) for i in range(99)], [(1, 1)] * 99)

        def add_all():
            for i in range(99):
                digest = digest_of(bytes([i]))
                writer.add([str(i)], [digest], [1], [1], {A.name: np.zeros((1, 5), np.float32)})

        with pytest.raises(CacheError, match="Input/output error"):
            add_all()


def test_room_on_the_disk_is_checked_before_work_and_the_need_is_stated(path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000_000))
    big = NodeSpec("layer3", "none", (1024, 14, 14), layout="NCHW")
    with CacheWriter(path, SPEC, [big], ROOT) as writer:
        with pytest.raises(CacheError, match=r"Extracting 100 images needs 80\.4 MB .* has 10 MB"):
            writer.plan([str(i) for i in range(100)], [(1, 1)] * 100)
        writer.plan([str(i) for i in range(5)], [(1, 1)] * 5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"blocks.5": (1, 6)}, r"shape \(1, 6\); expected \(1, 5\)"),
        ({"blocks.5": (2, 5)}, r"expected \(1, 5\)"),
    ],
)
def test_rows_of_another_shape_are_refused(path, rows, message):
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.plan(["a"], [(1, 1)])
        arrays = {name: np.zeros(shape, np.float32) for name, shape in rows.items()}
        with pytest.raises(CacheError, match=message):
            writer.add(["a"], [b"1" * 32], [1], [1], arrays)


def test_a_key_listed_twice_is_refused(path):
    with CacheWriter(path, SPEC, [A], ROOT) as writer, pytest.raises(CacheError, match="'a' is listed twice"):
        writer.plan(["a", "b", "a"], [(1, 1)] * 3)


def test_a_companion_is_not_taken_for_a_main_file(path, world):
    world.extract(path, [A, MAP])
    with pytest.raises(CacheError, match="is the map of node"):
        CacheWriter(path.with_name("cache--blocks.3.h5"), SPEC, [A], ROOT)


def test_a_cache_of_no_images_is_a_cache(path):
    assert World().extract(path, [A, MAP]).images == 0
    assert content(path) == World().expected([A, MAP])


def test_a_damaged_old_file_is_not_copied_under_a_new_checksum(path, world):
    world.extract(path)
    with h5py.File(path) as file:
        offset = file[f"features/{A.name}"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(bytes(11 * 5 * 2 + 4))  # a chunk of zeros, whose fletcher32 is zero
    world.put("c/new.jpg", b"new")
    with pytest.raises(CacheError, match="does not match its checksum"):
        world.extract(path)


def test_a_reader_goes_on_reading_what_it_opened(path, world):
    world.extract(path, [A, MAP])
    before = content(path)
    with FeatureCache(path) as cache:
        del world.files["a/0003.jpg"]
        world.put("a/0000.jpg", b"changed", 99)
        world.extract(path, [A, B, MAP])
        assert cache.features(A.name).read(0, 99).tobytes() == before[A.name]
        assert cache.features(MAP.name).read(0, 99).tobytes() == before[MAP.name]
        assert B.name not in cache.nodes
    assert content(path) == world.expected([A, B, MAP])


def test_the_old_main_file_beside_the_new_map_lacks_no_row(path, world, monkeypatch):
    """A reader may open the two between the two renames; so may a run that follows a kill there."""
    world.extract(path, [A, MAP])
    before = content(path)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bottleneck.store.consolidate.write_main", stop)
    del world.files["a/0003.jpg"]
    world.put("c/new.jpg", b"new")
    with pytest.raises(KeyboardInterrupt):
        world.extract(path, [A, MAP])
    assert content(path) == before
    monkeypatch.undo()
    world.computed.clear()
    world.extract(path, [A, MAP])
    assert world.computed == []
    assert content(path) == world.expected([A, MAP])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_ends_a_run_keeps_the_rows_computed(path, world, error):
    def end_early():
        with CacheWriter(path, SPEC, [A], ROOT) as writer:
            world.feed(writer)
            raise error

    with pytest.raises(error):
        end_early()
    world.computed.clear()
    world.extract(path)
    assert world.computed == []


def test_a_run_that_only_planned_leaves_nothing(path, world):
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.fail("absent.jpg", "There is no such file.")
        writer.plan(world.keys, [world.stat(key) for key in world.keys])
    assert os.listdir(path.parent) == ["cache.h5.lock"]


def test_a_second_writer_is_told_who_the_first_is(path, world):
    with CacheWriter(path, SPEC, [A], ROOT):
        with pytest.raises(CacheError, match=f"process {os.getpid()}.* is at work") as caught:
            CacheWriter(path, SPEC, [A], ROOT)
        assert caught.value.hint
    world.extract(path)


def test_a_lock_file_that_nobody_holds_is_no_obstacle(path, world):
    (path.parent / "cache.h5.lock").write_text("4711")
    assert world.extract(path).images == 11


def test_names_that_are_no_unicode_survive(path):
    key = os.fsdecode(b"caf\xe9/\xff.jpg")
    target = Target("label", "class", np.array([0]), (os.fsdecode(b"caf\xe9"),))
    samples = SampleTable(objects([key]), np.array([[0]]), objects(["train"]), {"label": target})
    with CacheWriter(path, SPEC, [A], os.fsdecode(b"/data/\xff")) as writer:
        writer.plan([key], [(1, 1)])
        writer.add([key], [b"1" * 32], [1], [1], {A.name: np.zeros((1, 5), np.float32)})
        writer.finish(samples)
    with FeatureCache(path) as cache:
        assert list(cache.images.key) == list(cache.samples.key) == [key]
        assert cache.samples.targets["label"].class_names == target.class_names
    with CacheWriter(path, SPEC, [A], os.fsdecode(b"/data/\xff")) as writer:
        assert writer.plan([key], [(1, 1)]).reused == 1


def test_a_reader_of_parts_that_finish_meanwhile_reads_the_finished_file(path, world, monkeypatch):
    world.extract(path, [A], consolidate=False)
    expected = world.expected([A])

    def finish(folder):
        monkeypatch.undo()
        world.extract(path, [A])
        raise CacheError("The parts are gone.")

    monkeypatch.setattr("bottleneck.store.reader.read_state", finish)
    assert content(path) == expected
    assert path.exists()


def test_the_parts_folder_itself_can_be_read(path, world, monkeypatch):
    monkeypatch.setattr("bottleneck.store.background.PART_ROWS", 3)
    world.extract(path, [A])
    before = content(path)
    world.put("c/new.jpg", b"new")
    world.put("c/bad.jpg", b"bad too")
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        world.feed(writer)
    assert content(path) == before  # the finished file stands first
    with FeatureCache(path.with_name("cache.h5.parts")) as cache:
        assert not cache.finished
        assert list(cache.images.key) == ["c/new.jpg"]
        assert len(cache.samples) == 0
        assert list(cache.failures) == ["c/bad.jpg"]
        assert (cache.features(A.name).read(0, 1)[0] == row_of(digest_of(b"new"), A)).all()


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
