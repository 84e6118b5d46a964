"""`similar` as a user meets it: keys and new images, all of them, groups, tables and the contact sheet."""

import csv
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bottleneck import FeatureCache, extract
from tests.helpers.photographs import photograph, write_photographs


@pytest.fixture
def shown(tmp_path):
    """A source of its own with two copies of an image, and its cache."""
    source = write_photographs(tmp_path / "photos", each=4)
    shutil.copy(source / "bees" / "001.jpg", source / "ants" / "copy.jpg")
    extract(source, tmp_path / "x.h5")
    return SimpleNamespace(source=source, cache=tmp_path / "x.h5")


def brute_force(cache, key, count):
    """The nearest images and their cosines, in float64 from the whole cache."""
    with FeatureCache(cache) as opened:
        rows = opened.features("bottleneck").read(0, len(opened.images.key)).astype(np.float64)
        keys = opened.images.key
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    own = list(keys).index(key)
    cosine = rows @ rows[own]
    cosine[own] = -1
    order = np.argsort(-cosine)[:count]
    return [str(key) for key in keys[order]], cosine[order]


def test_an_image_of_the_cache(fitted, run):
    (found,) = run("similar", fitted.cache, "개미 🐜/003.jpg", "--count", 4, "--json").json["neighbours"]
    keys, cosines = brute_force(fitted.cache, "개미 🐜/003.jpg", 4)
    assert found["image"] == "개미 🐜/003.jpg"
    assert [one["image"] for one in found["neighbours"]] == keys
    assert [one["cosine"] for one in found["neighbours"]] == pytest.approx(list(cosines), abs=1e-5)
    assert all(key.startswith("개미") for key in keys)


def test_every_image_of_the_cache(fitted, tmp_path, run):
    result = run("similar", fitted.cache, "--all", "--count", 3, "-o", tmp_path / "n.csv", "--json").json
    assert len(result["neighbours"]) == 30
    for found in result["neighbours"][::7]:
        assert [one["image"] for one in found["neighbours"]] == brute_force(fitted.cache, found["image"], 3)[
            0
        ]
    with open(tmp_path / "n.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 90
    assert (rows[4]["rank"], rows[4]["neighbour"]) == ("2", result["neighbours"][1]["neighbours"][1]["image"])


def test_a_new_image_is_computed_as_the_cache_was(fitted, tmp_path, run):
    """A lossless copy of an image is nearest to it; the same bytes need no network."""
    original = fitted.source / "bees" / "004.jpg"
    Image.open(original).save(tmp_path / "벌 🐝.png")
    shutil.copy(original, tmp_path / "same bytes.jpg")
    result = run("similar", fitted.cache, tmp_path / "벌 🐝.png", tmp_path / "same bytes.jpg", "--json").json
    for found in result["neighbours"]:
        assert found["neighbours"][0]["image"] == "bees/004.jpg"
        assert found["neighbours"][0]["cosine"] == pytest.approx(1, abs=1e-4)


def test_an_image_of_the_source_is_not_its_own_neighbour(fitted, run, monkeypatch):
    monkeypatch.chdir(fitted.source)
    monkeypatch.setitem(sys.modules, "bottleneck.backbones.registry", None)  # nothing is to be computed
    (found,) = run("similar", fitted.cache, "./bees/004.jpg", "--json").json["neighbours"]
    keys, _ = brute_force(fitted.cache, "bees/004.jpg", 10)
    assert [one["image"] for one in found["neighbours"]] == keys


def test_look_alikes_are_grouped(shown, tmp_path, run):
    result = run("similar", shown.cache, "--threshold", 0.9999, "-o", tmp_path / "g.csv", "--json").json
    assert result["groups"] == [["ants/copy.jpg", "bees/001.jpg"]]
    assert (result["neighbours"], result["pairs"]) == ([], 1)
    with open(tmp_path / "g.csv", newline="", encoding="utf-8") as file:
        group = {row["image"]: row["group"] for row in csv.DictReader(file)}
    assert len(group) == 13
    assert group["bees/001.jpg"] == group["ants/copy.jpg"] == "ants/copy.jpg"
    assert group["bees/002.jpg"] == "bees/002.jpg"


def test_records_carry_neighbours_and_group(shown, tmp_path, run):
    output = tmp_path / "deep" / "n.jsonl"
    flags = ("--all", "--threshold", 0.9999, "--count", 1, "-o", output)
    assert run("similar", shown.cache, *flags).code == 0
    records = {(row := json.loads(line))["image"]: row for line in output.read_text("utf-8").splitlines()}
    assert records["bees/001.jpg"]["neighbours"][0]["image"] == "ants/copy.jpg"
    assert records["bees/001.jpg"]["group"] == "ants/copy.jpg"


def test_the_sheet_shows_what_can_be_read_and_says_what_cannot(shown, tmp_path, run):
    (shown.source / "bees" / "002.jpg").unlink()
    (shown.source / "bees" / "003.jpg").write_text("damaged")
    photograph(1, 50).save(tmp_path / "new.png")
    flags = ("--count", 6, "--threshold", 0.5, "--sheet", tmp_path / "s.png")
    result = run("similar", shown.cache, "bees/001.jpg", tmp_path / "new.png", *flags, "--json").json
    assert {row["image"] for row in result["unreadable"]} == {"bees/002.jpg", "bees/003.jpg"}
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 4 * 144  # wider ones cannot be read
        assert sheet.height > 4 * 144
        assert len(sheet.convert("RGB").getcolors(1 << 24)) > 1000


def test_a_sheet_of_a_source_that_is_gone_still_tells_names(shown, tmp_path, run):
    shutil.rmtree(shown.source)
    result = run("similar", shown.cache, "bees/001.jpg", "--count", 2, "--sheet", tmp_path / "s.png")
    assert result.code == 0
    assert "3 images of the sheet cannot be read" in result.out
    assert (tmp_path / "s.png").exists()


def test_names_that_lead_nowhere(fitted, tmp_path, run):
    mistyped = run("similar", fitted.cache, "bees/04.jpg")
    assert mistyped.code == 1
    assert "Did you mean" in mistyped.err
    assert "bees/004.jpg" in mistyped.err
    bare = run("similar", fitted.cache, "wasps/004.jpg")
    assert "ants/004.jpg" in bare.err
    assert "is a folder" in run("similar", fitted.cache, fitted.source).err
    (tmp_path / "text.jpg").write_text("no image")
    damaged = run("similar", fitted.cache, tmp_path / "text.jpg")
    assert (damaged.code, len(damaged.err.strip().splitlines())) == (1, 1)
    mixed = run("similar", fitted.cache, tmp_path / "text.jpg", "bees/004.jpg", "--json").json
    assert [row["image"] for row in mixed["failed"]] == [str(tmp_path / "text.jpg")]
    assert len(mixed["neighbours"]) == 1


def test_a_node_that_is_missing_or_a_map(fitted, tmp_path, run):
    missing = run("similar", fitted.cache, "--all", "--node", "blocks.4")
    assert missing.code == 1
    assert "--node blocks.4" in missing.err
    maps = tmp_path / "maps.h5"
    extract(fitted.source, maps, nodes=("blocks.5@none",), limit=3, engine="torch")
    result = run("similar", maps, "--all")
    assert result.code == 1
    assert "--node bottleneck" in result.err


@pytest.mark.parametrize("flags", [(), ("--all", "bees/004.jpg"), ("--all", "--threshold", "2")])
def test_wrong_usage(fitted, run, flags):
    assert run("similar", fitted.cache, *flags).code == 2


def test_an_output_of_another_kind_is_refused_before_any_work(fitted, tmp_path, run):
    result = run("similar", fitted.cache, "--all", "-o", tmp_path / "n.xlsx")
    assert result.code == 1
    assert ".csv or .jsonl" in result.err
