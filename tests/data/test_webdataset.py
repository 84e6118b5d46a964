"""WebDataset shards: labels beside images, masks that are no samples, and what is not read."""

import io
import json
import tarfile

import pytest
from PIL import Image

from bottleneck.data.config import ReadConfig
from bottleneck.data.source import read_source
from bottleneck.errors import SourceError


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


def labels(source):
    target = source.samples.targets["label"]
    return [target.class_names[code] if code >= 0 else None for code in target.values]


def codes(source):
    return [note.code for note in source.notes]


def test_the_class_lies_beside_the_image(tmp_path):
    files = {"1__jpg": None, "1__cls": "7\n", "2__jpg": None, "2__cls": "10", "3__JPG": None}
    source = read_source(shard(tmp_path / "a.tar", **files))
    assert source.images == ("a.tar/1.jpg", "a.tar/2.jpg", "a.tar/3.JPG")
    assert labels(source) == ["7", "10", None]
    assert source.samples.targets["label"].class_names == ("7", "10")
    assert (source.ignored, codes(source)) == (0, ["shard-labels"])
    assert "1 images have none" in source.notes[0].message


@pytest.mark.parametrize("key", ["label", "Class", "category"])
def test_a_label_in_json_and_the_keys_that_are_not_read(tmp_path, key):
    record = json.dumps({"caption": "a bee", key: "bee", "width": 4})
    source = read_source(shard(tmp_path / "a.tar", a__png=None, a__json=record, b__png=None, b__json="{"))
    assert labels(source) == ["bee", None]
    assert "'caption', 'width', files that are not JSON" in source.notes[0].message


def test_the_class_comes_before_json_and_text_which_are_told(tmp_path):
    source = read_source(
        shard(tmp_path / "a.tar", a__jpg=None, a__cls="x", a__json='{"label": "y"}', a__txt="z", a__npy="0")
    )
    assert labels(source) == ["x"]
    assert source.ignored_by_suffix == {".json": 1, ".txt": 1, ".npy": 1}
    assert codes(source) == ["shard-labels", "files-ignored"]


def test_text_is_the_label_where_nothing_else_is(tmp_path):
    source = read_source(shard(tmp_path / "a.tar", a__jpg=None, a__txt="ant", b__jpg=None, b__txt="bee\n"))
    assert labels(source) == ["ant", "bee"]
    source = read_source(shard(tmp_path / "b.tar", x_0_a__jpg=None, x_0_a__txt="0 0.5", y_0_b__jpg=None))
    assert labels(source) == ["x", "y"]
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
