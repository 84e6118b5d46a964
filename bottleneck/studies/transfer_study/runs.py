"""The runs of the transfer study, as many at once as there are cores; each keeps its result in a file.

    seedS-KIND-N.json              the result; a run that has one is not trained again
    seedS-baseX.safetensors        what a base network learnt

Networks this small gain nothing from several threads, whose barriers cost more than the work between them:
each run has one thread. A backbone may draw random numbers while it trains (dropout), and torch keeps one
generator a process; so its runs come one by one, each with all cores.

Shapes: N images, L layers, B images of a batch.

What the first, frozen layers of a network say of images: worked out once, kept in a file without a name.

Shapes: N images of the study, S pixels a side, C channels.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from scipy.stats import binom
from torch import Tensor, nn

from bottleneck.backbones.batchnorm import calibrate_in_training_mode
from bottleneck.files import write_whole
from bottleneck.progress import Reporter
from bottleneck.samples import ArrayRows
from bottleneck.studies.study_config import ALEXNET, StudyConfig
from bottleneck.studies.transfer_study.images import StudyImages, temporary_array
from bottleneck.studies.transfer_study.networks import LayeredNetwork, build_network
from bottleneck.studies.transfer_study.protocol import Run
from bottleneck.threads import available_cores, serial_libraries
from bottleneck.training.batches import SampleSet
from bottleneck.training.config import TrainingConfig
from bottleneck.training.job import Inputs, TrainingJob
from bottleneck.training.loop import EpochRecord
from bottleneck.training.loss import logits_of, predicted
from bottleneck.training.optim import LayerGroup

PASS = 256  # images that pass the layers at once
CALIBRATION = 512  # images that set the BatchNorm statistics of random layers


@torch.inference_mode()
def activations(prefix: nn.Module, pixels: np.ndarray, images: np.ndarray, folder: Path) -> ArrayRows:
    """Run `prefix`, in evaluation mode, once over the `images` of `pixels` (N, S, S, C).

    The rows, of which only those of `images` are filled, lie in a temporary file in `folder`.
    """
    prefix.eval()
    shape = prefix(_tensor(pixels, images[:1])).shape[1:]
    values = temporary_array(folder, (len(pixels), *shape), np.float32, filled=len(images))
    for start in range(0, len(images), PASS):
        chosen = images[start : start + PASS]
        values[chosen] = prefix(_tensor(pixels, chosen)).numpy()
    return ArrayRows(values)


def _tensor(pixels: np.ndarray, images: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels[images])


GUESSING = 0.01  # a network whose accuracy guesses reach with at least this probability has not learnt


@dataclass(frozen=True, kw_only=True)
class RunResult(Run):
    """A run and its result.

    accuracy : on the val images of its half after the last epoch; it chooses no epoch.
    train_accuracy : mean over the last epoch. images : number of train images. seconds : wall time.
    correct : which val images were right, one bit each in their order, as hexadecimal digits.
    diverged : whether the training diverged and ended early; then none is right.
    """

    accuracy: float
    train_accuracy: float
    images: int
    val_images: int
    classes: int
    diverged: bool
    seconds: float
    correct: str

    @property
    def hits(self) -> np.ndarray:
        """(val_images,) bool, which val images were right."""
        packed = np.frombuffer(bytes.fromhex(self.correct), np.uint8)
        return np.unpackbits(packed, count=self.val_images).astype(bool)

    @property
    def learnt(self) -> bool:
        """Whether guessing gets that many val images right with a probability below `GUESSING` only."""
        return bool(binom.sf(self.hits.sum() - 1, self.val_images, 1 / self.classes) < GUESSING)


class _OnRows(nn.Module):
    """A network on batches of one image a sample, as the loop hands them over."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor, covariates: Tensor) -> Tensor:
        """(B, 1, …) → (B, K)."""
        return self.network(rows[:, 0])


class _Cancellable(Reporter):
    """Stops a training at the end of an epoch once `stopped` is set."""

    def __init__(self, stopped: threading.Event) -> None:
        self.stopped = stopped

    def epoch(self, record: EpochRecord) -> None:
        """Raise CancelledError where the run is to stop."""
        if self.stopped.is_set():
            raise CancelledError


class Runner:
    """Trains the runs of one study below `folder`.

    halves : for each seed, the class codes of A and of B.
    """

    def __init__(
        self,
        config: StudyConfig,
        images: StudyImages,
        halves: list[dict[str, np.ndarray]],
        folder: Path,
    ) -> None:
        self.config, self.images, self.halves, self.folder = config, images, halves, folder
        self.at_once = available_cores() if config.network == ALEXNET else 1
        self._building = threading.Lock()  # weights are drawn from the process's one generator
        self._stopped = threading.Event()

    def result(self, run: Run) -> RunResult | None:
        """The result of `run`, or None where it has not been trained."""
        try:
            return RunResult(**json.loads(self._path(run, "json").read_text()))
        except (FileNotFoundError, TypeError, ValueError):
            return None

    def train_all(self, runs: Sequence[Run]) -> Iterator[tuple[Run, RunResult]]:
        """Train `runs`, whose sources have been trained, `at_once` side by side; each as it ends.

        Left early, by an error or Ctrl-C, it drops the runs in progress at the end of their epoch.
        """
        if self.at_once == 1:
            yield from ((run, self.train(run)) for run in runs)
            return
        with serial_libraries(), ThreadPoolExecutor(self.at_once) as pool:
            futures = {pool.submit(self.train, run): run for run in runs}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                self._stopped.clear()

    def train(self, run: Run) -> RunResult:
        """Train `run`, whose source has been trained; keep and return its result."""
        started = time.perf_counter()
        classes = self.halves[run.seed][run.half]
        network = self._network(run, len(classes))
        train, val = self.images.of_classes(classes, run.share if run.kind == "baseA" else 1.0)
        rows = self._rows(run, network, train, val)
        module = _OnRows(network.suffix(run.n if run.frozen else 0))
        hits, train_accuracy = self._fit(run, module, rows, classes, train, val)
        if run.n == 0:
            write_whole(self._path(run, "safetensors"), save(network.module.state_dict()))
        result = RunResult(
            **asdict(run),
            accuracy=float(hits.mean()) if hits is not None else 0.0,
            train_accuracy=train_accuracy,
            images=len(train),
            val_images=len(val),
            classes=len(classes),
            diverged=hits is None,
            seconds=time.perf_counter() - started,
            correct=np.packbits(np.zeros(len(val), bool) if hits is None else hits).tobytes().hex(),
        )
        write_whole(self._path(run, "json"), json.dumps(asdict(result)).encode())
        return result

    def _network(self, run: Run, classes: int) -> LayeredNetwork:
        """The start of `run`; runs of one seed and n draw the same weights before they copy."""
        config = self.config
        with self._building:
            network = build_network(
                config.network,
                classes,
                size=config.image_size,
                channels=config.in_channels,
                width=config.width,
                seed=int(np.random.SeedSequence([run.seed, run.n, run.kind == "baseA"]).generate_state(1)[0]),
            )
        if run.source:
            network.copy_layers(run.n, load_file(self._path(run.source, "safetensors")))
        return network

    def _rows(self, run: Run, network: LayeredNetwork, train: np.ndarray, val: np.ndarray) -> ArrayRows:
        """Pixels, or what the frozen layers make of them, by image."""
        pixels = self.images.pixels
        if not run.frozen:
            return ArrayRows(pixels)
        prefix = network.prefix(run.n)
        if run.kind == "random":
            some = train[:: max(1, len(train) // CALIBRATION)]
            calibrate_in_training_mode(prefix, _tensor(pixels, some))
        return activations(prefix, pixels, np.sort(np.concatenate([train, val])), self.folder)

    def _fit(
        self,
        run: Run,
        module: nn.Module,
        rows: ArrayRows,
        classes: np.ndarray,
        train: np.ndarray,
        val: np.ndarray,
    ) -> tuple[np.ndarray | None, float]:
        """Train `module`: which val images are right after the last epoch, and its accuracy on train.

        None, where it diverged.
        """
        config = self.config
        settings = TrainingConfig(
            epochs=config.epochs,
            patience=0,
            batch_size=config.batch_size,
            label_smoothing=0.0,
            seed=run.seed,
            optimizer="sgd",
            lr=config.lr,
            weight_decay=config.weight_decay,
        )
        job = TrainingJob(
            module,
            [LayerGroup("network", 0, tuple(module.named_parameters()))],
            Inputs(rows, rows),
            {"train": self._samples(train, classes), "val": self._samples(val, classes)},
            len(classes),
            settings,
            measure_size=PASS,
            choose_best=False,
        )
        epochs = job.training.run(_Cancellable(self._stopped))
        if job.training.state.stopped == "diverged":
            return None, 0.0
        logits, labels = logits_of(module, job.training.val, job.device)
        return (predicted(logits) == labels).numpy(), epochs[-1].train_accuracy or 0.0

    def _samples(self, rows: np.ndarray, classes: np.ndarray) -> SampleSet:
        return SampleSet(rows[:, None], np.zeros((len(rows), 0)), self.images.labels(rows, classes))

    def _path(self, run: Run, suffix: str) -> Path:
        return self.folder / f"{run.name}.{suffix}"
