"""What cannot be learnt is refused by `train` and `train --plan` before anything is computed or written."""

import pytest
from click.testing import CliRunner

from bottleneck.cli.main import group
from tests.helpers.stripes import write_stripes

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
