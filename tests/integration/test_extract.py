"""`extract` as a user meets it: everything is a row or a named failure, and nothing is computed twice."""

import json
import shutil
import time

import h5py
import numpy as np
import pytest
from PIL import Image

from bottleneck import FeatureCache, extract
from bottleneck.data.source import Source
from bottleneck.files import CLOCK_TICK
from tests.helpers.photographs import photograph, write_photographs


def test_every_file_is_a_row_or_a_named_failure(photographs, tmp_path, run):
    (photographs / "ants" / "text.jpg").write_text("not an image")
    (photographs / "ants" / "empty.png").touch()
    whole = (photographs / "bees" / "001.jpg").read_bytes()
    (photographs / "bees" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (photographs / "notes.txt").write_text("ignored")
    result = run("extract", photographs, "-o", tmp_path / "x.h5", "--json")
    assert result.code == 0
    assert result.json["images"] == result.json["samples"] == 30
    assert result.json["failed"] == 3
    assert result.json["ignored"] == 1
    assert set(result.json["failures"]) == {"ants/text.jpg", "ants/empty.png", "bees/truncated.jpg"}


def test_second_run_computes_nothing_and_leaves_the_file(photographs, tmp_path, run):
    cache = tmp_path / "x.h5"
    time.sleep(2 * CLOCK_TICK / 1e9)  # the file of an image that has just changed is recorded in the next run
    first = run("extract", photographs, "-o", cache, "--json").json
    before = cache.read_bytes()
    second = run("extract", photographs, "-o", cache, "--json").json
    assert (first["computed"], first["reused"]) == (30, 0)
    assert (second["computed"], second["reused"]) == (0, 30)
    assert second["engine"] is None
    assert cache.read_bytes() == before


def test_only_what_changed_is_computed(photographs, tmp_path):
    cache = tmp_path / "x.h5"
    extract(photographs, cache)
    with FeatureCache(cache) as opened:
        before = dict(zip(opened.images.key, opened.features("bottleneck").read(0, 30), strict=True))
    (photographs / "ants" / "000.jpg").rename(photographs / "ants" / "renamed.jpg")
    shutil.copy(photographs / "ants" / "001.jpg", photographs / "bees" / "copy.jpg")
    (photographs / "ants" / "002.jpg").unlink()
    photograph(1, 99).save(photographs / "bees" / "new.jpg")
    photograph(2, 98).save(photographs / "bees" / "003.jpg")
    result = extract(photographs, cache)
    assert (result.computed, result.images, result.removed) == (2, 31, 2)
    with FeatureCache(cache) as opened:
        after = dict(zip(opened.images.key, opened.features("bottleneck").read(0, 31), strict=True))
    assert np.array_equal(after["ants/renamed.jpg"], before["ants/000.jpg"])
    assert np.array_equal(after["bees/copy.jpg"], before["ants/001.jpg"])
    assert not np.array_equal(after["bees/003.jpg"], before["bees/003.jpg"])
    assert "ants/002.jpg" not in after
    untouched = set(before) & set(after) - {"bees/003.jpg"}
    assert all(np.array_equal(after[key], before[key]) for key in untouched)


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        (["--dtype", "float32"], ["dtype"]),
        (["--image-size", "150"], ["preprocess.size", "preprocess.resize"]),
        (["--backbone", "resnet18", "--dtype", "float32"], ["backbone.name", "dtype"]),
    ],
)
def test_other_settings_are_refused_by_name(fitted, run, flags, fields):
    before = fitted.cache.read_bytes()
    result = run("extract", fitted.source, "-o", fitted.cache, *flags)
    assert result.code == 1
    assert all(field in result.err for field in fields)
    assert fitted.cache.read_bytes() == before


def test_another_source_into_the_same_cache_is_refused(fitted, tmp_path, run):
    other = write_photographs(tmp_path / "other", each=2)
    result = run("extract", other, "-o", fitted.cache)
    assert result.code == 1
    assert "source" in result.err


def test_adding_a_node_leaves_the_others_as_they_are(photographs, tmp_path):
    cache = tmp_path / "x.h5"
    extract(photographs, cache, limit=6)
    with h5py.File(cache) as file:
        before = file["features/bottleneck"][...]
    nodes = ("blocks.4@avg2", "blocks.5@none")
    result = extract(photographs, cache, nodes=nodes, engine="torch", limit=6)
    assert result.nodes == {"bottleneck": (1280,), "blocks.4@avg2": (448,), "blocks.5@none": (192, 7, 7)}
    assert cache.with_name("x--blocks.5.h5").exists()
    with h5py.File(cache) as file:
        assert np.array_equal(file["features/bottleneck"][...], before)
    with FeatureCache(cache) as opened:
        maps = opened.features("blocks.5@none").take(np.array([3, 0]))
    assert maps.shape == (2, 192, 7, 7)


def test_a_row_does_not_depend_on_its_batch_or_the_workers(photographs, tmp_path):
    rows = []
    for number, (batch_size, workers) in enumerate([(32, 2), (1, 0), (7, 3)]):
        cache = tmp_path / f"{number}.h5"
        extract(photographs, cache, dtype="float32", batch_size=batch_size, workers=workers)
        with FeatureCache(cache) as opened:
            rows.append(opened.features("bottleneck").read(0, 30))
    for other in rows[1:]:
        np.testing.assert_allclose(other, rows[0], rtol=1e-5, atol=1e-5 * np.abs(rows[0]).max())


def test_views_stand_beside_the_plain_features_and_repeat(photographs, tmp_path):
    for name in ("a.h5", "b.h5"):
        extract(photographs, tmp_path / name, views=2, limit=6)
    with FeatureCache(tmp_path / "a.h5") as a, FeatureCache(tmp_path / "b.h5") as b:
        views = a.views("bottleneck").read(0, 6)
        assert views.shape == (6, 2, 1280)
        assert np.array_equal(views, b.views("bottleneck").read(0, 6))
        assert not np.array_equal(views[:, 0], views[:, 1])
        assert not np.array_equal(views[:, 0], a.features("bottleneck").read(0, 6))


def test_views_can_be_asked_for_later(photographs, tmp_path, run):
    """Of a cache without views they are computed; of one that has others they are refused, not left out."""
    cache, at_once = tmp_path / "c.h5", tmp_path / "at once.h5"
    network = {"backbone": "small_cnn", "weights": "none", "image_size": 64}
    small = {**network, "engine": "torch", "limit": 6}
    extract(photographs, cache, **small)
    assert extract(photographs, cache, views=2, engine="torch").computed == 30
    extract(photographs, at_once, **{**small, "limit": None}, views=2)
    with FeatureCache(cache) as later, FeatureCache(at_once) as together:
        assert later.views("bottleneck").shape == (30, 2, later.nodes["bottleneck"].shape[0])
        assert later.nodes["bottleneck"].views == together.nodes["bottleneck"].views
    extract(photographs, cache, nodes=("block1", "bottleneck"), engine="torch")
    for asked in (["--views", "3"], ["--node", "block2", "--views", "3"]):
        refused = run("extract", photographs, "-o", cache, *asked)
        assert refused.code == 1
        assert "views.count is 2 there, 3 here" in refused.err
    shutil.copy(photographs / "bees" / "000.jpg", photographs / "bees" / "copy.jpg")
    photograph(1, 99).save(photographs / "bees" / "new.jpg")
    assert extract(photographs, cache, views=2, engine="torch").images == 32
    with FeatureCache(cache) as grown:
        assert grown.views("bottleneck").shape[:2] == (32, 2)
        assert [node.views["count"] for node in grown.nodes.values()] == [2, 2]


def test_grey_images_in_one_channel(photographs, tmp_path):
    result = extract(photographs, tmp_path / "grey.h5", in_channels=1, limit=6, engine="torch")
    with FeatureCache(result.cache) as cache:
        assert cache.spec.preprocess["mode"] == "L"
        assert cache.spec.backbone["in_channels"] == 1


def test_dry_run_writes_nothing(photographs, tmp_path, run):
    before = sorted(tmp_path.iterdir())
    result = run("extract", photographs, "-o", tmp_path / "new" / "x.h5", "--dry-run", "--json")
    assert result.json["to_read"] == 30
    assert result.json["bytes_to_write"] == 30 * 1280 * 2
    assert sorted(tmp_path.iterdir()) == before


def test_dry_run_of_a_random_network_writes_nothing(photographs, tmp_path, run):
    random = ["--backbone", "small_cnn", "--weights", "none", "--engine", "torch"]
    result = run("extract", photographs, "-o", tmp_path / "new" / "x.h5", *random, "--dry-run", "--json")
    assert result.json["to_read"] == 30
    assert list(tmp_path.iterdir()) == [photographs]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "cannot be read: Permission denied"),
        (TimeoutError("the server does not answer"), "cannot be read: the server does not answer"),
    ],
)
def test_an_image_whose_size_cannot_be_had_fails_with_the_reason(
    photographs, tmp_path, monkeypatch, error, reason
):
    stat = Source.stat

    def refuse(source, key):
        if key == "bees/001.jpg":
            raise error
        return stat(source, key)

    monkeypatch.setattr(Source, "stat", refuse)
    result = extract(photographs, tmp_path / "x.h5", backbone="small_cnn", weights="none", engine="torch")
    assert result.failures == {"bees/001.jpg": reason}
    assert result.images == 29


def test_on_error_fail_stops_and_the_rest_resumes(photographs, tmp_path, run):
    bad = photographs / "bees" / "bad.jpg"
    bad.write_text("no")
    stopped = run("extract", photographs, "-o", tmp_path / "x.h5", "--on-error", "fail")
    assert stopped.code == 1
    assert "bees/bad.jpg" in stopped.err
    bad.unlink()
    assert run("extract", photographs, "-o", tmp_path / "x.h5", "--json").json["images"] == 30


def test_a_large_image_that_compresses_to_nothing_is_a_failure(photographs, tmp_path):
    Image.new("1", (16_000, 13_000)).save(photographs / "ants" / "bomb.png")
    result = extract(photographs, tmp_path / "x.h5")
    assert "pixels" in result.failures["ants/bomb.png"]
    assert result.images == 30


@pytest.mark.parametrize("broken", ["not hdf5 at all", ""])
def test_a_file_that_is_no_cache_is_refused_and_kept(photographs, tmp_path, run, broken):
    path = tmp_path / "x.h5"
    path.write_text(broken)
    result = run("extract", photographs, "-o", path)
    assert result.code == 1
    assert len(result.err.strip().splitlines()) == 1
    assert path.read_text() == broken


def test_no_images_is_one_clear_line(tmp_path, run):
    (tmp_path / "empty").mkdir()
    result = run("extract", tmp_path / "empty", "-o", tmp_path / "x.h5")
    assert result.code == 1
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "x.h5").exists()


def test_not_one_row_is_a_failure_of_the_command_and_named_by_those_that_follow(tmp_path, run):
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    (folder / "broken.jpg").write_bytes(b"no picture")
    cache = tmp_path / "c.h5"
    extracted = run("extract", folder.parent, "-o", cache, "--json")
    assert extracted.code == 1
    assert json.loads(extracted.out)["failed"] == 1
    fitted = run("fit-head", cache)
    assert fitted.code == 1
    for outcome in (extracted, fitted):
        assert "has no rows" in outcome.err
        assert "a/broken.jpg" in outcome.err
