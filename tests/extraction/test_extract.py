"""The default name of a cache, and what an extraction into an existing cache decides."""

import hashlib
import io
import os
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bottleneck import extract, train
from bottleneck.cli.cache import info
from bottleneck.cli.extract import command
from bottleneck.data.config import ReadConfig
from bottleneck.data.read_source import read_source
from bottleneck.data.source import Source
from bottleneck.data.storage import LocalFiles
from bottleneck.errors import CacheError, FingerprintError, StrictError
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.settings import default_cache
from bottleneck.extraction.survey import survey
from bottleneck.progress import Reporter
from bottleneck.store.layout import cache_name
from bottleneck.store.reader import FeatureCache
from bottleneck.store.verify import verify
from bottleneck.studies.transfer_study.study import default_folder
from tests.helpers.recorder import Recorder

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
    ("source", "name"),
    [
        ("photos.v2", "photos.v2"),
        ("lists/train.csv", "train.csv"),
        (".", "study 1"),
        ("..", "parent.d"),
        ("https://host/photos.v2/", "photos.v2"),
    ],
)
def test_a_study_has_the_whole_name_of_its_source(source, name, tmp_path, monkeypatch):
    """The part before the last dot made one folder of photos.v1 and photos.v2; ".." left studies/."""
    here = tmp_path / "parent.d" / "study 1"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    assert default_folder(source) == Path("studies") / name


@pytest.mark.parametrize(
    ("cache", "name"),
    [("a.v2.h5", "a.v2"), ("a.hdf5", "a"), ("a.h5.parts", "a"), ("a.H5", "a"), ("a.v2", "a.v2")],
)
def test_files_made_of_a_cache_have_its_name(cache, name):
    assert cache_name(Path("cache") / cache) == name


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
    result = extract(folder / "more.csv", cache, engine="torch")
    assert (result.computed, result.reused, result.removed) == (1, 9, 1)
    assert names_of(result.notes) == ["cache-source-changed", "rows-removed"]
    assert result.notes[1].details == {"removed": 1, "before": 10}
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


@pytest.mark.parametrize("dry", [False, True])
def test_strict_refuses_to_remove_rows_and_leaves_the_cache_as_it_was(folder, tmp_path, dry):
    cache = tmp_path / "x.h5"
    extract(folder / "train.csv", cache, **SMALL)
    before = cache.read_bytes()
    (folder / "train.csv").write_text("image,label\nimages/03.png,1\nimages/04.png,0\n")
    with pytest.raises(StrictError, match="rows of 8 images"):
        (survey if dry else extract)(folder / "train.csv", cache, strict=True)
    assert cache.read_bytes() == before
    assert not cache.with_name("x.h5.parts").exists()


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


def changed_pair(folder, times):
    """Two different images of equal size whose times are those given, or as they are."""
    for name, colour in (("a.bmp", 10), ("b.bmp", 200)):
        Image.new("RGB", (40, 40), (colour, 0, 0)).save(folder / name)
        if times is not None:
            os.utime(folder / name, ns=(times, times))
    return folder / "a.bmp", folder / "b.bmp"


@pytest.mark.parametrize("times", [None, 0, 315532800 * 10**9, 16 * 10**17, 16 * 10**17 + 7])
@pytest.mark.parametrize("change", ["swap", "replace", "write in place"])
def test_files_that_change_behind_their_size_and_time_get_their_own_features(tmp_path, times, change):
    folder, cache = tmp_path / "photos", tmp_path / "x.h5"
    folder.mkdir()
    a, b = changed_pair(folder, times)
    extract(folder, cache, **SMALL)
    stats = {path: path.stat() for path in (a, b)}
    if change == "swap":
        a.rename(folder / "c")
        b.rename(a)
        (folder / "c").rename(b)
    elif change == "replace":
        Image.new("RGB", (40, 40), (99, 99, 0)).save(folder / "new.bmp")
        (folder / "new.bmp").replace(a)
    else:
        a.write_bytes(b.read_bytes())
    for path, stat in stats.items():
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    result = extract(folder, cache, engine="torch")
    assert result.computed == (1 if change == "replace" else 0)  # other features are known by their digest
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (a, b)]
    with FeatureCache(cache) as opened:
        assert opened.images.digests() == digests


def test_a_zip_whose_members_have_one_time_and_size(tmp_path):
    for first, second in (("a.bmp", "b.bmp"), ("b.bmp", "a.bmp")):
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:  # ZipInfo's time is 1980-01-01
            for name, colour in ((first, 10), (second, 200)):
                data = io.BytesIO()
                Image.new("RGB", (40, 40), (colour, 0, 0)).save(data, "bmp")
                archive.writestr(zipfile.ZipInfo(name), data.getvalue())
        result = extract(tmp_path / "photos.zip", tmp_path / "x.h5", **SMALL)
    assert result.computed == 0
    with FeatureCache(tmp_path / "x.h5") as cache, zipfile.ZipFile(tmp_path / "photos.zip") as archive:
        digests = [hashlib.sha256(archive.read(key)).digest() for key in cache.images.key]
        assert cache.images.digests() == digests


def test_reread_reads_all_and_computes_what_has_changed(folder, tmp_path, monkeypatch):
    cache = tmp_path / "x.h5"
    extract(folder / "train.csv", cache, **SMALL)
    reads = []
    read = Source.read
    monkeypatch.setattr(Source, "read", lambda source, key: reads.append(key) or read(source, key))
    assert extract(folder / "train.csv", cache).computed == 0
    assert reads == []
    assert survey(folder / "train.csv", cache, ExtractConfig(reread=True)).to_read == 10
    assert extract(folder / "train.csv", cache, reread=True).computed == 0
    assert len(reads) == 10


def test_a_moved_folder_keeps_its_features_and_says_so(folder, tmp_path):
    cache = tmp_path / "x.h5"
    extract(folder / "train.csv", cache, nodes=["bottleneck", "features@none"], **SMALL)
    before = rows_of(cache)
    moved = folder.rename(tmp_path / "elsewhere")
    for path in (moved / "images").iterdir():
        os.utime(path)
    result = extract(moved / "train.csv", cache)
    assert (result.computed, result.reused, result.removed) == (0, 10, 0)
    assert names_of(result.notes) == ["source-moved"]
    after = rows_of(cache)
    assert all((after[key] == before[key]).all() for key in before)
    with FeatureCache(cache) as opened:
        assert opened.source_root == str(moved)
        assert opened.features("features@none").read(0, 10).shape[0] == 10
    assert extract(moved / "train.csv", cache).notes == []


def test_a_moved_and_rearranged_folder_is_refused_with_the_flag_that_keeps_its_features(folder, tmp_path):
    cache = tmp_path / "x.h5"
    extract(folder / "images", cache, **SMALL)
    moved = tmp_path / "moved" / "a"
    moved.parent.mkdir()
    (folder / "images").rename(moved)
    with pytest.raises(FingerprintError, match="source_root") as caught:
        extract(moved.parent, cache)
    assert "--source-moved" in caught.value.hint
    result = extract(moved.parent, cache, source_moved=True)
    assert (result.computed, result.reused) == (0, 12)
    assert names_of(result.notes) == ["source-moved", "rows-removed"]


def test_other_images_under_the_same_names_are_no_moved_data_set(folder, tmp_path):
    cache = tmp_path / "x.h5"
    extract(folder / "images", cache, **SMALL)
    other = tmp_path / "other"
    other.mkdir()
    for number in range(12):
        Image.new("RGB", (40, 40), (number * 20, 99, 9)).save(other / f"{number:02}.png")
    with pytest.raises(FingerprintError, match="source_root"):
        extract(other, cache)


def test_an_interrupted_run_goes_on_after_its_images_moved(folder, tmp_path):
    cache = tmp_path / "x.h5"
    bad = folder / "images" / "11.png"
    good = bad.read_bytes()
    bad.write_bytes(b"no image")
    with pytest.raises(Exception, match=r"11\.png"):
        extract(folder / "images", cache, on_error="fail", batch_size=2, **SMALL)
    bad.write_bytes(good)
    moved = (folder / "images").rename(tmp_path / "moved")
    result = extract(moved, cache, source_moved=True, engine="torch")
    assert result.images == 12
    assert result.computed < 12
    assert verify(cache).ok


def test_a_limit_removes_no_rows_of_a_full_cache(folder, tmp_path):
    """Trying out a few images must not cost the features of the others."""
    path = tmp_path / "c.h5"
    extract(folder / "train.csv", path, limit=4, **SMALL)
    extract(folder / "train.csv", path, limit=6, **SMALL)
    extract(folder / "train.csv", path, **SMALL)
    before = rows_of(path)
    for run in (extract, survey_with):
        with pytest.raises(CacheError, match=r"With --limit 4, the rows of 6 of 10 images would be removed"):
            run(folder / "train.csv", path, limit=4)
    reporter = Reporter()
    reporter.tell = lambda text: pytest.fail(f"It tells what it does not do: {text}")
    with pytest.raises(CacheError, match="would be removed"):
        extract(folder / "train.csv", path, limit=4, reporter=reporter)
    assert rows_of(path).keys() == before.keys()
    assert extract(folder / "train.csv", path, limit=40, engine="torch").computed == 0
    extract(folder / "images", tmp_path / "d.h5", limit=12, **SMALL)
    (folder / "images" / "03.png").unlink()  # this one is not left out by the limit
    assert extract(folder / "images", tmp_path / "d.h5", limit=11, engine="torch").removed == 1


def survey_with(source, path, limit):
    """A dry run with a limit."""
    survey(read_source(source, ReadConfig(limit=limit)), path)


@pytest.mark.parametrize("work", [extract, train])
def test_what_changes_the_result_is_told_before_the_first_image_is_read(work, folder, tmp_path, monkeypatch):
    labelled = folder / "train.csv"
    labelled.write_text(labelled.read_text().replace(",0", ",ant|red").replace(",1", ",ant|blue"))
    recorder = Recorder()

    def first_read(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(Source, "read", first_read)
    with pytest.raises(KeyboardInterrupt):
        work(labelled, tmp_path / "x.safetensors", **SMALL, reporter=recorder)
    (told,) = recorder.told
    assert told.startswith("Note: '|' stands in 10 of 10 labels")
    assert "give --label-separator '|'" in told


def test_the_command_that_a_hint_proposes_keeps_labels_groups_and_splits(folder, tmp_path):
    rows = [line.split(",")[0] for line in (folder / "train.csv").read_text().splitlines()[1:]]
    lines = "".join(f"{image},{'ab'[i % 2]},g{i // 2}\n" for i, image in enumerate(rows))
    (folder / "the list.csv").write_text(f"image,the class,group\n{lines}")
    path, columns = tmp_path / "x.h5", {"label_columns": ["the class"], "group_column": "group"}
    extract(folder / "the list.csv", path, val_fraction=0.3, seed=2, **columns, **SMALL)
    with FeatureCache(path) as cache:
        before, proposed = cache.samples, shlex.split(cache.extract_command("--node block1"))
    assert {*before.split} == {"train", "val"}
    assert proposed[:2] == ["bottleneck", "extract"]
    result = CliRunner().invoke(command, [*proposed[2:], "--json"], catch_exceptions=False)
    assert "splits-changed" not in result.stdout
    with FeatureCache(path) as cache:
        assert cache.stored_name("block1") is not None
        for name in ("key", "split", "group"):
            assert list(getattr(cache.samples, name)) == list(getattr(before, name))
        assert list(cache.samples.targets) == ["the class"]


def splits_in(path):
    with FeatureCache(path) as cache:
        return dict(zip(cache.samples.key, cache.samples.split, strict=True))


def notes_of(result, code):
    return [note for note in result.notes if note.code == code]


def test_samples_that_change_their_split_are_told(folder, tmp_path):
    path, source = tmp_path / "c.h5", folder / "train.csv"
    extract(source, path, **SMALL, test_fraction=0.4)
    before = splits_in(path)
    planned = survey(source, path, ExtractConfig())
    result = extract(source, path)
    after = splits_in(path)
    moved = sum(before[key] == "test" and after[key] == "train" for key in before)
    for told in (planned, result):
        (note,) = notes_of(told, "splits-changed")
        assert note.details["moves"] == {"test → train": moved}
    assert moved == 4
    with pytest.raises(StrictError, match="4 train → test"):
        extract(source, path, test_fraction=0.4, strict=True)
    assert notes_of(extract(source, path), "splits-changed") == []


def test_new_samples_change_no_split(folder, tmp_path):
    path, source = tmp_path / "c.h5", folder / "train.csv"
    extract(source, path, **SMALL)
    source.write_text(source.read_text() + "images/10.png,0\n")
    assert notes_of(extract(source, path, engine="torch"), "splits-changed") == []


@pytest.mark.parametrize(("limit", "told"), [(4, [4]), (None, [])])
def test_statistics_of_a_first_run_on_few_images_are_told(folder, tmp_path, limit, told):
    """`small_cnn` normalises by batch; its random network takes the statistics from the first run."""
    path = tmp_path / "c.h5"
    extract(folder / "train.csv", path, **SMALL, limit=limit)
    result = extract(folder / "train.csv", path, engine="torch")
    notes = notes_of(result, "batchnorm-statistics-kept")
    assert [note.details["images"] for note in notes] == told


def test_mirrored_views_and_what_follows_without_labels_are_shown(folder, tmp_path):
    asked = [str(folder / "images"), "-o", str(tmp_path / "c.h5"), "--flip", "--weights", "none"]
    asked += ["--backbone", "small_cnn", "--engine", "torch", "--image-size", "64", "--depth", "1"]
    shown = CliRunner().invoke(command, asked).output
    assert "views: 1, mirrored" in shown
    assert "Next: bottleneck similar" in shown
    assert "1, mirrored" in CliRunner().invoke(info, [str(tmp_path / "c.h5")]).output


def test_a_dry_run_knows_the_broken_images_of_the_cache(folder, tmp_path):
    (folder / "images" / "03.png").write_bytes(b"no image")
    path = tmp_path / "c.h5"
    before = survey(folder / "train.csv", path, ExtractConfig(backbone="small_cnn", weights="none"))
    assert (before.samples, before.data["failures"]) == (10, {})  # nothing was read yet
    result = extract(folder / "train.csv", path, **SMALL)
    after = survey(folder / "train.csv", path)
    assert (after.samples, after.data) == (9, result.data)
    assert sum(result.data["failures"].values()) == 1


def test_pixels_are_measured_and_those_of_an_older_cache_on_request(folder, tmp_path, monkeypatch):
    """Of a copy, a grey, a wide and a broken image too; without the network, and kept by later runs."""
    Image.effect_noise((120, 30), 80).save(folder / "images" / "wide.png")
    for name, content in (("copy", (folder / "images" / "03.png").read_bytes()), ("bad", b"no image")):
        (folder / "images" / f"{name}.png").write_bytes(content)
    new, old = tmp_path / "new.h5", tmp_path / "old.h5"
    assert extract(folder / "images", new, **SMALL).failed == 1
    with monkeypatch.context() as patch:
        patch.setattr("bottleneck.extraction.compute.measures_of", lambda images, preprocess: None)
        extract(folder / "images", old, **SMALL)
    with FeatureCache(new) as cache, FeatureCache(old) as unmeasured:
        found = dict(zip(cache.images.key, cache.images.measures, strict=True))
        assert unmeasured.images.measures is None
    assert found["wide.png"][:2].tolist() == [120, 30]
    assert found["00.png"].tolist() == [40, 40, 1, 1, 0, 0, 0]
    assert (found["copy.png"] == found["03.png"]).all()
    again = extract(folder / "images", old, measure=True)
    assert (again.computed, again.reused, again.engine) == (0, 14, None)
    (folder / "images" / "other.png").write_bytes((folder / "images" / "wide.png").read_bytes())
    extract(folder / "images", old)
    with FeatureCache(old) as cache:
        expected = [found.get(key, found["wide.png"]) for key in cache.images.key]
        np.testing.assert_array_equal(cache.images.measures, expected)
    assert verify(old).ok
