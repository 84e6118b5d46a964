"""Finished trials on disk: only whole files of the same inputs count."""

import numpy as np
import pytest

from bottleneck.trials.records import Records

VALUES, ARRAYS = {"C": 0.1, "what": "머리"}, {"score": np.arange(3.0)}


@pytest.fixture
def records(tmp_path):
    records = Records(tmp_path / "trials")
    records.write("a", "f1", VALUES, ARRAYS)
    return records


def test_a_finished_trial_is_read_as_it_was_written(records):
    values, arrays = records.read("a", "f1")
    assert values == VALUES
    np.testing.assert_array_equal(arrays["score"], ARRAYS["score"])


@pytest.mark.parametrize(("name", "fingerprint"), [("a", "f2"), ("b", "f1")])
def test_other_inputs_or_another_name_are_no_result(records, name, fingerprint):
    assert records.read(name, fingerprint) is None


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:20], lambda data: b"\xff" * 40])
def test_a_damaged_file_is_no_result(records, damage):
    (path,) = records.folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert records.read("a", "f1") is None
    records.write("a", "f1", VALUES, ARRAYS)
    assert records.read("a", "f1")[0] == VALUES
