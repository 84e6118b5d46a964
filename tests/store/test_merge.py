"""Caches of one fingerprint become one: nothing is computed, lost, or silently overruled."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save

from bottleneck import files
from bottleneck.errors import CacheError, FingerprintError
from bottleneck.fitting.labels import relabelled
from bottleneck.samples import SampleTable, Shard, Target
from bottleneck.store.merge import merge
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import CacheSpec, NodeSpec
from bottleneck.store.tables import objects, sample_columns, samples_of
from bottleneck.store.verify import verify
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import MAP, ROOT, SPEC, VIEWED, A, B, World, content, digest_of, row_of, world_of


def halves():
    """Two worlds and the one of both; the image "a/copy.jpg" is in all three."""
    both = world_of(8)
    first, second = World(), World()
    for number, key in enumerate(both.keys):
        (first, second)[number % 2].put(key, *both.files[key])
    for world in (first, second):
        world.put("a/copy.jpg", *both.files["a/copy.jpg"])
    return first, second, both


def by_key(values):
    """Content without its order."""
    order = np.argsort([row[0] for row in values["images"]])
    return (
        {row[0]: row[1:] for row in values["images"]},
        [values["samples"][i] for i in order],
        values["failures"],
    )


def test_the_union_is_the_cache_of_both_sources(tmp_path):
    first, second, both = halves()
    for name, world in (("1", first), ("2", second)):
        world.extract(tmp_path / f"{name}.h5", [A, B, MAP, VIEWED])
    result = merge([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "out.h5")
    assert (result["images"], result["samples"], result["failed"]) == (10, 10, 1)
    assert result["nodes"] == {"blocks.5": [5], "bottleneck": [7], "head": [4], "blocks.3@none": [2, 3, 3]}
    assert verify(tmp_path / "out.h5").ok
    both.computed.clear()
    summary = both.extract(tmp_path / "out.h5", [A, B, MAP, VIEWED])
    assert both.computed == []
    assert summary.removed == 0
    assert content(tmp_path / "out.h5") == both.expected([A, B, MAP, VIEWED])


def test_a_map_that_one_cache_lacks_covers_fewer_images(tmp_path):
    first, second, _ = halves()
    first.extract(tmp_path / "1.h5", [A, MAP])
    second.extract(tmp_path / "2.h5", [A])
    merge([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "out.h5")
    with FeatureCache(tmp_path / "out.h5") as cache:
        assert cache.features(A.name).shape == (10, 5)
        with pytest.raises(CacheError, match="lacks the rows"):
            cache.features(MAP.name)


def write(path, samples, root=ROOT, nodes=(A,), files=(("1.jpg", b"one"),)):
    with CacheWriter(path, SPEC, nodes, root) as writer:
        writer.plan([key for key, _ in files], [(1, 1)] * len(files))
        digests = [digest_of(data) for _, data in files]
        rows = {node.name: np.stack([row_of(digest, node) for digest in digests]) for node in nodes}
        writer.add([(key, digest_of(data), (1, 1)) for key, data in files], rows)
        writer.finish(samples)
    return path


def table(key="1.jpg", label="cat", names=("cat",), split="train", **fields):
    target = Target("label", "class", np.array([names.index(label)], np.int64), names)
    base = SampleTable(objects([key]), np.array([[0]]), objects([split]), {"label": target})
    return replace(base, **fields)


def test_keys_of_different_folders_are_joined_under_their_parent(tmp_path):
    a = write(tmp_path / "a.h5", table(), root="/data/one")
    b = write(tmp_path / "b.h5", table(label="dog", names=("dog",)), root="/data/two/x")
    merge([a, b], tmp_path / "out.h5")
    with FeatureCache(tmp_path / "out.h5") as cache:
        assert cache.source_root == "/data"
        assert list(cache.images.key) == list(cache.samples.key) == ["one/1.jpg", "two/x/1.jpg"]
        assert cache.samples.image.tolist() == [[0], [1]]


def test_classes_are_joined_by_name(tmp_path):
    a = write(tmp_path / "a.h5", table(label="dog", names=("cat", "dog")))
    b = write(tmp_path / "b.h5", table("2.jpg", "bee", ("bee", "dog")), files=[("2.jpg", b"two")])
    merge([a, b], tmp_path / "out.h5")
    with FeatureCache(tmp_path / "out.h5") as cache:
        target = cache.samples.targets["label"]
        assert target.class_names == ("cat", "dog", "bee")
        assert [target.class_names[code] for code in target.values] == ["dog", "bee"]


def test_a_target_that_one_cache_lacks_is_unlabelled_there(tmp_path):
    multilabel = Target("tags", "multilabel", np.array([[1, 0]], np.uint8), ("sun", "sea"))
    number = Target("age", "regression", np.array([3.5]))
    a = write(tmp_path / "a.h5", table(targets={"tags": multilabel, "age": number}))
    b = write(tmp_path / "b.h5", table("2.jpg"), files=[("2.jpg", b"two")])
    merge([a, b], tmp_path / "out.h5")
    with FeatureCache(tmp_path / "out.h5") as cache:
        targets = cache.samples.targets
        assert targets["tags"].values.tolist() == [[1, 0], [255, 255]]
        np.testing.assert_array_equal(targets["age"].values, [3.5, np.nan])
        assert targets["label"].values.tolist() == [-1, 0]


def test_groups_and_covariates_come_along(tmp_path):
    extra = {"covariates": np.array([[2.0]]), "covariate_names": ("age",)}
    a = write(tmp_path / "a.h5", table(group=objects(["g"]), **extra))
    b = write(tmp_path / "b.h5", table("2.jpg", **extra), files=[("2.jpg", b"two")])
    merge([a, b], tmp_path / "out.h5")
    with FeatureCache(tmp_path / "out.h5") as cache:
        assert list(cache.samples.group) == ["g", "2.jpg"]
        assert cache.samples.covariates.tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize("groups", [("g", None), (None, "g"), ("g", "g")])
def test_a_sample_of_two_caches_has_the_group_that_any_of_them_gives(tmp_path, groups):
    paths = [
        write(tmp_path / f"{number}.h5", table(group=None if group is None else objects([group])))
        for number, group in enumerate(groups)
    ]
    merge(paths, tmp_path / "out.h5")
    with FeatureCache(tmp_path / "out.h5") as cache:
        assert list(cache.samples.group) == ["g"]


def test_a_sample_with_two_groups_is_refused(tmp_path):
    paths = [write(tmp_path / f"{group}.h5", table(group=objects([group]))) for group in "gh"]
    with pytest.raises(CacheError, match="different images, labels, group or split"):
        merge(paths, tmp_path / "out.h5")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"samples": table(), "files": [("1.jpg", b"another")]}, "'1.jpg' differs between"),
        ({"samples": table(split="test")}, "sample '1.jpg' occurs in two caches"),
        (
            {"samples": table("s", targets={"label": Target("label", "regression", np.zeros(1))})},
            "is class in one",
        ),
        (
            {"samples": table("s", covariates=np.ones((1, 1)), covariate_names=("x",))},
            "differ in their covariates",
        ),
        ({"samples": table("s", image=np.array([[0, 0]]))}, "differ in their images per sample"),
        ({"samples": table(), "root": "https://example.org/x"}, "no folder in common"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, other, message):
    a = write(tmp_path / "a.h5", table())
    b = write(tmp_path / "b.h5", **other)
    with pytest.raises(CacheError, match=message):
        merge([a, b], tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_other_settings_are_refused_naming_the_fields(tmp_path):
    a = write(tmp_path / "a.h5", table())
    b = write(tmp_path / "b.h5", table(), nodes=[NodeSpec(A.node, A.pool, A.shape, dtype="float32")])
    with pytest.raises(FingerprintError) as caught:
        merge([a, b], tmp_path / "out.h5")
    assert caught.value.fields == (f"{A.name}.dtype",)


def test_one_cache_or_an_existing_output_is_refused(tmp_path):
    a = write(tmp_path / "a.h5", table())
    with pytest.raises(CacheError, match="two caches or more"):
        merge([a], tmp_path / "out.h5")
    with pytest.raises(CacheError, match="exists already and is none of the caches") as caught:
        merge([a, a], write(tmp_path / "b.h5", table()))
    assert caught.value.hint == "Name it among the caches to extend it, or a new file with -o."


def test_a_merge_that_cannot_write_the_main_file_leaves_no_map(tmp_path, monkeypatch):
    for name, key in (("a.h5", "a/1.jpg"), ("b.h5", "b/2.jpg")):
        world = World()
        world.put(key, key.encode())
        world.extract(tmp_path / name, [A, MAP])
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bottleneck.store.merge.consolidate.write_main", full)
    with pytest.raises(OSError, match="No space"):
        merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "out.h5")
    after = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in after if not name.endswith(".lock")] == [
        name for name in before if not name.endswith(".lock")
    ]


def test_a_map_that_is_there_already_is_not_overwritten(tmp_path):
    for name, key in (("a.h5", "a/1.jpg"), ("b.h5", "b/2.jpg")):
        world = World()
        world.put(key, key.encode())
        world.extract(tmp_path / name, [A, MAP])
    (tmp_path / "out--blocks.3.h5").write_bytes(b"mine")
    with pytest.raises(CacheError, match=r"out--blocks\.3\.h5 exists already"):
        merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "out.h5")
    assert (tmp_path / "out--blocks.3.h5").read_bytes() == b"mine"
    assert not (tmp_path / "out.h5").exists()


def shards(tmp_path, of=3, root=ROOT, **plan):
    """A cache for each shard of a manifest of 7.jpg, 8.jpg and 6.jpg; the shards have them backwards."""
    tmp_path.mkdir(exist_ok=True)
    return [
        write(
            tmp_path / f"{number}.h5",
            table(
                f"{name}.jpg",
                shard=Shard(of, (number,), {"samples": "s", "labels": "l", **plan}),
                position=np.array([of - number]),
            ),
            root=root,
            files=[(f"{name}.jpg", b"%d" % name)],
        )
        for number, name in zip(range(1, of + 1), (6, 8, 7), strict=False)
    ]


def everything(path):
    with FeatureCache(path) as cache:
        samples = cache.samples
        rows = cache.features(A.name).read(0, len(cache.images)).tolist()
        return list(cache.images.rows()), list(samples.key), samples.image.tolist(), rows


def test_merged_shards_are_in_the_order_of_the_whole_source(tmp_path):
    result = merge(shards(tmp_path), tmp_path / "out.h5")
    assert result["notes"] == []
    assert verify(tmp_path / "out.h5").ok
    with FeatureCache(tmp_path / "out.h5") as cache:
        assert (cache.samples.shard, cache.samples.position) == (None, None)
        assert list(cache.images.key) == ["6.jpg", "7.jpg", "8.jpg"]
        assert list(cache.samples.key) == ["7.jpg", "8.jpg", "6.jpg"]
        assert cache.samples.image.tolist() == [[1], [2], [0]]
        rows = cache.features(A.name).read(0, 3)
    np.testing.assert_array_equal(rows, [row_of(digest_of(b"%d" % name), A) for name in (6, 7, 8)])


def test_missing_shards_are_named_and_may_be_added_later(tmp_path):
    first, second, third = shards(tmp_path)
    note = merge([third, first], tmp_path / "part.h5")["notes"][0]
    assert (note["code"], note["missing"], note["of"]) == ("shards-missing", [2], 3)
    with FeatureCache(tmp_path / "part.h5") as cache:
        assert cache.samples.shard.numbers == (1, 3)
        told = relabelled(cache.samples, cache.images.key, None)[1]
    assert [found.code for found in told] == ["shards-missing"]
    assert merge([tmp_path / "part.h5", second], tmp_path / "out.h5")["notes"] == []
    merge([first, second, third], tmp_path / "once.h5")
    assert everything(tmp_path / "out.h5") == everything(tmp_path / "once.h5")


@pytest.mark.parametrize(
    ("other", "field"),
    [({"labels": "k"}, "labels"), ({"of": 2}, "shards"), ({"root": "/elsewhere"}, "source_root")],
)
def test_shards_of_different_sources_are_refused_and_what_differs_is_named(tmp_path, other, field):
    mine, theirs = shards(tmp_path), shards(tmp_path / "b", **other)
    with pytest.raises(FingerprintError, match=f"what differs: {field}.") as caught:
        merge([mine[0], theirs[1]], tmp_path / "out.h5")
    assert caught.value.fields == (field,)
    assert not (tmp_path / "out.h5").exists()


def test_a_shard_and_a_whole_source_are_not_merged(tmp_path):
    whole = write(tmp_path / "whole.h5", table("x.jpg"), files=[("x.jpg", b"x")])
    with pytest.raises(CacheError, match=r"holds shards of a source, .* does not"):
        merge([shards(tmp_path)[0], whole], tmp_path / "out.h5")


@pytest.mark.parametrize(
    "record",
    [
        "7",
        "[]",
        "{}",
        '{"of": 2, "numbers": [], "plan": {}}',
        '{"of": 2, "numbers": [3], "plan": {}}',
        '{"of": 2, "numbers": [1, 1], "plan": {}}',
        '{"of": 2, "numbers": [1], "plan": {"a": 1}}',
        '{"of": 10000000000, "numbers": [1], "plan": {}}',
    ],
)
def test_a_shard_that_says_nothing_sensible_is_damage(record):
    columns = sample_columns(table(shard=Shard(2, (1,), {}), position=np.array([0])))
    key = columns["samples/key"]
    columns["samples/key"] = replace(key, attributes={**key.attributes, "shard": record})
    with pytest.raises(CacheError, match="the shard of the samples is"):
        samples_of(columns)


def test_a_shard_without_positions_is_damage():
    columns = sample_columns(table(shard=Shard(2, (1,), {}), position=np.array([0])))
    del columns["samples/position"]
    with pytest.raises(CacheError, match="expected positions"):
        samples_of(columns)


def test_a_merged_cache_is_extended_in_its_place_and_that_is_told(tmp_path):
    first, second, third = shards(tmp_path)
    merge([first, third], tmp_path / "out.h5")
    result = merge([tmp_path / "out.h5", second], tmp_path / "out.h5")
    (note,) = result["notes"]
    assert (note["code"], note["before"], note["images"]) == ("cache-extended", 2, 3)
    merge([first, second, third], tmp_path / "once.h5")
    assert everything(tmp_path / "out.h5") == everything(tmp_path / "once.h5")
    assert verify(tmp_path / "out.h5").ok


def test_a_cache_with_maps_is_extended_in_its_place(tmp_path):
    first, second, both = halves()
    for name, world in (("1", first), ("2", second)):
        world.extract(tmp_path / f"{name}.h5", [A, MAP])
    merge([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "1.h5")
    assert verify(tmp_path / "1.h5").ok
    both.extract(tmp_path / "1.h5", [A, MAP])
    assert both.computed == []
    assert content(tmp_path / "1.h5") == both.expected([A, MAP])


def test_a_dry_run_names_missing_shards_and_writes_nothing(tmp_path):
    first, _, third = shards(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = merge([first, third], tmp_path / "out.h5", dry_run=True)
    assert (result["images"], result["notes"][0]["missing"], result["bytes"]) == (2, [2], 2 * 5 * 2)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(FingerprintError, match="what differs"):
        merge([first, shards(tmp_path / "b", labels="k")[1]], tmp_path / "out.h5", dry_run=True)


def test_an_image_of_two_caches_has_one_row_and_that_is_told(tmp_path):
    first, second, _ = halves()
    for name, world in (("1", first), ("2", second)):
        world.extract(tmp_path / f"{name}.h5", [A])
    notes = merge([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "out.h5")["notes"]
    assert [(note["code"], note["rows"]) for note in notes] == [("rows-of-same-images", 1)]


def test_a_merge_needs_room_on_the_disk(tmp_path, monkeypatch):
    caches = shards(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(CacheError, match="Merging 3 images needs"):
        merge(caches, tmp_path / "out.h5", dry_run=True)


def test_a_map_that_a_stopped_merge_has_completed_is_kept(tmp_path):
    first, second, both = halves()
    for name, world in (("1", first), ("2", second)):
        world.extract(tmp_path / f"{name}.h5", [A, MAP])
    caches = [tmp_path / "1.h5", tmp_path / "2.h5"]
    merge(caches, tmp_path / "out.h5")
    (tmp_path / "out.h5").unlink()
    map_file = tmp_path / "out--blocks.3.h5"
    (tmp_path / "out.h5.0123abcd.new").write_bytes(b"half")
    before = map_file.stat().st_ino
    notes = merge(caches, tmp_path / "out.h5")["notes"]
    assert "map-of-stopped-merge" in [note["code"] for note in notes]
    assert map_file.stat().st_ino == before
    assert not list(tmp_path.glob("*.new"))
    both.extract(tmp_path / "out.h5", [A, MAP])
    assert both.computed == []


def test_the_statistics_of_a_random_network_come_along(tmp_path, monkeypatch):
    spec = CacheSpec({"name": "hash", "weights": "none", "calibrated": True}, SPEC.preprocess)
    monkeypatch.setitem(globals(), "SPEC", spec)
    caches = shards(tmp_path)
    with pytest.raises(CacheError, match=r"1--batchnorm\.safetensors is missing"):
        merge(caches, tmp_path / "out.h5")
    data = save({"norm.running_mean": np.zeros(2, np.float32)})
    (tmp_path / "2--batchnorm.safetensors").write_bytes(data)
    merge(caches, tmp_path / "out.h5")
    assert (tmp_path / "out--batchnorm.safetensors").read_bytes() == data
    assert verify(tmp_path / "out.h5").ok


def test_a_merge_does_not_write_where_an_interrupted_run_will(tmp_path):
    first, second, _ = shards(tmp_path)
    with CacheWriter(tmp_path / "out.h5", SPEC, [A], ROOT) as writer:
        world_of(8).feed(writer, stop_after=7)
    for dry_run in (True, False):
        with pytest.raises(CacheError, match=r"out\.h5\.parts has rows of an interrupted run"):
            merge([first, second], tmp_path / "out.h5", dry_run)
    assert not (tmp_path / "out.h5").exists()


def test_an_interrupted_run_is_not_merged_and_is_named_as_one(tmp_path):
    world_of(8).extract(tmp_path / "a.h5", [A])
    with CacheWriter(tmp_path / "b.h5", SPEC, [A], ROOT) as writer:
        world_of(8).feed(writer, stop_after=7)
    for named in ("b.h5", "b.h5.parts"):
        with pytest.raises(CacheError, match=r"b\.h5 is not finished"):
            merge([tmp_path / "a.h5", tmp_path / named], tmp_path / "out.h5")


def test_a_cache_that_is_kept_in_parts_is_merged_once_it_is_one_file(tmp_path):
    images = world_of(8).extract(tmp_path / "a.h5", [A]).images
    world_of(8).extract(tmp_path / "b.h5", [A], consolidate=False)
    for named in ("b.h5", "b.h5.parts"):
        with pytest.raises(CacheError, match=r"b\.h5\.parts is a cache in parts") as caught:
            merge([tmp_path / "a.h5", tmp_path / named], tmp_path / "out.h5")
        assert "without --keep-parts" in caught.value.hint
    world = world_of(8)
    world.extract(tmp_path / "b.h5", [A])
    assert not world.computed
    assert merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "out.h5")["images"] == images


def test_a_cache_that_has_only_its_shards_is_told_from_one_that_is_not_there(tmp_path):
    (tmp_path / "x--shard-1-of-2.h5").touch()
    with pytest.raises(CacheError, match=r"but shards of one, such as .*x--shard-1-of-2\.h5") as caught:
        FeatureCache(tmp_path / "x.h5")
    assert "cache merge" in caught.value.hint
    with pytest.raises(CacheError, match=r"There is no feature cache .*y\.h5\. Make one"):
        FeatureCache(tmp_path / "y.h5")
