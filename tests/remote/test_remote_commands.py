"""Commands whose cache lies at a URL: they read it there, add to it, or say what to do instead."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from bottleneck import FeatureCache, compare, extract, finetune, fit_heads
from bottleneck.cli.main import group
from bottleneck.data.kept_images import KeptImages
from bottleneck.errors import BottleneckError, CacheError
from bottleneck.extraction.feature_extractor import FeatureExtractor
from bottleneck.store.merge import merge
from tests.helpers.photographs import photograph, write_photographs

NETWORK = {"backbone": "small_cnn", "weights": "none", "image_size": 32, "depth": 2}
SMALL = {**NETWORK, "engine": "torch"}
FLAGS = [
    "--backbone",
    "small_cnn",
    "--weights",
    "none",
    "--image-size",
    "32",
    "--depth",
    "2",
    "--engine",
    "torch",
]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of photographs below the current one."""
    monkeypatch.chdir(tmp_path)
    write_photographs(tmp_path / "photos", ("a", "b"), 12)
    return tmp_path / "photos"


@pytest.fixture
def url(s3):
    return f"{s3.url}/x.h5"


def run(*arguments):
    """The JSON of a command, and what it says on stderr."""
    done = CliRunner().invoke(group, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def details(values, code):
    return [note for note in values["notes"] if note["code"] == code]


def require_url_alone(values, url):
    """Results name the URL and not the staging folder."""
    assert values["cache"] == url
    assert "machines" not in json.dumps(values)


def test_extract_add_images_and_try_it_dry(s3, url, photos):
    before, _ = run("extract", photos, "-o", url, "--dry-run", *FLAGS)
    assert (before["to_read"], s3.keys()) == (24, [])
    first, _ = run("extract", photos, "-o", url, *FLAGS)
    require_url_alone(first, url)
    near = extract(photos, "near.h5", **SMALL)
    with FeatureCache(url) as there, FeatureCache(near.cache) as here:
        rows = [cache.features("bottleneck").read(0, 24).tobytes() for cache in (there, here)]
    assert rows[0] == rows[1]
    for number in range(3):
        photograph(2, number).save(photos / "a" / f"new-{number}.jpg")
    plan, _ = run("extract", photos, "-o", url, "--dry-run")
    require_url_alone(plan, url)
    assert (plan["to_read"], plan["reused"]) == (3, 24)
    second, _ = run("extract", photos, "-o", url)
    require_url_alone(second, url)
    assert (second["computed"], second["reused"]) == (3, 24)
    assert details(second, "cache-uploaded")[0]["fetched"] > 10_000
    for command in (["cache", "info", url], ["cache", "verify", url], ["report", url]):
        run(*command)
    assert sorted(s3.keys()) == ["x--batchnorm.safetensors", "x.h5"]


def test_shards_are_written_and_merged_at_a_url(s3, url, photos):
    plan = ["--plan-file", "plan.json", "--precision", "fp32"]
    for number in (1, 2):
        values, _ = run("extract", photos, "-o", url, "--shard", f"{number}/2", *plan, *FLAGS)
        assert values["cache"] == f"{s3.url}/x--shard-{number}-of-2.h5"
    shards = [f"{s3.url}/x--shard-{number}-of-2.h5" for number in (1, 2)]
    assert run("cache", "merge", *shards, "-o", url, "--dry-run")[0]["images"] == 24
    merged, _ = run("cache", "merge", *shards, "-o", url)
    require_url_alone(merged, url)
    assert details(merged, "cache-uploaded")[0]["fetched"] == 0
    extract(photos, "near.h5", **SMALL)
    with FeatureCache(url) as there, FeatureCache("near.h5") as here:
        assert list(there.images.key) == list(here.images.key)
    write_photographs(Path("more"), ("a", "b"), 2)
    with pytest.raises(BottleneckError, match=rf"{url} exists already and is none of the caches"):
        merge(shards, url)


def test_maps_are_added_by_finetune_and_compare(s3, url, photos, capsys):
    extract(photos, url, val_fraction=0.25, **SMALL)
    head = fit_heads(url).to_json()["heads"][0]["path"]
    values, told = run("finetune", url, "--head", head, "--epochs", "1", "-o", "model.safetensors")
    assert "uploaded to s3://" in told
    assert "machines" not in json.dumps(values)
    maps = [key for key in sorted(s3.keys()) if key.startswith("x--") and key.endswith(".h5")]
    assert len(maps) == 1
    s3.front.asked.clear()
    finetune(url, head, epochs=1, output="again.safetensors")
    compare(url, unfreeze=(0, 1), seeds=1, epochs=1)
    assert not [asked for asked in s3.front.asked if asked[0] == "PUT"]
    assert run("evaluate", "model.safetensors", url)[0]["n"]
    assert run("predict", "model.safetensors", photos)[0]["predictions"]
    run("report", url, head, "model.safetensors")


def test_train_takes_a_cache_at_a_url(s3, url, photos):
    values, _ = run(
        *("train", photos, "--cache", url, "-o", "m.safetensors", "--finetune", "never"),
        *("--backbone", "small_cnn", "--weights", "none", "--image-size", "64", "--val-fraction", "0.25"),
    )
    assert Path(values["model"]).exists()
    assert "x.h5" in set(s3.keys())
    assert not Path("s3:").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "photos", "-o", "{}/m.safetensors", "--backbone", "small_cnn", "--weights", "none"),
        ("fit-head", "near.h5", "-o", "{}/heads"),
        ("report", "near.h5", "-o", "{}/report.html"),
        ("extract", "photos", "-o", "x.h5", "--plan-file", "{}/plan.json", *FLAGS),
        ("advise", "near.h5", "-o", "{}/advice"),
        ("compare", "near.h5", "-o", "{}/runs"),
        ("transfer-study", "photos", "-o", "{}/study"),
        ("cache", "export", "near.h5", "-o", "{}/x.npz"),
    ],
)
def test_other_outputs_stay_on_this_machine(s3, photos, arguments):
    extract(photos, "near.h5", val_fraction=0.25, **SMALL)
    with pytest.raises(BottleneckError, match=r"^s3://\S+ is a URL.* Give a path of this machine"):
        CliRunner().invoke(group, [each.format(s3.url) for each in arguments], catch_exceptions=False)
    assert not Path("s3:").exists()
    assert s3.keys() == []


def test_errors_name_the_url(s3, url, photos):
    for image in (photos / "a").iterdir():
        image.rename(photos / image.name)
    for image in (photos / "b").iterdir():
        image.unlink()
    (photos / "b").rmdir()
    extract(photos, url, **SMALL)
    with pytest.raises(BottleneckError, match=rf"^{url} holds no labels"):
        fit_heads(url, output="heads")


def test_images_are_kept_on_this_machine(s3, photos):
    with pytest.raises(BottleneckError, match=r"^s3://\S+/kept is a URL"):
        KeptImages(f"{s3.url}/kept")
    assert os.listdir() == ["photos"]


def test_the_feature_extractor_keeps_its_cache_here(s3, url, photos):
    extractor = FeatureExtractor(cache=url, backbone="small_cnn", weights="none", image_size=32)
    with pytest.raises(BottleneckError, match=rf"on this machine; got {url}\. Give"):
        extractor.fit_transform([str(path) for path in photos.rglob("*.jpg")][:4])
    assert os.listdir() == ["photos"]


@pytest.mark.parametrize(
    "given",
    ["s3://", "memory://x.h5", "dir://a/x.h5", "zip://x.h5::a.zip", "simplecache::s3://b/x.h5"],
)
def test_a_url_of_no_store_is_no_folder_of_this_machine(given, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(CacheError, match="is no URL that a cache is written to"):
        extract(photos, given, backbone="small_cnn")
    with pytest.raises(CacheError, match="is no URL that a cache is written to"):
        merge(["a.h5", "b.h5"], given)
    assert set(tmp_path.iterdir()) == before
