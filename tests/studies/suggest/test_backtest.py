"""The backtest claims what its interval shows, on sets where choosing helps and where it cannot."""

import numpy as np
import pytest

from bottleneck.progress import SILENT
from bottleneck.samples import ArrayRows
from bottleneck.studies.suggest.backtest import FOLDS, ROUNDS, STARTS, _judged, backtest
from bottleneck.studies.suggest.selector import Space, choose, directions, margins
from tests.helpers.caches import class_target


def test_noise_is_no_gain():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 6)).astype(np.float32)
    found = backtest(x, class_target(draw.integers(0, 2, 200)), C=0.1, reporter=SILENT)
    assert found.done
    assert found.helps is None
    assert found.interval[0] < 0 < found.interval[1]
    assert found.verdict.startswith("A gain is not shown here")


def test_a_thin_boundary_in_a_wide_pool_is_a_gain():
    """Nearly all samples lie far from the boundary, and tell nothing of where it is."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 12)).astype(np.float32)
    x[:, 0] += np.where(np.arange(400) % 4 > 0, np.where(np.arange(400) % 2, 5, -5), 0)
    found = backtest(x, class_target((x[:, 0] + 0.3 * x[:, 1] > 0).astype(int)), C=1.0, reporter=SILENT)
    assert found.helps
    assert found.interval[0] > 0
    assert found.gain == pytest.approx(found.selector - found.random)
    assert found.verdict.startswith("It would have helped here")
    again = backtest(x, class_target((x[:, 0] + 0.3 * x[:, 1] > 0).astype(int)), C=1.0, reporter=SILENT)
    assert again == found


@pytest.mark.parametrize("sign", [1, -1])
def test_the_interval_is_that_of_student_over_folds(sign):
    gains = np.repeat(np.linspace(0.01, 0.03, FOLDS), STARTS) * sign
    random = np.full((ROUNDS, 2, FOLDS * STARTS), 0.5)
    accuracy = np.concatenate([random[:, :1] + gains, random], axis=1)
    found = _judged(accuracy, [10, 20], 100, 0)
    half = 2.262157 * np.linspace(0.01, 0.03, FOLDS).std(ddof=1) / np.sqrt(FOLDS)
    assert found.interval == pytest.approx((0.02 * sign - half, 0.02 * sign + half))
    assert found.helps is (sign > 0)
    assert ("at random instead" in found.verdict) is (sign < 0)


def test_few_samples_classes_or_groups_give_no_backtest():
    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    for n, classes, groups, said in (
        (50, 2, None, "50 labelled samples"),
        (90, 45, None, "of 45 classes"),
        (90, 2, np.arange(90) % 4, "4 groups"),
    ):
        target = class_target(np.arange(n) % classes)
        found = backtest(x[:n], target, C=1.0, groups=groups, reporter=SILENT)
        assert not found.done
        assert said in found.verdict


def test_the_choice_is_the_least_certain_that_is_unlike_those_before():
    unit = directions(np.array([[1.0, 0], [1, 0], [0, 1], [1, 1]]))
    index, score = choose(np.array([0.1, 0.1, 0.5, 0.3]), unit, 9)
    assert index.tolist() == [0, 2, 3]  # the second is a copy of the first
    assert score == pytest.approx([0.9, 0.5, 0.7 * (1 - np.sqrt(0.5))])
    assert margins(np.array([[0.2, 0.5, 0.3], [1, 0, 0]])) == pytest.approx([0.2, 1])


@pytest.mark.parametrize("n", [50, 5])
def test_a_space_keeps_the_distances_of_standardised_rows(n):
    x = np.random.default_rng(0).normal(size=(n, 6)) * [1, 5, 1, 1, 1, 0] + 3
    projected = Space.of(ArrayRows(x)).project(ArrayRows(x))
    scale = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(scale > 0, scale, 1)
    assert np.linalg.norm(projected[3] - projected[1]) == pytest.approx(np.linalg.norm(z[3] - z[1]), rel=1e-4)
