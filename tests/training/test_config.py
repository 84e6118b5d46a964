"""Settings: checked when they are made, with defaults that need no torch, and in a form that stays valid."""

import subprocess
import sys

import pytest

from bottleneck.errors import FitError
from bottleneck.training.config import CompareConfig, FinetuneConfig, ScratchConfig, TrainingConfig


def test_the_defaults_need_no_torch():
    code = "import sys, bottleneck.training.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (TrainingConfig, {"epochs": 0}),
        (TrainingConfig, {"precision": "fp16"}),
        (TrainingConfig, {"label_smoothing": 1.0}),
        (FinetuneConfig, {"init": "zeros"}),
        (FinetuneConfig, {"batchnorm": "frozen"}),
        (ScratchConfig, {"augment": "lively"}),
        (CompareConfig, {"lr": -1.0}),
    ],
)
def test_impossible_settings_are_refused_by_name(kind, bad):
    with pytest.raises(FitError, match=next(iter(bad))):
        kind(**bad)


def test_the_runs_of_a_comparison_share_its_settings():
    config = CompareConfig(epochs=7, seed=3, optimizer="sgd", weight_decay=0.5)
    finetuned, scratch = config.finetuning(unfreeze=2, init="random"), config.from_scratch(depth=3)
    assert (finetuned.epochs, finetuned.seed, finetuned.learning_rate) == (7, 3, 0.1)
    assert (finetuned.unfreeze, finetuned.init, finetuned.weight_decay) == (2, "random", 0.5)
    assert (scratch.epochs, scratch.seed, scratch.depth) == (7, 3, 3)
    assert (scratch.optimizer, scratch.weight_decay) == ("adamw", ScratchConfig.weight_decay)


def test_what_fingerprints_are_computed_from_keeps_its_form():
    nested = FinetuneConfig().nested()
    assert FinetuneConfig(precision="bf16").nested()["run"].pop("precision") == "bf16"
    assert list(nested) == [
        *("unfreeze", "init", "views", "augment", "batchnorm", "weights", "trust_code", "labels", "group"),
        "label_separator",
        "run",
    ]
    assert list(nested["run"]) == [
        *("epochs", "patience", "batch_size", "label_smoothing", "val_fraction", "seed", "memory", "device"),
        "optim",
    ]
    assert nested["run"]["optim"] == {
        "optimizer": "adamw",
        "lr": 6e-3,
        "backbone_ratio": 0.1,
        "decay": 0.8,
        "weight_decay": 0.0,
        "warmup": 0.1,
        "unfreeze_every": 0,
        "clip": 1.0,
    }
