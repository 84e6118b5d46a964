"""What the studies cost: scores of many features, and runs of a transfer study with cached prefixes.

    python -m tests.benchmarks.studies [--short]

Takes about two minutes on 2 cores. The scores are measured one by one, with the memory that they add; the
frozen runs are measured beside the same training with the frozen layers run again in every step.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bottleneck.samples import ArrayRows
from bottleneck.studies.rank.scores import h_score, knn_accuracy, leep, logme, score
from bottleneck.studies.study_config import StudyConfig
from bottleneck.studies.transfer_study.protocol import Run, StudyImages
from bottleneck.studies.transfer_study.runs import Runner
from bottleneck.threads import serial_libraries
from tests.benchmarks.machine import peak_megabytes
from tests.benchmarks.measurement import FEWER, REPEATS, Row, main


def rows(short: bool) -> Iterator[Row]:
    """Scores, and runs with frozen layers."""
    yield from scores(2000 if short else 50_000, 1280, 100)
    yield from frozen_runs()


def scores(N: int, D: int, K: int) -> Iterator[Row]:
    """Seconds of each score on float16 rows, as a cache holds them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, N)
    rows, outputs = np.empty((N, D), np.float16), np.empty((N, 1000), np.float32)
    for part in np.array_split(np.arange(N), 100):  # so that making them sets no peak
        drawn = rng.standard_normal((len(part), D), dtype=np.float32) + 0.1 * labels[part, None] / K
        rows[part] = np.maximum(drawn, 0)
        outputs[part] = rng.dirichlet(np.ones(1000) / 10, size=len(part))
    before = peak_megabytes()
    contenders: dict[str, Callable[[], object]] = {
        "LogME": lambda: logme(rows, labels),
        "H-score": lambda: h_score(rows, labels),
        "LEEP": lambda: leep(outputs, labels),
        "kNN accuracy": lambda: knn_accuracy(rows, labels),
        "all scores together": lambda: score(rows, labels, outputs),
    }
    conditions = f"{N:,} × {D:,} float16 rows, {K} classes"
    for name, run in contenders.items():
        took = tuple(seconds(run) for _ in range(REPEATS))
        yield Row(name, "s by the clock", took, conditions=conditions)
    yield Row("all scores: added memory", "MB", (peak_megabytes() - before,), conditions=conditions)


def frozen_runs() -> Iterator[Row]:
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
    with tempfile.TemporaryDirectory() as folder, serial_libraries():  # as runs side by side have it
        runner = Runner(config, images, halves, Path(folder))
        runner.train(Run(0, "baseB"))
        for n in (1, 4, 7):
            cached = runner.train(Run(0, "BnB", n)).seconds
            running = seconds(lambda n=n: train_with_prefix(runner, n))
            yield Row(
                f"transfer study: BnB with {n} frozen layers",
                "s by the clock",
                (cached,),
                (running,),
                "frozen layers run in each step",
                FEWER,
                conditions="alexnet8, 1,000 images of 32 pixels, 3 epochs, one run",
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


if __name__ == "__main__":
    main(rows, __doc__)
