"""A run that is killed at a step: `python -m tests.helpers.killed_training FOLDER EPOCH STEP PRECISION`."""

import os
import signal
import sys
from pathlib import Path

import torch

from bottleneck.training.checkpoint import Checkpoint
from tests.helpers.tiny_training import training


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
            os.kill(os.getpid(), signal.SIGKILL)
        return update(batch)

    job.update = update_or_die
    records = job.run()
    return job, records


if __name__ == "__main__":
    run(sys.argv[1], (int(sys.argv[2]), int(sys.argv[3])), sys.argv[4])
