"""What cannot be learnt is refused by `train` and `train --plan` before anything is computed or written."""

import shutil

import pytest
from click.testing import CliRunner

from bottleneck import FeatureCache, train
from bottleneck.cli.main import group
from bottleneck.errors import CacheError, StrictError
from tests.helpers.stripes import write_stripes
from tests.studies.train.conftest import TINY

FLAGS = ["--backbone", "small_cnn", "--weights", "none", "--depth", "2", "--image-size", "32"]


@pytest.mark.parametrize("plan", [[], ["--plan"]])
@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("empty", "No images in"),
        ("stripes/train/class0", "has no labels. Put the images into one folder a class"),
        ("one", "are of one class, 'class0'; a head needs two"),
    ],
)
def test_it_is_refused_before_anything_is_computed(tmp_path, monkeypatch, folder, reason, plan):
    write_stripes(tmp_path / "stripes", classes=2, images=2, val=0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    write_stripes(tmp_path / "single", classes=1, images=2, val=0)
    (tmp_path / "single" / "train" / "class0").rename(tmp_path / "one" / "class0")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    result = CliRunner().invoke(group, ["train", str(tmp_path / folder), *FLAGS, *plan])
    assert result.exit_code == 1
    assert reason in str(result.exception)
    assert list(work.iterdir()) == []


def test_strict_refuses_before_rows_are_removed_and_a_failed_image_is_named(source, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(source, photos)
    gone, broken = sorted((photos / "train" / "class0").glob("*.png"))[:2]
    broken.write_bytes(b"no image")
    result = train(photos, tmp_path / "m.safetensors", finetune="never", **TINY)
    (note,) = [note for note in result.notes if note.code == "images-failed"]
    assert f"train/class0/{broken.name}" in note.message
    cache = result.files["cache small_cnn"]
    with FeatureCache(cache) as opened:
        before = len(opened.images)
    gone.unlink()
    with pytest.raises(StrictError):
        train(photos, tmp_path / "m.safetensors", finetune="never", strict=True, **TINY)
    with FeatureCache(cache) as opened:
        assert len(opened.images) == before


def test_images_of_which_none_can_be_read_are_to_be_replaced(tmp_path):
    """The hint was to delete the cache, after which the same images fail again."""
    photos = write_stripes(tmp_path / "photos", classes=2, images=2, val=0)
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(CacheError, match="none of 4 images could be used") as error:
        train(photos, tmp_path / "m.safetensors", image_size=64, engine="torch")
    assert error.value.hint == "Repair or replace the images, and extract them again."
