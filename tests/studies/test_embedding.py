"""Positions of samples, and the Parquet file of a map, against NumPy and scikit-learn."""

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from bottleneck.cli.export import command
from bottleneck.errors import FingerprintError, Note
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.samples import ArrayRows, SampleTable, Target
from bottleneck.studies.embedding import plane
from bottleneck.studies.embedding.map_file import export_map
from bottleneck.studies.embedding.plane import drawn_samples, plane_of
from tests.helpers.caches import class_target, write_cache


def blobs(n=90, classes=3, D=10, seed=0):
    random = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return (random.normal(size=(n, D)) + 4 * np.eye(D)[y]).astype(np.float32), y


def table(y):
    n = len(y)
    keys, split = np.array([f"{i}" for i in range(n)], object), np.array(["train"] * n, object)
    return SampleTable(keys, np.arange(n)[:, None], split, {"label": class_target(y)})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    X, y = blobs()
    several = Target("tags", "multilabel", (X[:, :2] > 2).astype(np.uint8), ("개미", "b"))
    weight = Target("weight", "regression", np.where(y == 0, np.nan, X[:, 0].astype(float)))
    folder = tmp_path_factory.mktemp("map")
    return write_cache(folder / "c.h5", X, [class_target(y), several, weight])


def test_pca_is_that_of_scikit_learn_up_to_sign_and_scale():
    X, _ = blobs()
    ours = plane_of(ArrayRows(X), np.arange(len(X)), tsne=False).positions["PCA"].astype(float)
    theirs = PCA(2, svd_solver="full").fit_transform(X.astype(float))
    for axis in range(2):
        assert abs(np.corrcoef(ours[:, axis], theirs[:, axis])[0, 1]) > 0.9999
    assert np.ptp(ours, axis=0).max() == pytest.approx(1, abs=1e-5)


def test_tsne_keeps_classes_together_also_of_samples_that_were_not_fitted(monkeypatch):
    X, y = blobs(n=240)
    whole = plane_of(ArrayRows(X), np.arange(len(X)))
    monkeypatch.setattr(plane, "MOST", 80)
    placed = plane_of(ArrayRows(X), np.arange(len(X)))
    assert [note.code for note in (*whole.notes, *placed.notes)] == ["map-sampled"]
    for each in (whole, placed):
        xy = each.positions["t-SNE"]
        assert KNeighborsClassifier(5).fit(xy[::2], y[::2]).score(xy[1::2], y[1::2]) > 0.95


def test_what_is_wanted_first_is_drawn_and_rare_classes_are_kept():
    y = np.r_[np.zeros(900, int), np.full(5, 1), np.full(95, 2)]
    first = np.arange(10, 20)
    drawn = drawn_samples(table(y), first, most=100)
    assert len(drawn) == len(set(drawn.tolist())) == 100
    assert set(first) <= set(drawn)
    assert (y[drawn] == 1).sum() == 5
    assert np.array_equal(drawn_samples(table(y), first, most=5000), np.arange(1000))


def test_equal_features_lie_at_one_place():
    at = plane_of(ArrayRows(np.ones((12, 4), np.float32)), np.arange(12)).positions
    assert list(at) == ["PCA"]
    assert np.ptp(at["PCA"], axis=0).max() == 0


def test_the_map_file_has_what_viewers_take(cache, tmp_path):
    X, y = blobs()
    head = fit_heads(cache, targets=["label"], output=tmp_path / "heads", C=0.1).heads[0]["path"]
    result = export_map(cache, output=tmp_path / "m.parquet", head=head)
    read = pyarrow.parquet.read_table(result.path).to_pydict()
    assert list(read)[:5] == ["x", "y", "pca_x", "pca_y", "neighbors"]
    assert read["label"] == [f"c{k}" for k in y]
    assert read["tags"] == ["|".join(np.array(["개미", "b"])[row > 2]) for row in X[:, :2]]
    assert [value is None for value in read["weight"]] == (y == 0).tolist()
    assert read["image"][3] == "그림/003.png"
    assert np.mean(np.array(read["predicted"]) == np.array(read["label"])) > 0.95
    centred = X - X.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    for row, record in enumerate(read["neighbors"]):
        assert record["distances"] == pytest.approx(np.sort(distance[row])[:10], abs=1e-4)
        assert distance[row, record["ids"]] == pytest.approx(record["distances"], abs=1e-4)


def test_targets_named_like_columns_have_columns_of_their_own(tmp_path):
    X, y = blobs()
    names = ("split", "label_split", "label")
    targets = [class_target((y + shift) % 3, name) for shift, name in enumerate(names)]
    result = export_map(write_cache(tmp_path / "c.h5", X, targets), output=tmp_path / "m.parquet")
    read = pyarrow.parquet.read_table(result.path).to_pydict()
    assert set(read["split"]) == {"train"}
    columns = ("label_label_split", "label_split", "label")
    assert [read[name] for name in columns] == [[f"c{(k + shift) % 3}" for k in y] for shift in range(3)]


def test_a_head_of_other_features_is_refused(cache, tmp_path):
    X, y = blobs()
    other = write_cache(tmp_path / "o.h5", X, [class_target(y)], dtype="float16")
    head = fit_heads(other, output=tmp_path / "heads", C=0.1).heads[0]["path"]
    with pytest.raises(FingerprintError):
        export_map(cache, output=tmp_path / "m.parquet", head=head)


def test_missing_shards_are_told(cache, tmp_path, monkeypatch):
    note = Note("shards-missing", "Missing of the 3 shards of the source: 2.", True)
    monkeypatch.setattr(SampleTable, "part_notes", lambda self: [note])
    assert note in export_map(cache, output=tmp_path / "m.parquet").notes


def test_the_command_writes_the_map_beside_the_cache(cache):
    result = CliRunner().invoke(command, [str(cache), "--format", "map"], catch_exceptions=False)
    assert "embedding-atlas" in result.stdout
    assert cache.with_suffix(".map.parquet").is_file()
