"""Folders of images and shards: layouts, names in any script, links, labels; nothing passes in silence."""

import io
import json
import os
import tarfile
import unicodedata

import pytest
from PIL import Image

from bottleneck.data.config import ReadConfig
from bottleneck.data.read_source import read_source
from bottleneck.errors import SourceError


def put(root, *names):
    """Tiny images at these paths."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)


def labels(source, target="label"):
    """The class name of each sample by key."""
    target = source.samples.targets[target]
    names = [target.class_names[code] if code >= 0 else None for code in target.values]
    return dict(zip(source.samples.key, names, strict=True))


def splits(source):
    return dict(zip(source.samples.key, source.samples.split, strict=True))


def test_class_folders(tmp_path):
    put(tmp_path, "b/2.jpg", "a/1.png", "b/deep/er/3.jpg")
    source = read_source(tmp_path)
    assert source.root == str(tmp_path)
    assert source.images == ("a/1.png", "b/2.jpg", "b/deep/er/3.jpg")
    assert source.samples.image.tolist() == [[0], [1], [2]]
    assert labels(source) == {"a/1.png": "a", "b/2.jpg": "b", "b/deep/er/3.jpg": "b"}
    assert set(source.samples.split) == {"train"}
    assert source.read("a/1.png").startswith(b"\x89PNG")
    assert source.stat("a/1.png")[0] == len(source.read("a/1.png"))


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("val", "val"),
        ("VALID", "val"),
        ("validation", "val"),
        ("dev", "val"),
        ("test", "test"),
        ("testing", "test"),
    ],
)
def test_split_folders_by_any_of_their_names(tmp_path, folder, split):
    put(tmp_path, f"{folder}/cat/1.jpg", f"{folder}/dog/deep/2.jpg")
    source = read_source(tmp_path)
    assert splits(source) == {f"{folder}/cat/1.jpg": split, f"{folder}/dog/deep/2.jpg": split}
    assert source.samples.targets["label"].class_names == ("cat", "dog")


def test_class_codes_are_one_set_over_all_splits(tmp_path):
    put(tmp_path, "train/b/1.jpg", "val/a/1.jpg", "test/c/1.jpg")
    assert read_source(tmp_path).samples.targets["label"].class_names == ("a", "b", "c")


def test_a_flat_folder_has_no_labels(tmp_path):
    put(tmp_path, "1.jpg", "2.jpg")
    source = read_source(tmp_path)
    assert source.images == ("1.jpg", "2.jpg")
    assert source.samples.targets == {}


def test_images_beside_class_folders_are_unlabelled(tmp_path):
    put(tmp_path, "stray.jpg", "a/1.jpg")
    assert labels(read_source(tmp_path)) == {"a/1.jpg": "a", "stray.jpg": None}


def test_split_folders_without_classes_have_no_labels(tmp_path):
    put(tmp_path, "train/1.jpg", "test/2.jpg")
    source = read_source(tmp_path)
    assert splits(source) == {"train/1.jpg": "train", "test/2.jpg": "test"}
    assert source.samples.targets == {}


def test_a_class_may_be_named_like_a_split(tmp_path):
    put(tmp_path, "train/1.jpg", "plane/2.jpg", "test/3.jpg")
    source = read_source(tmp_path)
    assert source.samples.targets["label"].class_names == ("plane", "test", "train")
    assert set(source.samples.split) == {"train"}


def test_split_folders_beside_others_are_refused(tmp_path):
    put(tmp_path, "train/cat/1.jpg", "val/cat/1.jpg", "extra/9.jpg")
    with pytest.raises(SourceError, match=r"train, val.*extra"):
        read_source(tmp_path)


def test_one_image(tmp_path):
    put(tmp_path, "a/b c.jpg")
    source = read_source(tmp_path / "a" / "b c.jpg")
    assert (source.root, source.images) == (str(tmp_path / "a"), ("b c.jpg",))


NAMES = [
    unicodedata.normalize("NFC", "한글 사진.jpg"),
    unicodedata.normalize("NFD", "한글 사진.jpg"),
    "🐝 bee 🐜.jpg",
    " leading and trailing .jpg",
    "new\nline.jpg",
    "back\\slash.jpg",
    "über-Straße.JPG",
    "صورة.jpeg",
    "#100%?.png",
]


def test_names_in_any_script_stay_as_they_are(tmp_path):
    put(tmp_path, *(f"{name}-class/{name}" for name in NAMES))
    source = read_source(tmp_path)
    assert sorted(source.images) == sorted(f"{name}-class/{name}" for name in NAMES)
    assert list(source.images) == sorted(source.images)
    assert sorted(source.samples.targets["label"].class_names) == sorted(f"{name}-class" for name in NAMES)
    assert all(source.read(key) for key in source.images)


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_a_name_that_is_not_utf8_is_a_named_failure(tmp_path):
    put(tmp_path, "a/1.jpg")
    Image.new("RGB", (2, 2)).save(os.fsencode(tmp_path) + b"/a/caf\xe9.jpg", "JPEG")
    source = read_source(tmp_path)
    assert source.images == ("a/1.jpg",)
    assert list(source.absent) == ["a/caf\\xe9.jpg"]
    assert "UTF-8" in source.absent["a/caf\\xe9.jpg"]


def test_other_and_hidden_files_are_counted(tmp_path):
    put(tmp_path, "a/1.jpg", "a/._1.jpg", ".thumbnails/1.jpg", "__MACOSX/a/._1.jpg")
    for name in ("a/.DS_Store", "a/readme.txt", "a/noext", "a/clip.mp4", "a/x.jpg.part"):
        (tmp_path / name).write_bytes(b"x")
    source = read_source(tmp_path)
    assert source.images == ("a/1.jpg",)
    assert source.ignored == 8
    assert source.absent == {}


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_a_root_that_is_not_utf8_is_refused(tmp_path):
    root = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(root)
    with pytest.raises(SourceError, match="not valid UTF-8"):
        read_source(os.fsdecode(root))


def test_links_to_files_and_folders_are_followed_but_not_in_a_circle(tmp_path):
    put(tmp_path / "elsewhere", "x.jpg", "more/y.jpg")
    put(tmp_path / "root", "a/1.jpg")
    (tmp_path / "root/a/link.jpg").symlink_to(tmp_path / "elsewhere/x.jpg")
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    source = read_source(tmp_path / "root")
    assert source.images == ("a/1.jpg", "a/link.jpg", "b/more/y.jpg", "b/x.jpg")


def test_broken_links_and_other_odd_things_are_named_failures(tmp_path):
    put(tmp_path, "a/1.jpg", "a/z.jpg")
    (tmp_path / "a/gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a/self.jpg").symlink_to(tmp_path / "a/self.jpg")
    os.mkfifo(tmp_path / "a/pipe.jpg")
    source = read_source(tmp_path)
    assert source.images == ("a/1.jpg", "a/z.jpg")
    assert list(source.absent) == ["a/gone.jpg", "a/pipe.jpg", "a/self.jpg"]
    assert "nowhere" in source.absent["a/gone.jpg"]
    assert "regular" in source.absent["a/pipe.jpg"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_that_cannot_be_listed_is_a_named_failure(tmp_path):
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "b").chmod(0)
    try:
        assert list(read_source(tmp_path).absent) == ["b/"]
    finally:
        (tmp_path / "b").chmod(0o700)


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    put(tmp_path, "a.jpg/1.jpg")
    assert labels(read_source(tmp_path)) == {"a.jpg/1.jpg": "a.jpg"}


def test_no_images_says_what_was_looked_for_and_found(tmp_path):
    with pytest.raises(SourceError, match=r"\.jpg.*no files at all"):
        read_source(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(SourceError, match=r"\.webp.*2 × \.txt"):
        read_source(tmp_path)


def test_a_source_that_does_not_exist(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        read_source(tmp_path / "nothing")


def test_a_file_that_is_no_source(tmp_path):
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"a\.docx.*manifest"):
        read_source(tmp_path / "a.docx")


def test_columns_of_a_folder_are_refused(tmp_path):
    put(tmp_path, "a/1.jpg")
    with pytest.raises(SourceError, match="only a manifest has columns"):
        read_source(tmp_path, ReadConfig(label_columns=("species",)))


def test_listing_does_not_depend_on_the_order_of_the_file_system(tmp_path, monkeypatch):
    put(tmp_path, *(f"c{number % 3}/{number}.jpg" for number in range(20)))
    source = read_source(tmp_path)
    original = os.scandir

    class Reversed:
        def __init__(self, path):
            self.entries = original(path)

        def __enter__(self):
            return reversed(list(self.entries))

        def __exit__(self, *_):
            self.entries.close()

    monkeypatch.setattr("bottleneck.data.listing.os.scandir", Reversed)
    again = read_source(tmp_path)
    assert again.images == source.images
    assert labels(again) == labels(source)


def test_a_name_that_looks_like_a_url_is_a_path_where_it_exists(tmp_path, monkeypatch):
    put(tmp_path, "a::b/c/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert read_source("a::b").images == ("c/1.jpg",)


def test_a_source_cut_to_some_samples_has_their_images_alone(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    (tmp_path / "b" / "gone.png").symlink_to("nowhere")
    part = read_source(tmp_path).take([2, 0])
    assert part.images == ("a/1.png", "b/3.png")
    assert [part.images[row] for row in part.samples.image[:, 0]] == list(part.samples.key)
    assert labels(part) == {"b/3.png": "b", "a/1.png": "a"}
    assert list(part.absent) == ["b/gone.png"]


def png():
    data = io.BytesIO()
    Image.new("RGB", (2, 2)).save(data, "PNG")
    return data.getvalue()


def shard(path, **files):
    """A tar of these files; the value None is an image. "__" in a name is a dot, "_0_" a slash."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = png() if content is None else content.encode()
            member = tarfile.TarInfo(name.replace("_0_", "/").replace("__", "."))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def labels_in_order(source):
    target = source.samples.targets["label"]
    return [target.class_names[code] if code >= 0 else None for code in target.values]


def codes(source):
    return [note.code for note in source.notes]


def test_the_class_lies_beside_the_image(tmp_path):
    files = {"1__jpg": None, "1__cls": "7\n", "2__jpg": None, "2__cls": "10", "3__JPG": None}
    source = read_source(shard(tmp_path / "a.tar", **files))
    assert source.images == ("a.tar/1.jpg", "a.tar/2.jpg", "a.tar/3.JPG")
    assert labels_in_order(source) == ["7", "10", None]
    assert source.samples.targets["label"].class_names == ("7", "10")
    assert (source.ignored, codes(source)) == (0, ["shard-labels"])
    assert "1 image has none" in source.notes[0].message


@pytest.mark.parametrize("key", ["label", "Class", "category"])
def test_a_label_in_json_and_the_keys_that_are_not_read(tmp_path, key):
    record = json.dumps({"caption": "a bee", key: "bee", "width": 4})
    source = read_source(shard(tmp_path / "a.tar", a__png=None, a__json=record, b__png=None, b__json="{"))
    assert labels_in_order(source) == ["bee", None]
    assert "'caption', 'width', files that are not JSON" in source.notes[0].message


def test_the_class_comes_before_json_and_text_which_are_told(tmp_path):
    source = read_source(
        shard(tmp_path / "a.tar", a__jpg=None, a__cls="x", a__json='{"label": "y"}', a__txt="z", a__npy="0")
    )
    assert labels_in_order(source) == ["x"]
    assert source.ignored_by_suffix == {".json": 1, ".txt": 1, ".npy": 1}
    assert codes(source) == ["shard-labels", "files-ignored"]


def test_text_is_the_label_where_nothing_else_is(tmp_path):
    source = read_source(shard(tmp_path / "a.tar", a__jpg=None, a__txt="ant", b__jpg=None, b__txt="bee\n"))
    assert labels_in_order(source) == ["ant", "bee"]
    source = read_source(shard(tmp_path / "b.tar", x_0_a__jpg=None, x_0_a__txt="0 0.5", y_0_b__jpg=None))
    assert labels_in_order(source) == ["x", "y"]
    assert source.ignored_by_suffix == {".txt": 1}


def test_masks_are_no_samples(tmp_path):
    files = {
        "a__jpg": None,
        "a__seg__png": None,
        "a__cls": "1",
        "b__jpg": None,
        "b__png": None,
        "b__cls": "2",
    }
    source = read_source(shard(tmp_path / "a.tar", **files))
    assert source.images == ("a.tar/a.jpg", "a.tar/b.jpg")
    assert source.ignored_by_suffix == {".seg.png": 1, ".png": 1}
    assert "1 × .seg.png" in source.notes[-1].message


def test_names_with_dots_and_pairs_without_labels_stay_samples(tmp_path):
    names = ("cat_0_1__jpg", "cat_0_1__2__jpg", "dog_0_x__y__jpg", "dog_0_1__jpg", "dog_0_1__png")
    source = read_source(shard(tmp_path / "a.tar", **dict.fromkeys(names)))
    assert len(source.images) == 5
    assert source.notes == ()


def test_lists_in_json_are_several_labels(tmp_path):
    source = read_source(
        shard(tmp_path / "a.tar", a__jpg=None, a__json='["x", "y"]', b__jpg=None, b__json="[]")
    )
    assert source.samples.targets["label"].values.tolist() == [[1, 1], [0, 0]]


def test_numbers_of_shards_are_what_the_user_says(tmp_path):
    path = shard(tmp_path / "a.tar", a__jpg=None, a__cls="1", b__jpg=None, b__cls="3")
    assert read_source(path, ReadConfig(regression=("label",))).samples.targets["label"].values.tolist() == [
        1,
        3,
    ]
    with pytest.raises(SourceError, match="names target 'age'; there are label"):
        read_source(path, ReadConfig(classes=("age",)))


def test_shards_named_after_splits(tmp_path):
    for name in ("train-000", "train-001", "val-000"):
        shard(tmp_path / f"{name}.tar", a__jpg=None, a__cls="x")
    source = read_source(tmp_path)
    assert source.samples.split.tolist() == ["train", "train", "val"]
    assert codes(source) == ["splits-from-shard-names", "shard-labels"]
    shard(tmp_path / "more.tar", a__jpg=None, a__cls="x")
    source = read_source(tmp_path)
    assert set(source.samples.split) == {"train"}
    assert source.notes[0].code == "shard-splits-not-used"
    assert source.notes[0].changes_result
