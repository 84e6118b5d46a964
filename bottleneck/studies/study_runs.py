"""One run of the transfer study after another: each is a training whose result is kept in a file of its own.

    seedS-KIND-N.json              the result; a run that has one is not trained again
    seedS-baseX.safetensors        what a base network learnt
    running.safetensors            checkpoint of the run in progress
    activations.npy                what the frozen layers say of its images

Shapes: N images, L layers, B images of a batch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bottleneck.errors import FitError
from bottleneck.store.spec import fingerprint
from bottleneck.studies.study_images import ArrayRows, StudyImages, create_array
from bottleneck.studies.study_networks import LayeredNetwork, build_network
from bottleneck.studies.study_plan import Run, StudyConfig
from bottleneck.training.batches import Batches, SampleSet
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.loop import Training
from bottleneck.training.measure import logits_of
from bottleneck.training.objective import Objective, predicted
from bottleneck.training.optim import LayerGroup, OptimConfig, Schedule, build_optimizer

PASS = 256  # images that pass the frozen layers at once
CALIBRATION = 512  # images that set the BatchNorm statistics of random layers


@dataclass(frozen=True)
class RunResult:
    """What a run gave.

    accuracy : on the val images of its half after the last epoch; no epoch is chosen by it.
    train_accuracy : mean over the last epoch. images : that it was trained on. seconds : wall time.
    correct : which val images were right, one bit each in their order, as hexadecimal digits.
    """

    seed: int
    kind: str
    n: int
    share: float
    accuracy: float
    train_accuracy: float
    images: int
    val_images: int
    seconds: float
    correct: str

    @property
    def hits(self) -> np.ndarray:
        """(val_images,) bool: which val images were right."""
        packed = np.frombuffer(bytes.fromhex(self.correct), np.uint8)
        return np.unpackbits(packed, count=self.val_images).astype(bool)


class _OnRows(nn.Module):
    """A network on batches of one image a sample, as the loop hands them over."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor, covariates: Tensor) -> Tensor:
        """(B, 1, …) → (B, K)."""
        return self.network(rows[:, 0])


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

    def result(self, run: Run) -> RunResult | None:
        """The result of `run`, or None where it has not been trained."""
        try:
            return RunResult(**json.loads(self._path(run, "json").read_text()))
        except (FileNotFoundError, TypeError, ValueError):
            return None

    def train(self, run: Run) -> RunResult:
        """Train `run`, whose source has been trained; keep and return its result."""
        started = time.perf_counter()
        classes = self.halves[run.seed][run.half]
        network = self._network(run, len(classes))
        train, val = self.images.of_classes(classes, run.share if run.kind == "baseA" else 1.0)
        with self._rows(run, network, train, val) as rows:
            module = _OnRows(network.suffix(run.n if run.frozen else 0))
            hits, train_accuracy = self._fit(run, module, rows, classes, train, val)
        if run.n == 0:
            self._replace(run, "safetensors", lambda path: save_file(network.module.state_dict(), path))
        result = RunResult(
            **asdict(run),
            accuracy=float(hits.mean()),
            train_accuracy=train_accuracy,
            images=len(train),
            val_images=len(val),
            seconds=time.perf_counter() - started,
            correct=np.packbits(hits).tobytes().hex(),
        )
        self._replace(run, "json", lambda path: path.write_text(json.dumps(asdict(result))))
        return result

    def _network(self, run: Run, classes: int) -> LayeredNetwork:
        """The start of `run`; runs of one seed and n draw the same weights before they copy."""
        config = self.config
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

    @contextmanager
    def _rows(
        self, run: Run, network: LayeredNetwork, train: np.ndarray, val: np.ndarray
    ) -> Iterator[ArrayRows]:
        """Pixels, or what the frozen layers make of them, by image."""
        if not run.frozen:
            yield ArrayRows(self.images.pixels)
            return
        prefix = network.prefix(run.n)
        if run.kind == "random":
            _calibrate(prefix, self._pixels(train[:: max(1, len(train) // CALIBRATION)]))
        path = self.folder / "activations.npy"
        try:
            yield ArrayRows(self._activations(prefix, np.sort(np.concatenate([train, val])), path))
        finally:
            path.unlink(missing_ok=True)

    @torch.inference_mode()
    def _activations(self, prefix: nn.Module, rows: np.ndarray, path: Path) -> np.ndarray:
        """Run `prefix` once over the images `rows` into a file that has a (sparse) row for every image."""
        prefix.eval()
        shape = prefix(self._pixels(rows[:1])).shape[1:]
        values = create_array(path, (len(self.images.codes), *shape), np.float32)
        for start in range(0, len(rows), PASS):
            chosen = rows[start : start + PASS]
            values[chosen] = prefix(self._pixels(chosen)).numpy()
        return values

    def _pixels(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.images.pixels[rows])

    def _fit(
        self,
        run: Run,
        module: nn.Module,
        rows: ArrayRows,
        classes: np.ndarray,
        train: np.ndarray,
        val: np.ndarray,
    ) -> tuple[np.ndarray, float]:
        """Train `module`: which val images are right, and its accuracy on train, after the last epoch."""
        config = self.config
        learn = Batches(rows, self._samples(train, classes), config.batch_size, seed=run.seed)
        measured = Batches(rows, self._samples(val, classes), PASS, shuffle=False)
        optim = OptimConfig(lr=config.lr, weight_decay=config.weight_decay)
        checkpoint = Checkpoint(self.folder / "running.safetensors", fingerprint({"run": asdict(run)}))
        training = Training(
            module.train(),
            Objective(len(classes)),
            build_optimizer([LayerGroup("network", 0, tuple(module.named_parameters()))], optim),
            Schedule(config.epochs * learn.steps, optim.warmup),
            learn,
            measured,
            config.epochs,
            clip=optim.clip,
            checkpoint=checkpoint,
        )
        for record in training.records():  # noqa: B007, the last one is used
            last = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        if training.state.stopped == "diverged":
            raise FitError(
                f"Run {run.name} diverged at learning rate {config.lr:g}.", f"Use --lr {config.lr / 4:g}."
            )
        module.load_state_dict(last)  # the loop ends with the best epoch's, which val has chosen
        checkpoint.remove()
        logits, labels = logits_of(module, measured, torch.device("cpu"))
        return (predicted(logits) == labels).numpy(), record.train_accuracy

    def _samples(self, rows: np.ndarray, classes: np.ndarray) -> SampleSet:
        return SampleSet(rows[:, None], np.zeros((len(rows), 0)), self.images.labels(rows, classes))

    def _path(self, run: Run, suffix: str) -> Path:
        return self.folder / f"{run.name}.{suffix}"

    def _replace(self, run: Run, suffix: str, write) -> None:
        """Write a file of `run` beside its place, then move it there."""
        path = self._path(run, suffix)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        write(temporary)
        os.replace(temporary, path)


@torch.no_grad()
def _calibrate(prefix: nn.Module, pixels: Tensor) -> None:
    """Set the BatchNorm statistics of random layers to those of some images; as drawn they say nothing."""
    norms = [module for module in prefix.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over batches seen, here of one
    prefix.train()
    prefix(pixels)
