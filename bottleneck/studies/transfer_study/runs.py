"""The runs of the transfer study, several at once; each stores its result in a file.

    seedS-KIND-N.json              the result; a run that has one is not trained again
    seedS-baseX.safetensors        the trained base network

alexnet8 is so small that several threads would wait for each other longer than they compute. So each run has
one thread, and as many runs are trained at once as there are cores. A backbone may draw random numbers in
training (dropout), and torch has one generator per process. So its runs are trained one after another, each
with all cores.

Frozen layers give the same output in every epoch. It is computed once, and the run trains on it.

Shapes: N images of the study, S pixels a side, n copied layers, B images of a batch, K classes of a half.
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
from bottleneck.errors import Note, distinct
from bottleneck.files import write_whole
from bottleneck.progress import Reporter
from bottleneck.samples import ArrayRows
from bottleneck.studies.study_config import ALEXNET, StudyConfig
from bottleneck.studies.transfer_study.networks import LayeredNetwork, build_network
from bottleneck.studies.transfer_study.protocol import Run, StudyImages, temporary_array
from bottleneck.threads import available_cores, serial_libraries
from bottleneck.training.batches import SampleSet
from bottleneck.training.config import TrainingConfig
from bottleneck.training.job import Inputs, TrainingJob, fewest_samples
from bottleneck.training.loop import EpochRecord
from bottleneck.training.loss import logits_of, predicted
from bottleneck.training.optim import LayerGroup

PASS = 256  # images that pass the network at once when it is not trained
CALIBRATION = 512  # images that set the BatchNorm statistics of random layers
GUESSING = 0.01  # probability; if guessing is that likely to be as accurate, a network has not learnt


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


class Runner:
    """Trains the runs of one study in `folder`.

    halves : for each seed, the class codes of A and of B.
    """

    def __init__(
        self,
        config: StudyConfig,
        images: StudyImages,
        halves: Sequence[dict[str, np.ndarray]],
        folder: Path,
    ) -> None:
        self.config, self.images, self.halves, self.folder = config, images, halves, folder
        self.at_once = available_cores() if config.network == ALEXNET else 1
        self._building = threading.Lock()  # weights are drawn from the one generator of the process
        self._stopped = threading.Event()

    def notes(self, runs: Sequence[Run]) -> list[Note]:
        """Return what is decided on the images and on the batches of `runs`, before any is trained.

        Raises FitError where BatchNorm cannot be trained with batches of the requested size.
        """
        notes = list(self.images.notes)
        for run in {(run.kind == "baseA", run.half, run.share): run for run in runs if run.n == 0}.values():
            network = _OneImage(self._network(run).suffix(0)).train()
            rows, samples = ArrayRows(self.images.pixels), self._samples(run)["train"]
            notes += fewest_samples(network, rows, samples, self.config.batch_size)[1]
        return distinct(notes)

    def result(self, run: Run) -> RunResult | None:
        """Return the stored result of `run`, or None if it has not been trained."""
        try:
            return RunResult(**json.loads(self._path(run, "json").read_bytes()))
        except (FileNotFoundError, TypeError, ValueError):
            return None

    def train_all(self, runs: Sequence[Run]) -> Iterator[tuple[Run, RunResult]]:
        """Train `runs`, `at_once` at a time, and yield each as it ends. Their sources must have been trained.

        If the caller stops early, by an error or Ctrl-C, runs in progress end after their epoch, unfinished.
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
        """Train `run`, whose source has been trained; store and return its result."""
        started = time.perf_counter()
        samples = self._samples(run)
        network = self._network(run)
        rows = self._rows(run, network, samples)
        hits, train_accuracy = self._fit(run, network.suffix(run.n if run.frozen else 0), rows, samples)
        if run.n == 0:
            write_whole(self._path(run, "safetensors"), save(network.module.state_dict()))
        diverged = hits is None
        if hits is None:
            hits = np.zeros(len(samples["val"]), bool)
        result = RunResult(
            **asdict(run),
            accuracy=float(hits.mean()),
            train_accuracy=train_accuracy,
            images=len(samples["train"]),
            val_images=len(hits),
            classes=len(self._classes(run)),
            diverged=diverged,
            seconds=time.perf_counter() - started,
            correct=np.packbits(hits).tobytes().hex(),
        )
        write_whole(self._path(run, "json"), json.dumps(asdict(result)).encode())
        return result

    def _classes(self, run: Run) -> np.ndarray:
        return self.halves[run.seed][run.half]

    def _samples(self, run: Run) -> dict[str, SampleSet]:
        """Return the train and val images of the run's half; rows of `images`."""
        classes = self._classes(run)
        train, val = self.images.of_classes(classes, run.share if run.kind == "baseA" else 1.0)
        return {
            split: SampleSet(rows[:, None], np.zeros((len(rows), 0)), self.images.labels(rows, classes))
            for split, rows in (("train", train), ("val", val))
        }

    def _network(self, run: Run) -> LayeredNetwork:
        """Build the network, untrained. Runs of one seed and n draw the same weights, then copy layers."""
        config, entropy = self.config, [run.seed, run.n, run.kind == "baseA"]
        with self._building:
            network = build_network(
                config.network,
                len(self._classes(run)),
                size=config.image_size,
                channels=config.in_channels,
                width=config.width,
                seed=int(np.random.SeedSequence(entropy).generate_state(1)[0]),
            )
        if run.source:
            network.copy_layers(run.n, load_file(self._path(run.source, "safetensors")))
        return network

    def _rows(self, run: Run, network: LayeredNetwork, samples: dict[str, SampleSet]) -> ArrayRows:
        """Return by image the pixels, or the output of the frozen layers."""
        pixels = self.images.pixels
        if not run.frozen:
            return ArrayRows(pixels)
        train, val = (samples[split].image[:, 0] for split in ("train", "val"))
        prefix = network.prefix(run.n)
        if run.kind == "random":
            some = train[:: max(1, len(train) // CALIBRATION)]
            calibrate_in_training_mode(prefix, torch.from_numpy(pixels[some]))
        return activations(prefix, pixels, np.sort(np.concatenate([train, val])), self.folder)

    def _fit(
        self, run: Run, module: nn.Module, rows: ArrayRows, samples: dict[str, SampleSet]
    ) -> tuple[np.ndarray | None, float]:
        """Train `module`, (B, …) rows → (B, K) logits.

        Returns
        -------
        Which val images are right after the last epoch, None if the training diverged; accuracy on train.
        """
        config = self.config
        network = _OneImage(module)
        job = TrainingJob(
            network,
            [LayerGroup("network", 0, tuple(network.named_parameters()))],
            Inputs(rows, rows),
            samples,
            len(self._classes(run)),
            TrainingConfig(
                epochs=config.epochs,
                patience=0,
                batch_size=config.batch_size,
                label_smoothing=0.0,
                seed=run.seed,
                optimizer="sgd",
                lr=config.lr,
                weight_decay=config.weight_decay,
            ),
            measure_size=PASS,
            choose_best=False,
        )
        if self.at_once == 1:
            job.train(reporter=_Cancellable(self._stopped))  # with a seed, for networks with dropout
        else:
            job.training.run(_Cancellable(self._stopped))
        epochs = job.training.state.history
        if job.training.state.stopped == "diverged":
            return None, 0.0
        logits, labels = logits_of(network, job.training.val, job.device)
        return (predicted(logits) == labels).numpy(), epochs[-1].train_accuracy or 0.0

    def _path(self, run: Run, suffix: str) -> Path:
        return self.folder / f"{run.name}.{suffix}"


@torch.inference_mode()
def activations(prefix: nn.Module, pixels: np.ndarray, images: np.ndarray, folder: Path) -> ArrayRows:
    """Run `prefix`, in evaluation mode, once over the `images` of `pixels` (N, S, S, channels).

    Returns N rows in a temporary file in `folder`, of which only those of `images` are filled.
    """
    prefix.eval()
    shape = prefix(torch.from_numpy(pixels[images[:1]])).shape[1:]
    values = temporary_array(folder, (len(pixels), *shape), np.float32, filled=len(images))
    for start in range(0, len(images), PASS):
        chosen = images[start : start + PASS]
        values[chosen] = prefix(torch.from_numpy(pixels[chosen])).numpy()
    return ArrayRows(values)


class _OneImage(nn.Module):
    """A network for samples of one image each, without covariates, as `TrainingJob` calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor, covariates: Tensor) -> Tensor:
        """(B, 1, …) → (B, K)."""
        return self.network(rows[:, 0])


class _Cancellable(Reporter):
    """Ends a training after the current epoch once `stopped` is set."""

    def __init__(self, stopped: threading.Event) -> None:
        self.stopped = stopped

    def epoch(self, record: EpochRecord) -> None:
        """Raise CancelledError if the run is to end."""
        if self.stopped.is_set():
            raise CancelledError
