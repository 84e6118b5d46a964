"""Runs that are killed at a step, each in a process of its own (`tests.helpers.forked`)."""

import os
import signal
from pathlib import Path

import torch

from bottleneck.remote.urls import allow
from bottleneck.training import finetune_plan
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.finetune import finetune
from bottleneck.training.loop import Training
from tests.helpers.tiny_training import training

FRESH, RESUMED = 10, 11  # exit codes of `finetuned`


def die(*_, **__):
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def run(folder, kill_at=None, precision="fp32"):
    """Train with a checkpoint after every step; SIGKILL before step `kill_at`, (epoch, step)."""
    torch.manual_seed(1)
    job = training(
        checkpoint=Checkpoint(Path(folder) / "run.safetensors", "fingerprint"),
        checkpoint_seconds=0.0,
        precision=precision,
    )
    update = job.update

    def update_or_die(batch):
        if (job.state.epoch, job.state.step) == kill_at:
            die()
        return update(batch)

    job.update = update_or_die
    records = job.run()
    return job, records


def finetuned(cache, head, model, kill=None):
    """Fine-tune with a checkpoint after every step; SIGKILL before step `kill`, counted over the epochs."""
    update, steps = Training.update, []

    def update_or_die(self, batch):
        self.checkpoint_seconds = 0.0
        if len(steps) == kill:
            die()
        steps.append(1)
        return update(self, batch)

    Training.update = update_or_die
    options = {"epochs": 3, "batch_size": 8, "lr": 0.03, "label_smoothing": 0.1, "batchnorm": "train"}
    raise SystemExit(RESUMED if finetune(cache, head, model, **options).resumed else FRESH)


def killed_before_the_new_map(cache, node):
    """Replace a map by one in float32; SIGKILL when the old one is set aside and nothing is computed."""
    finetune_plan.run_prepared = die
    with allow(local=True):
        finetune_plan.ensure_map(cache, node, dtype="float32")
