"""What other tools read is what the cache holds."""

import sys

import numpy as np
import pytest

from bottleneck.errors import CacheError
from bottleneck.samples import SampleTable, Shard, Target
from bottleneck.store.convert import export
from bottleneck.store.reader import FeatureCache
from bottleneck.store.tables import objects
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import MAP, ROOT, SPEC, VIEWED, A, B, world_of

pytestmark = pytest.mark.filterwarnings("ignore:Pandas requires version")


@pytest.fixture
def path(tmp_path):
    world_of(6).extract(tmp_path / "cache.h5", [A, B, MAP, VIEWED])
    return tmp_path / "cache.h5"


def test_npz_holds_every_array(path, tmp_path):
    arrays = export(path, tmp_path / "out.npz")["arrays"]
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive, FeatureCache(path) as cache:
        assert {name: list(archive[name].shape) for name in archive} == arrays
        assert archive["images/key"].tolist() == list(cache.images.key)
        assert archive["labels/label/class_names"].tolist() == ["x", "y", "한글"]
        assert archive["failures/reason"].tolist() == ["It is no image."]
        for name in (A.name, B.name, VIEWED.name):
            rows = cache.features(name).read(0, 99)
            assert archive[f"features/{name}"].dtype == rows.dtype
            np.testing.assert_array_equal(archive[f"features/{name}"], rows)
        np.testing.assert_array_equal(archive[f"views/{VIEWED.name}"], cache.views(VIEWED.name).read(0, 99))
        assert f"features/{MAP.name}" not in archive


def test_a_map_is_exported_where_it_is_named(path, tmp_path):
    assert export(path, tmp_path / "out.npz", [MAP.name])["arrays"][f"features/{MAP.name}"] == [8, 2, 3, 3]


def test_parquet_has_a_row_per_sample(path, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("bottleneck.store.exchange.BLOCK_ROWS", 3)
    arrays = export(path, tmp_path / "out.parquet")["arrays"]
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    with FeatureCache(path) as cache:
        assert [row["key"] for row in rows] == list(cache.samples.key)
        assert [row["image"] for row in rows] == list(cache.images.key)
        names = cache.samples.targets["label"].class_names
        assert [row["label"] for row in rows] == [names[c] for c in cache.samples.targets["label"].values]
        assert [row["half"] for row in rows] == cache.samples.covariates[:, 0].tolist()
        features = np.array([row[f"features/{A.name}"] for row in rows], np.float32)
        np.testing.assert_array_equal(features, cache.features(A.name).read(0, 99).astype(np.float32))
    assert arrays[f"features/{A.name}"] == [8, 5]


def test_parquet_of_samples_of_several_images_and_open_labels(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    targets = {
        "kind": Target("kind", "class", np.array([0, -1]), ("x",)),
        "tags": Target("tags", "multilabel", np.array([[1, 1], [255, 255]], np.uint8), ("sun", "sea")),
        "age": Target("age", "regression", np.array([np.nan, 2.0])),
    }
    samples = SampleTable(
        objects(["s", "t"]),
        np.array([[0, 1], [1, 1]]),
        objects(["train", "test"]),
        targets,
        group=objects("gh"),
    )
    with CacheWriter(tmp_path / "x.h5", SPEC, [A], ROOT) as writer:
        writer.plan(["1", "2"], [(1, 1)] * 2)
        rows = np.arange(10, dtype=np.float32).reshape(2, 5)
        writer.add([("1", b"1" * 32, (1, 1)), ("2", b"2" * 32, (1, 1))], {A.name: rows})
        writer.finish(samples)
    export(tmp_path / "x.h5", tmp_path / "x.parquet")
    first, second = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert (first["image"], second["image"]) == (["1", "2"], ["2", "2"])
    assert (first["kind"], first["tags"], first["age"], first["group"]) == ("x", ["sun", "sea"], None, "g")
    assert (second["kind"], second["tags"], second["age"]) == (None, None, 2.0)
    assert first[f"features/{A.name}"] == list(map(float, range(10)))


def test_a_cache_without_samples_is_a_row_per_image(path, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export(path.with_name("cache--blocks.3.h5"), tmp_path / "out.parquet", [MAP.name])
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(rows) == 6  # one per distinct content
    assert len(rows[0][f"features/{MAP.name}"]) == 18


def test_other_endings_and_absent_nodes_are_refused_and_nothing_is_left(path, tmp_path):
    with pytest.raises(CacheError, match=r"not to '\.csv'"):
        export(path, tmp_path / "out.csv")
    with pytest.raises(CacheError, match="no features of node 'layer9'"):
        export(path, tmp_path / "out.npz", ["layer9"])
    assert not list(tmp_path.glob("out*"))


def test_parquet_without_pyarrow_says_what_to_install(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CacheError, match="pyarrow") as caught:
        export(path, tmp_path / "out.parquet")
    assert "pip install" in caught.value.hint


def test_a_full_disk_leaves_the_old_export(path, tmp_path, monkeypatch):
    export(path, tmp_path / "out.npz")
    before = (tmp_path / "out.npz").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bottleneck.files.sync_file", full)
    with pytest.raises(CacheError, match="disk is full"):
        export(path, tmp_path / "out.npz")
    assert (tmp_path / "out.npz").read_bytes() == before
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.npz"]


def test_another_name_of_a_node_is_told(path, tmp_path):
    result = export(path, tmp_path / "c.npz", nodes=[f"{B.name}@{B.pool}", A.name])
    (note,) = result["notes"]
    assert (note.code, note.details) == ("node-alias", {"given": f"{B.name}@{B.pool}", "node": B.name})
    assert f"features/{B.name}" in result["arrays"]


def test_missing_shards_are_told(tmp_path):
    with CacheWriter(tmp_path / "c.h5", SPEC, [A], ROOT) as writer:
        writer.plan(["1.jpg"], [(1, 1)])
        writer.add([("1.jpg", bytes(32), (1, 1))], {A.name: np.zeros((1, *A.shape), np.float32)})
        shard = Shard(3, (2,), {"samples": "0"})
        split, place = objects(["train"]), np.array([4])
        samples = SampleTable(objects(["1.jpg"]), np.array([[0]]), split, shard=shard, position=place)
        writer.finish(samples)
    (note,) = export(tmp_path / "c.h5", tmp_path / "c.npz")["notes"]
    assert (note.code, note.details["missing"]) == ("shards-missing", [1, 3])
