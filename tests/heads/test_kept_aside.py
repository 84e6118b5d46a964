"""A head or model of other images is not replaced without a word, and not lost."""

import numpy as np
import pytest

from bottleneck.heads.artifact import load_head
from bottleneck.heads.kept_aside import kept_aside
from bottleneck.heads.trained_on import TrainedOn
from tests.helpers.heads import head


def fitted_on(*images, **options):
    """A head that was fitted on images whose digests begin with these numbers."""
    digests = np.zeros((len(images), 32), np.uint8)
    digests[:, 0] = images
    return head(trained_on=TrainedOn.of(digests).to_json(), **options)


@pytest.mark.parametrize(
    ("before", "new"),
    [
        (fitted_on(1, 2), fitted_on(2, 3, class_names=("a", "c"))),
        (head(), head()),
        (head(), fitted_on(1)),
    ],
)
def test_an_earlier_version_is_replaced(tmp_path, before, new):
    path = before.save(tmp_path / "h.safetensors")
    assert kept_aside(path, new) == []
    assert [file.name for file in tmp_path.iterdir()] == ["h.safetensors"]


@pytest.mark.parametrize(
    ("before", "new"),
    [
        (fitted_on(1, 2), fitted_on(3, 4)),
        (head(class_names=("x", "y")), fitted_on(3, 4)),
        (head(), head(target="age")),
    ],
)
def test_a_head_of_other_images_is_kept_beside_the_new_one(tmp_path, before, new):
    path = tmp_path / "모델.v1.safetensors"
    for number, kept in enumerate(("모델.v1.previous", "모델.v1.previous-2")):
        before.save(path)
        path.with_suffix(".md").write_text(f"card {number}")
        path.with_suffix(".html").write_text(f"report {number}")
        (note,) = kept_aside(path, new)
        assert str(tmp_path / f"{kept}.safetensors") in note.message
        assert load_head(tmp_path / f"{kept}.safetensors").class_names == before.class_names
        assert (tmp_path / f"{kept}.md").read_text() == f"card {number}"
        assert (tmp_path / f"{kept}.html").read_text() == f"report {number}"
    assert not path.exists()
    assert kept_aside(path, new) == []


def test_a_file_that_is_no_head_is_kept_too(tmp_path):
    path = tmp_path / "h.safetensors"
    path.write_bytes(b"weights of somebody")
    (note,) = kept_aside(path, head())
    assert "no head or model" in note.message
    assert (tmp_path / "h.previous.safetensors").read_bytes() == b"weights of somebody"
