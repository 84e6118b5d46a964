"""Curves of a training: drawn from one epoch on."""

import pytest
from PIL import Image

from bottleneck.report.curves import rate_curve, training_curves
from bottleneck.training.finetune import FoundRate
from bottleneck.training.loop import EpochRecord


def epochs(count):
    first = EpochRecord(0, None, None, None, 0.7, 0.5, 0, 0.0)
    return [first, *(EpochRecord(i, 0.1, 0.5 / i, 0.8, 0.6 / i, 0.7, 10, 1.0) for i in range(1, count))]


@pytest.mark.parametrize("count", [1, 2, 12])
def test_curves_of_any_number_of_epochs(tmp_path, count):
    path = training_curves(epochs(count), tmp_path / "a" / "c.png", 0, "개미 🐜 $x", head=0.6)
    with Image.open(path) as image:
        assert image.format == "PNG"


def test_a_rate_is_drawn(tmp_path):
    found = FoundRate(1e-3, (1e-6, 1e-4, 1e-2), (0.7, 0.5, 0.9))
    assert rate_curve(found, tmp_path / "lr.png").exists()
