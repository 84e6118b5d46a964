"""`drift` between sets that are alike, that differ, and that share images; its AUC against scikit-learn's."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from bottleneck import drift, extract
from bottleneck.cli.main import group
from bottleneck.errors import BottleneckError, CacheError, EngineError, FingerprintError, FitError, Note
from bottleneck.heads.metrics import auc
from bottleneck.samples import SampleTable, Target
from bottleneck.store.merge import merge
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.drift.domain import interval, tell_apart
from tests.helpers.caches import class_target, write_cache
from tests.helpers.stripes import write_stripes

N, WIDTH = 150, 12


def rows(n, seed, shift=0.0):
    """Rows (n, 12) around three centres, moved along one feature, and their codes."""
    draw = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    x = draw.normal(size=(n, WIDTH)) + 4 * np.eye(3, WIDTH)[codes]
    x[:, 5] += shift
    return x.astype(np.float32), codes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("drift")


@pytest.fixture(scope="module")
def old(folder):
    x, codes = rows(N, 0)
    return write_cache(folder / "old.h5", x, [class_target(codes, names=("개", "b", "c"))])


def write_new(folder, x, name, **options):
    return write_cache(folder / f"{name}.h5", x, options.pop("targets", []), folder=name, **options)


def test_images_of_one_kind_are_not_told_apart(old, folder):
    found = drift(old, write_new(folder, rows(120, 1)[0], "alike"))
    assert found.p_value > 0.05
    assert found.auc < 0.6
    assert found.verdict.startswith("No difference is shown")
    assert not any(each["flag"] for each in found.classes)
    assert found.foreign_share < 0.05
    assert (found.old, found.new, found.copies) == (N, 120, 0)


def test_moved_images_are_told_and_the_farthest_named(old, folder):
    x, _ = rows(100, 2, shift=2.0)
    x[7] = 30 * np.eye(WIDTH)[11]  # like none
    x = np.delete(x, np.arange(2, 100, 3), axis=0)  # the third class, "c"
    found = drift(old, write_new(folder, x, "새"), n=3)
    assert found.p_value == pytest.approx(1 / 201)
    assert found.auc > 0.8
    assert found.auc_ci95[0] > 0.75
    assert found.foreign[0]["image"] == "새/005.png"
    assert found.foreign[0]["beyond"] == 1.0
    assert len(found.foreign) == 3
    shares = {each["class"]: each for each in found.classes}
    assert shares["c"]["flag"]
    assert shares["c"]["difference"] < -0.2
    low, high = shares["c"]["interval"]
    assert low < shares["c"]["difference"] < high < 0


def test_copies_are_told_and_left_out(old, folder):
    x, _ = rows(N + 40, 0)
    more = write_cache(folder / "more.h5", x, [])
    found = drift(old, more)
    assert (found.new, found.copies) == (40, N)
    assert "copies-left-out" in {note.code for note in found.notes}
    with pytest.raises(CacheError, match="none is new"):
        drift(old, write_cache(folder / "same.h5", x[:N], []))


def test_few_images_of_other_numbers_and_caches_without_labels(old, folder):
    found = drift(old, write_new(folder, rows(9, 3)[0], "few"))
    assert found.auc is found.p_value is None
    assert "Too few images" in found.verdict
    assert len(found.foreign) == 9
    plain = write_new(folder, rows(N, 4)[0], "plain")
    found = drift(plain, write_new(folder, rows(25, 5)[0], "fewer"))
    assert {"class-shares-left-out", "sizes-differ"} <= {note.code for note in found.notes}
    assert found.classes == []
    assert found.target is None


def test_missing_shards_are_told_once_also_without_labels(folder, monkeypatch):
    note = Note("shards-missing", "Missing of the 3 shards of the source: 2.", True)
    monkeypatch.setattr(SampleTable, "part_notes", lambda self: [note])
    found = drift(write_new(folder, rows(20, 4)[0], "part"), write_new(folder, rows(20, 5)[0], "other part"))
    assert found.notes.count(note) == 1


def test_other_features_and_unnamed_targets_are_refused(old, folder):
    with pytest.raises(FingerprintError, match="dtype"):
        drift(old, write_new(folder, rows(30, 6)[0], "half", dtype="float16"))
    x, codes = rows(30, 6)
    two = [class_target(codes), Target("age", "regression", x[:, 0].astype(float))]
    several = write_new(folder, x, "two", targets=two)
    with pytest.raises(FitError, match="2 targets"):
        drift(several, old)
    assert {note.code for note in drift(several, old, target="age").notes} >= {"class-shares-left-out"}
    with pytest.raises(BottleneckError, match="permutations is 5"):
        drift(old, old, permutations=5)


def test_the_area_is_scikit_learns_and_its_interval_covers():
    draw = np.random.default_rng(0)
    new = np.arange(60) % 3 == 0
    scores = np.round(draw.normal(size=60) + new, 1)
    assert auc(new, scores) == pytest.approx(roc_auc_score(new, scores))
    truth, inside = 0.7602, 0  # of normal scores that are moved by 1
    for _ in range(300):
        low, high = interval(draw.normal(size=60) + new, new)
        inside += low <= truth <= high
    assert 0.9 <= inside / 300 <= 0.99
    low, high = interval(new * 1.0, new)
    assert low < 0.9
    assert high == 1


def test_p_values_of_equal_sets_are_spread_evenly():
    draw = np.random.default_rng(0)
    new = np.arange(60) % 2 == 0
    p = [tell_apart(draw.normal(size=(60, 5)), new, permutations=39, seed=i).p for i in range(60)]
    assert 0.35 < np.mean(p) < 0.65
    assert np.mean(np.array(p) <= 0.1) < 0.25


def test_the_command_prints_the_verdict_and_one_object(old, folder):
    new = write_new(folder, rows(40, 7, shift=3.0)[0], "command")
    shown = CliRunner().invoke(group, ["drift", str(old), str(new)])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("The new images")
    printed = json.loads(CliRunner().invoke(group, ["drift", str(old), str(new), "--json"]).stdout)
    assert printed["auc"] > 0.9
    assert printed["foreign"][0].keys() == {"image", "score", "beyond"}


def test_a_folder_is_computed_by_the_random_network_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"backbone": "small_cnn", "depth": 2, "image_size": 16}
    whole = write_stripes(tmp_path / "whole", images=12)
    images, new = tmp_path / "images", whole / "val"
    (whole / "train").rename(images)
    cache = extract(images, tmp_path / "old.h5", **settings).cache
    with FeatureCache(extract(new, tmp_path / "alone.h5", **settings).cache) as alone:
        found = drift(cache, new)
        with FeatureCache(cache) as old, FeatureCache(found.features) as fresh:
            fingerprint = fresh.vector_fingerprint("bottleneck")
            assert fingerprint == old.vector_fingerprint("bottleneck")
            assert fingerprint != alone.vector_fingerprint("bottleneck")  # by its own images' statistics
            assert not np.array_equal(fresh.to_numpy(), alone.to_numpy())
    assert (found.old, found.new) == (48, 16)
    assert drift(cache, new).auc == found.auc  # from the kept features

    # Where features are kept that another network gave, they are not compared, and are told.
    other = extract(images / "class0", tmp_path / "other.h5", **settings).cache
    with pytest.raises(FingerprintError, match=r"other settings: backbone\..*Rename") as error:
        drift(other, new)
    assert found.features in str(error.value)


@pytest.fixture(scope="module")
def made_in_int8(tmp_path_factory):
    """A folder with a cache in int8 of 16 images, with others and with the graph; and a copy of it all."""
    folder = tmp_path_factory.mktemp("int8") / "here"
    settings = {"backbone": "small_cnn", "depth": 1, "image_size": 16, "precision": "int8"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOTTLENECK_CACHE", str(folder / "user"))
        whole = write_stripes(folder / "whole", images=12)
        extract(whole / "val", folder / "old.h5", force=True, **settings)
    return folder, shutil.copytree(folder, folder.with_name("kept"))


@pytest.fixture
def quantised(made_in_int8, tmp_path, monkeypatch):
    """The cache and the folder of others, as they were made; the cache names its images by their path."""
    folder, kept = made_in_int8
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOTTLENECK_CACHE", str(folder / "user"))
    return folder / "old.h5", folder / "whole" / "train"


def rows_by_digest(path):
    with FeatureCache(path) as cache:
        return dict(zip(map(bytes, cache.images.digest), cache.to_numpy()[0], strict=True))


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_folder_beside_an_int8_cache_has_the_rows_that_extract_would_add(quantised, is_stored, tmp_path):
    old, new = quantised
    if not is_stored:  # the graph is made again of the images that it was calibrated on
        shutil.rmtree(old.parent / "user" / "graphs")
    found = drift(old, new, force=True)
    assert (found.old, found.new) == (16, 48)
    used = [{"engine": "onnxruntime", "precision": "int8", "nodes": ["bottleneck"]}]
    assert (found.engines, found.precisions) == (used, {"bottleneck": "int8"})
    copy = shutil.copytree(new.parent / "val", tmp_path / "val")
    added = shutil.copy(old, tmp_path / "added.h5")
    shutil.copytree(new, copy / "new")
    extract(copy, added, source_moved=True, force=True)
    rows, expected = rows_by_digest(found.features), rows_by_digest(added)
    assert all(np.array_equal(rows[digest], expected[digest]) for digest in rows)
    merge([old, found.features], tmp_path / "both.h5")
    again = drift(old, new, force=True)  # its features are there
    assert (again.engines, again.precisions) == ([], {"bottleneck": "int8"})
    assert [note.code for note in again.notes] == [note.code for note in found.notes]


def test_without_graph_and_images_an_int8_cache_says_what_is_lacking(quantised):
    old, new = quantised
    shutil.rmtree(old.parent / "user" / "graphs")
    shutil.rmtree(new.parent / "val")
    with pytest.raises(EngineError, match=r"neither that graph nor.*extract all images again"):
        drift(old, new)
    with pytest.raises(FingerprintError, match=r"in int8; those in fp32 would.*Leave --precision out"):
        drift(old, new, precision="fp32")
