"""A run that is stopped in one stage after the other ends with the choice of a run that was not."""

import numpy as np
import pytest

from bottleneck import train
from bottleneck.extraction.pipeline import Trunk
from bottleneck.studies.train import route
from bottleneck.trials import finetuning, heads
from tests.studies.train.conftest import TINY


class Stopped(BaseException):
    """As SIGKILL does, it passes through everything."""


def test_a_run_that_is_stopped_in_every_stage(source, tmp_path, monkeypatch):
    """Extraction, a head, a combination, a fold of tuning, before the final fit, and after test was read."""
    monkeypatch.setattr(finetuning, "EPOCHS", 1)
    held_out = finetuning.OpenTuning.held_out_logits

    def promising(tune, rows, held):  # better than the heads, so that folds follow
        logits = held_out(tune, rows, held)
        return logits + 9.0 * np.eye(logits.shape[1], dtype=np.float32)[tune.task.target.values[held]]

    monkeypatch.setattr(finetuning.OpenTuning, "held_out_logits", promising)
    settings = {"finetune": "always", "cv": 2, "batch_size": 16, **TINY}
    expected = train(source, tmp_path / "whole" / "m.safetensors", **settings)
    assert expected.chosen["kind"] == "finetuned"
    stages = [
        (Trunk, "stream", 0),
        (heads, "_judged", 1),
        (heads, "_judged", 3),
        (finetuning.OpenTuning, "held_out_logits", 1),
        (route, "write_model", 0),
        (route, "write_tables", 0),
    ]
    for owner, name, after in stages:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, stopping(getattr(owner, name), after))
            with pytest.raises(Stopped):
                train(source, tmp_path / "cut" / "m.safetensors", **settings)
    found = train(source, tmp_path / "cut" / "m.safetensors", **settings)
    for each, other in zip(found.candidates, expected.candidates, strict=True):
        assert {**each, "seconds": 0} == {**other, "seconds": 0}
    assert (found.accuracy, found.rule) == (expected.accuracy, expected.rule)


def stopping(function, after):
    """The function, which is not called again after so many calls."""
    calls = []

    def stopped(*arguments, **options):
        if len(calls) == after:
            raise Stopped
        calls.append(1)
        return function(*arguments, **options)

    return stopped
