"""Folders become splits and classes; whatever was decided is told, and no split is lost in silence."""

import io
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from bottleneck.data.folder_layout import folder_samples
from bottleneck.data.read_source import read_source
from bottleneck.errors import SourceError


def put(root, *names):
    """Tiny images at these paths."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path, "PNG")


def labels(samples):
    target = samples.targets["label"]
    names = [target.class_names[code] if code >= 0 else None for code in target.values]
    return dict(zip(samples.key, names, strict=True))


def splits(samples):
    return dict(zip(samples.key, samples.split, strict=True))


def codes(source):
    return [note.code for note in source.notes]


def test_splits_below_classes_are_recognised(tmp_path):
    put(tmp_path, "cat/train/1.jpg", "cat/Test/2.jpg", "dog/train/3.jpg", "dog/valid/deep/4.jpg")
    source = read_source(tmp_path)
    assert splits(source.samples) == {
        "cat/train/1.jpg": "train",
        "cat/Test/2.jpg": "test",
        "dog/train/3.jpg": "train",
        "dog/valid/deep/4.jpg": "val",
    }
    assert source.samples.targets["label"].class_names == ("cat", "dog")
    assert codes(source) == ["layout-class-split"]


@pytest.mark.parametrize("other", ["dog/3.jpg", "dog/front/3.jpg", "cat/3.jpg"])
def test_splits_below_some_classes_alone_are_refused_by_name(tmp_path, other):
    put(tmp_path, "cat/train/1.jpg", "cat/val/2.jpg", "dog/train/4.jpg", other)
    with pytest.raises(SourceError, match=r"cat/train.*expected class/split/image for all, or for none"):
        read_source(tmp_path)


@pytest.mark.parametrize("wrapper", ["photos", "a/b"])
@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("cat/1.jpg", "dog/2.jpg"), "train"),
        (("test/cat/1.jpg", "test/dog/2.jpg"), "test"),
        (("cat/val/1.jpg", "dog/val/2.jpg"), "val"),
    ],
)
def test_a_wrapping_folder_is_looked_through_in_folder_zip_and_tar(tmp_path, wrapper, names, split):
    root = tmp_path / "root"
    put(root, *(f"{wrapper}/{name}" for name in names))
    (root / "README.txt").write_text("x")
    with (
        zipfile.ZipFile(tmp_path / "all.zip", "w") as archive,
        tarfile.open(tmp_path / "all.TAR", "w") as tar,
    ):
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(root))
            tar.add(path, path.relative_to(root))
    for source in map(read_source, (root, tmp_path / "all.zip", tmp_path / "all.TAR")):
        assert list(labels(source.samples).values()) == ["cat", "dog"]
        assert set(source.samples.split) == {split}
        (note,) = [note for note in source.notes if note.code == "wrapping-folder"]
        assert repr(wrapper) in note.message
        assert source.ignored_by_suffix == {".txt": 1}


def test_a_wrapping_folder_below_the_splits(tmp_path):
    put(tmp_path, "train/images/cat/1.jpg", "train/images/dog/2.jpg", "test/images/cat/3.jpg")
    source = read_source(tmp_path)
    assert list(labels(source.samples).values()) == ["cat", "cat", "dog"]
    assert codes(source) == ["wrapping-folder"]


def test_one_class_is_no_wrapping_folder(tmp_path):
    put(tmp_path, "cat/1.jpg", "cat/more/2.jpg")
    source = read_source(tmp_path)
    assert set(labels(source.samples).values()) == {"cat"}
    assert source.notes == ()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["photos/cat/1.png", "drawings/cat/2.png"], True),
        (["train/a/new/1.png", "train/b/old/2.png", "val/a/new/3.png"], True),
        (["photos/cat/1.png", "drawings/2.png"], False),
        (["cat/train/1.png", "dog/train/2.png"], False),
    ],
)
def test_folders_below_all_classes_may_be_the_classes(tmp_path, names, told):
    put(tmp_path, *names)
    assert ("folders-within-classes" in codes(read_source(tmp_path))) == told


@pytest.mark.parametrize(
    "name", ["training_set", "Test Images", "val-data", "trainset", "test_1", "train2017"]
)
def test_a_folder_that_resembles_a_split_is_told(tmp_path, name):
    put(tmp_path, f"{name}/1.jpg", "other/2.jpg")
    (note,) = read_source(tmp_path).notes
    assert (note.code, note.changes_result) == ("class-named-like-split", True)


@pytest.mark.parametrize("name", ["train station", "valley", "contest", "testudo", "imagery", "settler"])
def test_a_class_that_only_contains_such_letters_is_not(tmp_path, name):
    put(tmp_path, f"{name}/1.jpg", "other/2.jpg")
    assert read_source(tmp_path).notes == ()


def test_class_folders_that_yield_no_image_are_named(tmp_path):
    put(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "owl").mkdir()
    for name in ("emu/1.cr2", "emu/2.CR2", "hen/deep/1.txt"):
        (tmp_path / name).parent.mkdir(parents=True) if not (tmp_path / name).parent.exists() else None
        (tmp_path / name).write_text("x")
    (tmp_path / "yak").mkdir()
    (tmp_path / "yak/1.jpg").symlink_to("nowhere")
    source = read_source(tmp_path)
    note = source.notes[0]
    assert (note.code, note.changes_result) == ("folders-without-images", True)
    assert note.details["folders"] == ["emu", "hen", "owl", "yak"]
    for shown in ("'emu' (2 × .cr2)", "'hen' (1 × .txt)", "'owl' (empty)", "'yak' (1 × unreadable)"):
        assert shown in note.message
    assert source.ignored_by_suffix == {".cr2": 2, ".txt": 1}


def test_splits_and_their_classes_that_yield_no_image_are_named(tmp_path):
    put(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg")
    (tmp_path / "val/dog").mkdir()
    (tmp_path / "test/cat").mkdir(parents=True)
    assert read_source(tmp_path).notes[0].details["folders"] == ["test", "val/dog"]


def test_class_folders_alike_but_for_case_or_unicode_form_are_told(tmp_path):
    put(tmp_path, "train/caf\u00e9/1.jpg", "val/Cafe\u0301/2.jpg")
    (note,) = read_source(tmp_path).notes
    assert (note.code, note.changes_result) == ("class-names-alike", True)


def test_images_outside_of_classes_are_counted(tmp_path):
    put(tmp_path, "stray.jpg", "cat/1.jpg", "dog/2.jpg")
    (note,) = read_source(tmp_path).notes
    assert (note.code, note.details["images"]) == ("images-outside-classes", 1)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "jfi", "JFIF", "Jpg"])
def test_every_suffix_of_jpeg_in_any_case(tmp_path, suffix):
    Image.new("RGB", (2, 2)).save(tmp_path / f"1.{suffix}", "JPEG")
    assert read_source(tmp_path).images == (f"1.{suffix}",)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read(tmp_path):
    from bottleneck.data.decode import decode_image

    Image.new("RGB", (8, 8), (250, 0, 0)).save(tmp_path / "1.AVIF")
    source = read_source(tmp_path)
    assert decode_image(source.read("1.AVIF")).getpixel((4, 4))[0] > 200


def test_heic_is_ignored_with_advice_or_read(tmp_path):
    put(tmp_path, "cat/1.jpg")
    (tmp_path / "cat/2.HEIC").write_bytes(b"x")
    source = read_source(tmp_path)
    notes = [note.message for note in source.notes if "bottleneck-features[heif]" in note.message]
    assert len(source.images) + len(notes) == 2


def test_shards_in_capitals_beside_each_other(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (2, 2)).save(data, "PNG")
    for name in ("1.TAR", "2.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            member = tarfile.TarInfo("cat/1.PNG")
            member.size = len(data.getvalue())
            tar.addfile(member, io.BytesIO(data.getvalue()))
    source = read_source(tmp_path)
    assert source.images == ("1.TAR/cat/1.PNG", "2.tar/cat/1.PNG")
    assert set(labels(source.samples).values()) == {"cat"}
    assert (source.ignored, source.ignored_by_suffix) == (0, {})


NAMES = st.sampled_from(["cat", "dog", "train", "Test", "val", "training_set", "w"])


@given(st.sets(st.lists(NAMES, max_size=3).map(tuple), min_size=1, max_size=6))
def test_a_folder_named_like_a_split_is_used_told_or_refused(paths):
    keys = sorted("/".join((*path, "1.jpg")) for path in paths)
    try:
        samples, notes = folder_samples(keys, "root", {})
    except SourceError:
        return
    assert samples.key.tolist() == keys
    used = {note.code for note in notes}
    for key, split in zip(keys, samples.split, strict=True):
        named = [part for part in key.split("/")[:-1] if part in ("train", "Test", "val")]
        if any(part != "train" for part in named) and split == "train":
            assert used & {"split-folder-not-used", "wrapping-folder"}


def test_folders_of_one_split_are_told(tmp_path):
    put(tmp_path, "top/train/a/1.jpg", "top/val/a/2.jpg", "top/dev/b/3.jpg", "top/Valid/b/4.jpg")
    source = read_source(tmp_path)
    assert sorted(splits(source.samples).values()) == ["train", "val", "val", "val"]
    (note,) = (note for note in source.notes if note.code == "splits-merged")
    assert note.details["names"] == ["dev", "val", "valid"]
    below = tmp_path / "below"
    put(below, "a/train/1.jpg", "a/training/2.jpg", "b/test/3.jpg")
    assert "splits-merged" in codes(read_source(below))
