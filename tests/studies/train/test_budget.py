"""How `train` keeps to its minutes: by numbers, without a clock."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest

from bottleneck.data.read_source import read_source
from bottleneck.studies.train import budget
from bottleneck.studies.train.budget import (
    EXTRACTION_SHARE,
    Clock,
    ExtractionCost,
    fit_seconds,
    fits_seconds,
    within_time,
)
from tests.helpers.stripes import write_stripes


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four classes, ten of train and five of val each."""
    return read_source(write_stripes(tmp_path_factory.mktemp("s") / "s", images=10, val=5))


def cost(seconds):
    return ExtractionCost("net", "c.h5", {"bottleneck": (4,)}, 60, seconds, 0)


@pytest.mark.parametrize("minutes", [None, 10])
def test_all_samples_are_used_where_there_is_time(source, minutes):
    assert within_time(source, [cost(60)], None, minutes) == (source, [])


def test_fewer_samples_are_used_evenly_where_extraction_and_a_head_take_too_long(source, monkeypatch):
    """60 s of extraction, 4 s of a head on each of two backbones, and the final fit: 74 s in all."""
    monkeypatch.setattr(budget, "fits_seconds", lambda *_: [4.0, 4.0])
    third = 74 / 3 / 60 / EXTRACTION_SHARE
    limited, (note,) = within_time(source, [cost(30), cost(30)], None, third + 1e-6)
    assert len(limited.samples) == 20
    assert note.details["seconds"] == 74
    assert note.code == "samples-limited"
    assert note.changes_result
    codes = limited.samples.targets["label"].values
    for split, count in (("train", 13), ("val", 7)):
        counts = np.bincount(codes[limited.samples.split == split], minlength=4)
        assert abs(counts.sum() - count) <= 1
        assert counts.max() - counts.min() <= 1


def test_the_time_before_the_first_image_is_left_free(source, monkeypatch):
    """40 s are left for 60 s of extraction and fits: two thirds of the samples."""
    monkeypatch.setattr(budget, "fits_seconds", lambda *_: [0.0])
    minutes = (40 + 9) / 60 / EXTRACTION_SHARE
    limited, _ = within_time(source, [replace(cost(60), startup=9)], None, minutes + 1e-6)
    assert len(limited.samples) == 40


def test_a_clock_without_minutes_allows_everything():
    assert Clock(0.0, None).allows(1e9)


def test_a_clock_estimates_fits_by_the_number_of_features():
    clock = Clock(0.0, 1.0)
    assert clock.fit(1000) == 0
    clock.learn(100, 1.0)
    clock.learn(1000, 4.0)
    assert clock.fit(1000) == 4.0
    assert clock.fit(2000) == 8.0
    assert clock.fit(100) == 1.0


def test_larger_fits_are_estimated_longer(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) / 100)  # a machine of one speed
    small, large = fit_seconds(100, 100, 3), fit_seconds(10_000, 5_000, 3)
    assert large > 10 * small > 0


def test_fits_are_estimated_on_the_samples_that_are_learnt_from_and_their_classes(source, monkeypatch):
    monkeypatch.setattr(budget, "fit_seconds", lambda *of: of)
    assert fits_seconds(source, None, [3, 7]) == [(60, 3, 4), (60, 7, 4)]
    assert fits_seconds(source, "label", [3]) == [(60, 3, 4)]
