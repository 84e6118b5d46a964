"""Runs of `train` that are killed: `python -m tests.helpers.killed_train SOURCE FOLDER ROUNDS SEED`.

A whole run goes to FOLDER/whole. Of each round, in FOLDER/NUMBER, one run after the other is killed: in round
0 in every stage, and in all at random moments. The last run of a round is left to end. Every run is a fork of
this process, which has one thread, so that nothing is imported twice. Prints {"seconds": of the whole run,
"killed": [number by round]}.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from bottleneck import train
from bottleneck.extraction.pipeline import Trunk
from bottleneck.studies.train import final_model, route
from bottleneck.trials import finetuning, heads, mirrors

SETTINGS = {
    "finetune": "always",
    "flip": True,
    "cv": 2,
    "batch_size": 16,
    "backbone": "small_cnn",
    "weights": "none",
    "depth": 2,
    "image_size": 32,
    "engine": "torch",
}
STAGES = [
    (Trunk, "stream", 0),
    (heads, "_judged", 3),
    (mirrors, "mirrored_outputs", 1),
    (finetuning.OpenTuning, "held_out_logits", 1),
    (final_model, "final_network", 0),
    (route, "write_tables", 0),
]


def run(source, folder, stage=None, after=None):
    """Train in a fork, killed in a stage or after some seconds; return whether it ended, and its seconds."""
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        promise()
        if stage is not None:
            owner, name, calls = stage
            setattr(owner, name, killing(getattr(owner, name), calls))
        result = train(source, folder / "m.safetensors", **SETTINGS)
        (folder / "result.json").write_text(json.dumps(result.to_json()))
        os._exit(0)
    while after is not None and time.perf_counter() - started < after and not ended(child):
        time.sleep(0.005)
    if after is not None and not ended(child):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"train ended with {code}")
    return code == 0, time.perf_counter() - started


def ended(child):
    """Whether a child has ended, without waiting or reaping it."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def promise():
    """Tune one epoch, and judge the tuned block to be better than the heads, so that folds follow."""
    finetuning.EPOCHS = 1
    held_out = finetuning.OpenTuning.held_out_logits

    def promising(tune, rows, held):
        logits = held_out(tune, rows, held)
        return logits + 9.0 * np.eye(logits.shape[1], dtype=np.float32)[tune.task.target.values[held]]

    finetuning.OpenTuning.held_out_logits = promising


def killing(function, after):
    """The function, at whose call after so many the process is killed."""
    calls = []

    def killed(*arguments, **options):
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(1)
        return function(*arguments, **options)

    return killed


def main(source, folder, rounds, seed):
    random, folder = np.random.default_rng(seed), Path(folder)
    for name in ("whole", *map(str, range(rounds))):
        (folder / name).mkdir()
    _, whole = run(source, folder / "whole")
    killed = []
    for number in range(rounds):
        stops = [{"stage": stage} for stage in STAGES] if number == 0 else []
        stops += [{"after": random.uniform(0, 0.8 * whole)} for _ in range(6 if number else 1)]
        killed.append(sum(not run(source, folder / str(number), **stop)[0] for stop in stops))
        run(source, folder / str(number))
    print(json.dumps({"seconds": whole, "killed": killed}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
