"""The default name of a cache, and what an extraction into an existing cache decides."""

import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from bottleneck import extract
from bottleneck.data.source import read_source
from bottleneck.data.storage import LocalFiles
from bottleneck.errors import CacheError
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.extract import default_cache
from bottleneck.store.reader import FeatureCache

SMALL = {"backbone": "small_cnn", "weights": "none", "engine": "torch", "image_size": 64, "depth": 1}


@pytest.fixture
def folder(tmp_path):
    """Twelve images in data/images/, and two manifests: train.csv has ten of them, test.csv two."""
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    for number in range(12):
        Image.new("RGB", (40, 40), (number * 20, 0, 9)).save(images / f"{number:02}.png")
    for name, numbers in (("train", range(10)), ("test", (10, 11))):
        rows = "".join(f"images/{number:02}.png,{number % 2}\n" for number in numbers)
        (tmp_path / "data" / f"{name}.csv").write_text(f"image,label\n{rows}")
    return tmp_path / "data"


def rows_of(path):
    with FeatureCache(path) as cache:
        return dict(
            zip(cache.images.key, cache.features("bottleneck").read(0, len(cache.images)), strict=True)
        )


def names_of(notes):
    return [note.code for note in notes]


def test_two_manifests_of_one_folder_have_caches_of_their_own(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, test = (extract(folder / f"{name}.csv", **SMALL) for name in ("train", "test"))
    assert (train.cache, test.cache) == ("cache/train.csv--small_cnn.h5", "cache/test.csv--small_cnn.h5")
    assert sorted(rows_of(train.cache)) == [f"images/{number:02}.png" for number in range(10)]
    assert sorted(rows_of(test.cache)) == ["images/10.png", "images/11.png"]
    assert (train.notes, test.notes) == ([], [])


def test_sources_that_lie_together_have_different_default_names(folder):
    """Folders whose names differ after a dot; a file beside a folder of its name; forms of one list."""
    for name in ("v1.0", "v1.1", "train"):
        (folder / name).mkdir()
        Image.new("RGB", (9, 9)).save(folder / name / "x.png")
    (folder / "train.jsonl").write_text('{"image": "images/00.png"}\n')
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        archive.write(folder / "images" / "00.png", "x.png")
    sources = [folder / name for name in sorted(os.listdir(folder))]
    names = [default_cache(read_source(source), ExtractConfig()).name for source in sources]
    assert names == [f"{source.name}--efficientnet_lite0.h5" for source in sources]


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("/data/사진 1", "사진 1--efficientnet_lite0.h5"),
        ("https://host/list.csv?day=1&x=*", "list.csv-day=1&x=--efficientnet_lite0.h5"),
        ("memory://", "memory--efficientnet_lite0.h5"),
        ("/", "images--efficientnet_lite0.h5"),
    ],
)
def test_a_name_is_one_that_every_file_system_takes(folder, location, name):
    source = read_source(folder)
    object.__setattr__(source, "location", location)
    assert default_cache(source, ExtractConfig()) == Path("cache") / name


def test_a_name_of_any_length_is_shortened_and_stays_unique(folder):
    source, names = read_source(folder), set()
    for number in range(3):
        object.__setattr__(source, "location", f"/data/{'한' * 100}{number}")
        names.add(default_cache(source, ExtractConfig()).name)
    assert len(names) == 3
    assert max(len(name.encode()) for name in names) < 150


def test_another_source_that_would_remove_most_rows_is_refused(folder, tmp_path):
    cache = tmp_path / "x.h5"
    extract(folder / "train.csv", cache, **SMALL)
    before = cache.read_bytes()
    with pytest.raises(CacheError, match=r"train\.csv; .*test\.csv names 0 of its 10 images") as caught:
        extract(folder / "test.csv", cache)
    assert "-o" in caught.value.hint
    assert cache.read_bytes() == before


def test_the_rows_of_an_interrupted_run_of_another_source_are_not_removed(folder, tmp_path):
    (folder / "images" / "09.png").write_bytes(b"no image")
    with pytest.raises(Exception, match=r"09\.png"):
        extract(folder / "train.csv", tmp_path / "x.h5", on_error="fail", batch_size=2, **SMALL)
    with pytest.raises(CacheError, match=r"0 of its \d images"):
        extract(folder / "test.csv", tmp_path / "x.h5", **SMALL)


def test_another_source_with_most_of_the_images_is_told(folder, tmp_path):
    cache = tmp_path / "x.h5"
    extract(folder / "train.csv", cache, **SMALL)
    before = rows_of(cache)
    grown = (folder / "train.csv").read_text().replace("images/00.png,0\n", "") + "images/11.png,1\n"
    (folder / "more.csv").write_text(grown)
    result = extract(folder / "more.csv", cache)
    assert (result.computed, result.reused, result.removed) == (1, 9, 1)
    assert names_of(result.notes) == ["cache-source-changed", "rows-removed"]
    assert result.notes[1].details == {"removed": 1}
    after = rows_of(cache)
    assert all((after[key] == before[key]).all() for key in set(after) & set(before))
    with FeatureCache(cache) as opened:
        assert opened.source == str(folder / "more.csv")
        assert opened.source_root == str(folder)


def test_the_same_source_may_lose_most_of_its_images_with_a_note(folder, tmp_path):
    cache = tmp_path / "x.h5"
    extract(folder / "train.csv", cache, **SMALL)
    (folder / "train.csv").write_text("image,label\nimages/03.png,1\n")
    result = extract(folder / "train.csv", cache)
    assert (result.images, result.removed) == (1, 9)
    assert names_of(result.notes) == ["rows-removed"]


def test_images_that_cannot_be_read_at_present_keep_their_rows(folder, tmp_path, monkeypatch):
    first = extract(folder / "train.csv", tmp_path / "c.h5", **SMALL)
    before = rows_of(first.cache)
    source = read_source(folder / "train.csv")
    with monkeypatch.context() as outage:

        def refuse(self, key, *arguments):
            raise ConnectionRefusedError(111, "Connection refused")

        outage.setattr(LocalFiles, "stat", refuse)
        outage.setattr(LocalFiles, "read", refuse)
        second = extract(source, tmp_path / "c.h5", **SMALL)
    assert (second.images, second.failed) == (10, 0)
    assert {note.code: note.details for note in second.notes}["rows-kept-unread"] == {"kept": 10}
    assert all((rows_of(second.cache)[key] == row).all() for key, row in before.items())
    third = extract(folder / "train.csv", tmp_path / "c.h5", **SMALL)
    assert (third.images, third.reused, third.computed) == (10, 10, 0)
