"""Caches, heads and models written by earlier code load and give the same numbers.

The files under golden/ were written by version 0.1.0 before its modules were moved: see `make_golden.py`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bottleneck import evaluate, predict

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A copy of the files, since a cache that is opened may get a lock beside it."""
    return Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("golden") / "files"))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_an_earlier_version_evaluates_as_before(golden, name):
    labels = None if "label" in name or "model" in name else golden / "labels.csv"
    measured = evaluate(golden / name, golden / "cache.h5", split="test", labels=labels)
    for key, value in EXPECTED[name]["evaluate"].items():
        np.testing.assert_allclose(measured[key], value, rtol=1e-5, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_an_earlier_version_predicts_as_before(golden, name):
    rows = predict(golden / name, golden / "images" / "test")["predictions"]
    for row, expected in zip(rows, EXPECTED[name]["predict"], strict=True):
        assert row["image"] == expected["image"]
        label = expected["label"]  # a name, or the number of a regression
        assert row["label"] == (label if isinstance(label, str) else pytest.approx(label, rel=1e-3))
        assert row["confidence"] == pytest.approx(expected["confidence"], abs=2e-3)
