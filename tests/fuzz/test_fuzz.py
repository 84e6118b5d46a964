"""The short form of `python -m tests.fuzz`: the same inputs in every run, no finding among them."""

import pytest

from tests.fuzz.harness import fuzz
from tests.fuzz.targets import TARGETS

INPUTS = {"image": 150, "manifest": 100, "tar": 100, "log": 20, "head": 150, "model": 6}


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_ends_in_a_result_or_in_our_own_error(target, tmp_path):
    tally = fuzz(target, tmp_path / "findings", inputs=INPUTS[target])
    assert tally.findings == {}
    assert tally.inputs >= INPUTS[target]
    assert tally.outcomes["refused"] > 0
    assert list((tmp_path / "findings").iterdir()) == []
