"""The images of a training set by the beginnings of their digests."""

import hashlib

import numpy as np
import pytest

from bottleneck.errors import ArtifactError
from bottleneck.heads import trained_on
from bottleneck.heads.artifact import load_head
from bottleneck.heads.trained_on import TrainedOn
from tests.helpers.heads import head


def digests(numbers):
    raw = b"".join(hashlib.sha256(str(number).encode()).digest() for number in numbers)
    return np.frombuffer(raw, np.uint8).reshape(-1, 32)


def test_shared_images_are_counted_once():
    seen = TrainedOn.of(digests([*range(50), *range(10)]))
    assert seen.images == 50
    assert seen.shared_with(digests([*range(40, 70), 41, 41])) == (10, 30, True)
    assert seen.shared_with(digests(range(60, 70))) == (0, 10, True)
    again = TrainedOn.from_json(seen.to_json())
    assert again.shared_with(digests(range(40, 70))) == (10, 30, True)


def test_of_very_many_a_part_is_kept_and_the_rest_estimated(monkeypatch):
    monkeypatch.setattr(trained_on, "MOST", 400)
    seen = TrainedOn.of(digests(range(4000)))
    assert (seen.images, len(seen.starts)) == (4000, 400)
    shared, of, exact = seen.shared_with(digests(range(3000, 5000)))
    assert (of, exact) == (2000, False)
    assert 700 < shared < 1300  # 1,000 are shared; a tenth of them is looked at
    assert seen.shared_with(digests(range(5000, 6000)))[0] == 0


def test_two_trainings_are_joined():
    first, second = TrainedOn.of(digests(range(10))), TrainedOn.of(digests(range(5, 20)))
    both = first.joined_with(second)
    assert both.images == 20
    assert both.shared_with(digests(range(100))) == (20, 100, True)


def test_a_head_keeps_it_in_its_file(tmp_path):
    record = TrainedOn.of(digests(range(5))).to_json()
    path = head(trained_on=record, columns={"image": ("photo",)}).save(tmp_path / "h.safetensors")
    read = load_head(path)
    assert (read.trained_on, read.columns) == (record, {"image": ("photo",)})
    assert load_head(head().save(tmp_path / "g.safetensors")).trained_on == {}


@pytest.mark.parametrize(
    "record",
    [
        {"images": 5},
        {"images": 5, "digests": "!"},
        {"images": 5, "digests": ""},
        {"images": 1, "digests": "AAAAAAAAAAEAAAAAAAAAAg=="},
        {"images": 2, "digests": "AAAAAAAAAAIAAAAAAAAAAQ=="},
        {"images": 2, "digests": "AAAA"},
        {"images": "2", "digests": "AAAAAAAAAAEAAAAAAAAAAg=="},
    ],
)
def test_a_damaged_list_is_refused(record):
    with pytest.raises(ArtifactError, match="training images"):
        head(trained_on=record)
