"""Odd images by their measures, each kind planted once."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from bottleneck import audit
from bottleneck.cli.main import group
from bottleneck.names import MEASURES
from tests.helpers.caches import class_target, write_cache

N = 60
PLANTED = {  # row: (kind, measures that differ)
    3: ("dark", {"high": 50}),
    7: ("light", {"low": 250}),
    11: ("low_information", {"entropy": 0.5}),
    20: ("blurry", {"sharpness": 0.001}),
    31: ("odd_aspect_ratio", {"width": 1600}),
    44: ("odd_size", {"width": 30, "height": 25}),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    usual = {
        "width": 500,
        "height": 400,
        "low": 20,
        "high": 230,
        "entropy": 7,
        "contrast": 900,
        "sharpness": 0.2,
    }
    measures = np.tile(np.array([usual[name] for name in MEASURES], np.float32), (N, 1))
    for row, (_, values) in PLANTED.items():
        for name, value in values.items():
            measures[row, MEASURES.index(name)] = value
    measures[50] = np.nan  # an image of an earlier version
    x = np.random.default_rng(0).normal(size=(N, 12)).astype(np.float32)
    path = tmp_path_factory.mktemp("odd") / "c.h5"
    return write_cache(path, x, [class_target(np.arange(N) % 2)], measures=measures)


def test_each_kind_is_found_once(cache):
    found = audit(cache)
    odd = {item["image"]: item["kinds"] for item in found.odd["items"] if item["flag"]}
    assert odd == {f"그림/{row:03d}.png": [kind] for row, (kind, _) in PLANTED.items()}
    assert found.odd["flag"] == len(PLANTED)
    assert found.odd["measured"] == N - 1
    (note,) = [note for note in found.notes if note.code == "images-not-measured"]
    assert note.message.startswith("1 of 60 images")
    assert "--measure" in note.message


def test_thresholds_are_the_user_s(cache):
    found = audit(cache, odd={"dark": 0, "blurry": 0.5})
    assert found.odd["kinds"]["dark"] == 0
    assert found.odd["kinds"]["blurry"] == N - 1
    assert found.thresholds["blurry"] == 0.5


def test_the_command_shows_them_and_names_the_kinds_of_a_wrong_threshold(cache):
    shown = CliRunner().invoke(group, ["audit", str(cache), "--json", "--odd", "dark=0.1"])
    assert json.loads(shown.stdout)["odd"]["kinds"]["dark"] == 0
    wrong = CliRunner().invoke(group, ["audit", str(cache), "--odd", "dim=0.1"])
    assert wrong.exit_code == 2
    assert "odd_aspect_ratio" in wrong.output
