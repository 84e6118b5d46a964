"""What a run cannot use, store or go on with is named, and tried again when it has changed."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from bottleneck import files
from bottleneck.errors import CacheError, FingerprintError
from bottleneck.samples import SampleTable
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import CacheSpec, NodeSpec
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import MAP, ROOT, SPEC, A, B, World, content, digest_of


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


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_passing_failure_is_tried_again_and_one_of_the_content_is_not(path, world, interrupted):
    """Of both the file is known and has not changed."""
    stats = [world.stat("a/0000.jpg"), world.stat("b/bad.jpg")]
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.plan(["a", "b"], stats)
        writer.fail("a", "Permission denied.", None, stats[0], passing=True)
        writer.fail("b", "It is no image.", digest_of(b"bad"), stats[1])
        if interrupted:
            writer._committer.finish()
        else:
            writer.finish(World().samples())
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        plan = writer.plan(["a", "b"], stats)
        assert [work.images.tolist() for work in plan.work] == [[0]]
        assert plan.failed == 1


def test_a_copy_of_an_image_that_fails_fails_for_the_same_reason(path):
    bad, stat = digest_of(b"bad"), (3, 1)
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.plan(["a", "b"], [stat, stat])
        writer.fail("a", "It is no image.", bad, stat)
        writer.take_over("b", bad, stat)
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
        writer.add([("a", b"1" * 32, (1, 1)), ("c", b"2" * 32, (1, 1))], {A.name: rows})
        writer.finish(table)
    with FeatureCache(path) as cache:
        assert list(cache.samples.key) == ["t"]
        assert cache.samples.image.tolist() == [[0, 1]]


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
        writer.add([("a", b"1" * 32, (1, 1)), ("b", b"2" * 32, (1, 1))], {A.name: rows})
        with pytest.raises(CacheError, match="'b'") as caught:
            writer.finish(World().samples())
    assert named in str(caught.value)


def test_float32_holds_what_float16_cannot(path):
    with CacheWriter(path, SPEC, [B], ROOT) as writer:
        writer.plan(["a"], [(1, 1)])
        writer.add([("a", b"1" * 32, (1, 1))], {B.name: np.full((1, 7), 1e9, np.float32)})
        writer.finish(World().samples())
    with FeatureCache(path) as cache:
        assert cache.features(B.name).read(0, 1).max() == np.float32(1e9)


def test_an_error_of_the_writing_thread_surfaces_at_the_next_call(path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("bottleneck.store.committer.PART_ROWS", 1)
    monkeypatch.setattr(files, "write", fail)
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.plan([str(i) for i in range(99)], [(1, 1)] * 99)

        def add_all():
            for i in range(99):
                digest = digest_of(bytes([i]))
                writer.add([(str(i), digest, (1, 1))], {A.name: np.zeros((1, 5), np.float32)})

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
            writer.add([("a", b"1" * 32, (1, 1))], arrays)


def test_a_key_listed_twice_is_refused(path):
    with CacheWriter(path, SPEC, [A], ROOT) as writer, pytest.raises(CacheError, match="'a' is listed twice"):
        writer.plan(["a", "b", "a"], [(1, 1)] * 3)


def test_a_companion_is_not_taken_for_a_main_file(path, world):
    world.extract(path, [A, MAP])
    with pytest.raises(CacheError, match="is the map of node"):
        CacheWriter(path.with_name("cache--blocks.3.h5"), SPEC, [A], ROOT)


def test_damaged_rows_of_an_old_file_are_not_copied_under_a_new_checksum(path, world):
    world.extract(path)
    with h5py.File(path) as file:
        offset = file[f"features/{A.name}"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(bytes(11 * 5 * 2 + 4))  # a chunk of zeros, whose fletcher32 is zero
    world.put("c/new.jpg", b"new")
    world.extract(path)
    assert content(path) == world.expected([A])
