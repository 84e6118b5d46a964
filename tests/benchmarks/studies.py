#!/usr/bin/env python3
"""What the studies cost: scores of many features, and runs of a transfer study with cached prefixes.

    python tests/benchmarks/studies.py [--rows 50000] [--features 1280] [--classes 100]

Takes about two minutes on 2 cores. The scores are measured one by one, with the memory that they add; the
frozen runs are measured beside the same training with the frozen layers run again in every step.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import print_machine
from torch import nn

from bottleneck.samples import ArrayRows
from bottleneck.studies.rank.scores import h_score, knn_accuracy, leep, logme, score
from bottleneck.studies.study_config import StudyConfig
from bottleneck.studies.transfer_study.protocol import Run, StudyImages
from bottleneck.studies.transfer_study.runs import Runner
from bottleneck.threads import serial_libraries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    print_machine()
    measure_scores(options.rows, options.features, options.classes)
    measure_frozen_runs()


def measure_scores(N: int, D: int, K: int) -> None:
    """Seconds of each score on float16 rows, as a cache holds them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, N)
    rows, outputs = np.empty((N, D), np.float16), np.empty((N, 1000), np.float32)
    for part in np.array_split(np.arange(N), 100):  # so that making them sets no peak
        drawn = rng.standard_normal((len(part), D), dtype=np.float32) + 0.1 * labels[part, None] / K
        rows[part] = np.maximum(drawn, 0)
        outputs[part] = rng.dirichlet(np.ones(1000) / 10, size=len(part))
    before = peak_megabytes()
    print(f"Scores of {N:,} × {D:,} float16 rows in {K} classes")
    contenders: dict[str, Callable[[], object]] = {
        "LogME": lambda: logme(rows, labels),
        "H-score": lambda: h_score(rows, labels),
        "LEEP": lambda: leep(outputs, labels),
        "kNN accuracy": lambda: knn_accuracy(rows, labels),
        "all together": lambda: score(rows, labels, outputs),
    }
    for name, run in contenders.items():
        print(f"  {name:14}{seconds(run):8.1f} s")
    print(f"  {'added memory':14}{peak_megabytes() - before:8.0f} MB")


def measure_frozen_runs() -> None:
    """Runs with n frozen layers: from cached activations, and with the layers run in every step."""
    rng = np.random.default_rng(0)
    images = StudyImages(
        pixels=rng.integers(0, 256, (3000, 32, 32, 1), dtype=np.uint8),
        codes=np.arange(3000) % 60,
        val=np.arange(3000) % 3 == 2,
        class_names=tuple(map(str, range(60))),
        digest="",
    )
    config = StudyConfig(seeds=1, in_channels=1, epochs=3)
    halves = [{"A": np.arange(0, 30), "B": np.arange(30, 60)}]
    print("Frozen runs of a transfer study, alexnet8 on 1,000 images of 32 pixels, 3 epochs")
    with tempfile.TemporaryDirectory() as folder, serial_libraries():  # as runs side by side have it
        runner = Runner(config, images, halves, Path(folder))
        base = runner.train(Run(0, "baseB"))
        print(f"  {'base network':14}{base.seconds:8.2f} s")
        for n in (1, 4, 7):
            cached = runner.train(Run(0, "BnB", n)).seconds
            running = seconds(lambda n=n: train_with_prefix(runner, n))
            print(
                f"  BnB, n = {n:<5}{cached:8.2f} s   prefix run in each step {running:6.2f} s   "
                f"{running / cached:.1f}×"
            )


def train_with_prefix(runner: Runner, n: int) -> None:
    """The same run as `Runner.train(BnB, n)`, but for the cache."""
    run = Run(0, "BnB", n)
    network = runner._network(run)
    module = OnPixels(network.prefix(n), network.suffix(n))
    runner._fit(run, module, ArrayRows(runner.images.pixels), runner._samples(run))


class OnPixels(nn.Module):
    """Frozen layers in evaluation mode, then those that learn."""

    def __init__(self, prefix: nn.Module, suffix: nn.Module) -> None:
        super().__init__()
        self.frozen, self.suffix = [prefix.eval().requires_grad_(False)], suffix

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.frozen[0](pixels)
        return self.suffix(features)


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def peak_megabytes() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
