"""Fine-tuning from the cache: the head first, then the blocks below it from there (LP-FT, Kumar et al. 2022).

    head ──► its layers, standardised ─┐
    cached map of the frozen trunk ────┴─► train the unfrozen blocks ──► the best epoch, or the head itself

The frozen trunk does not run in the loop: its output for each image is constant, so it is cached. Before the
first step the network's logits are compared with the head's on the cached features; training continues from
there.

A learning rate is found by trying: it is raised from step to step (Smith 2017). The loss falls, reaches a
lowest point, and rises steeply where training would diverge. A tenth of the rate at the lowest point of the
smoothed loss is a safe maximum for a schedule with warm-up.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch

from bottleneck.errors import FitError, Note, refuse_strict
from bottleneck.extraction.data_sheet import data_sheet
from bottleneck.files import require_file_name
from bottleneck.fitting.head_files import file_name
from bottleneck.heads.trained_on import seen_before
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import Result, config_from
from bottleneck.remote.path import path_of
from bottleneck.store.layout import cache_name
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import fingerprint
from bottleneck.training.batches import Batch, Batches
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.config import FinetuneConfig
from bottleneck.training.finetune_plan import (
    FinetunePlan,
    FinetuneRun,
    open_job,
    plan_finetuning,
    with_map,
)
from bottleneck.training.initial_head import faint_start, head_metrics
from bottleneck.training.inputs import statistics_of
from bottleneck.training.loop import Training
from bottleneck.training.loss import Measured, measure
from bottleneck.training.results import PIXELS, Fallback, ModelDraft, TrainingResult, conclude

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
SMOOTHING = 0.9  # weight of the past in the smoothed loss
BLOWN_UP = 4.0  # times the lowest loss: there the trial ends
MARGIN = 10.0


def finetune(
    cache: str | Path,
    head: str | Path,
    output: str | Path | None = None,
    *,
    unfreeze: int | str = FinetuneConfig.unfreeze,
    init: str = FinetuneConfig.init,
    views: int = FinetuneConfig.views,
    augment: str = FinetuneConfig.augment,
    batchnorm: str = FinetuneConfig.batchnorm,
    epochs: int = FinetuneConfig.epochs,
    patience: int = FinetuneConfig.patience,
    batch_size: int = FinetuneConfig.batch_size,
    optimizer: str = FinetuneConfig.optimizer,
    lr: float | None = FinetuneConfig.lr,
    backbone_ratio: float = FinetuneConfig.backbone_ratio,
    decay: float = FinetuneConfig.decay,
    weight_decay: float = FinetuneConfig.weight_decay,
    warmup: float = FinetuneConfig.warmup,
    unfreeze_every: int = FinetuneConfig.unfreeze_every,
    clip: float = FinetuneConfig.clip,
    label_smoothing: float = FinetuneConfig.label_smoothing,
    val_fraction: float = FinetuneConfig.val_fraction,
    seed: int = FinetuneConfig.seed,
    memory: int = FinetuneConfig.memory,
    device: str = FinetuneConfig.device,
    precision: str = FinetuneConfig.precision,
    weights: str | None = FinetuneConfig.weights,
    trust_code: bool = FinetuneConfig.trust_code,
    labels: str | Path | None = FinetuneConfig.labels,
    group: str | None = FinetuneConfig.group,
    label_separator: str | None = FinetuneConfig.label_separator,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> TrainingResult:
    """Unfreeze blocks below a head, and train them and the head, starting from the head as it is.

    A run that was killed continues where it was when it is called again, and has the same result.

    Parameters
    ----------
    cache, head : path
        A feature cache, and a head that was fitted on it.
    output : path, optional
        The model; `models/CACHE--TARGET--BLOCK.safetensors` by default.
    reporter : Reporter
        Receives the progress, the cost of long steps beforehand, and each epoch as it ends.
    strict : bool
        Refuse decisions that change what is learnt or measured (`errors.refuse_strict`).

    The other parameters are the fields of `training.config.FinetuneConfig`.

    Raises
    ------
    FingerprintError, ArtifactError
        The head is of another cache.
    FitError
        No val is possible, or the network does not start with the head's logits.
    BackboneError
        There are fewer blocks than are to be unfrozen.
    CacheError
        The map is not cached, and the images are gone.
    StrictError
        `strict` is given and a note changes the result.
    """
    started = time.perf_counter()
    config = config_from(FinetuneConfig, locals(), labels=None if labels is None else str(labels))
    plan = plan_finetuning(path_of(cache), Path(head), config)
    refuse_strict(plan.notes, strict, reporter.tell)
    plan = with_map(plan, Path(head), config, reporter)
    path = Path(output) if output else default_model(plan)
    require_file_name(path)
    with open_job(plan, config, path.parent, reporter) as run:
        plan = run.plan  # without the images that could not be read
        measured, notes = checked_start(plan, run, config)
        refuse_strict(notes, strict)
        checkpoint = Checkpoint.beside(path, _fingerprint(plan, run.cache, config))
        run.job.train(checkpoint, reporter)
        draft = _draft(plan, run, path, notes, compared=config.init == "head")
        result = conclude(run.job, draft, started, _fallback(plan, run.cache, measured), strict)
    checkpoint.remove()
    return result


def find_learning_rate(
    cache: str | Path,
    head: str | Path,
    config: FinetuneConfig,
    *,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> FoundRate:
    """Find the learning rate to fine-tune with by trying (Smith 2017). Raises as `finetune` does."""
    plan = plan_finetuning(path_of(cache), Path(head), config)
    refuse_strict(plan.notes, strict)
    plan = with_map(plan, Path(head), config, reporter)
    with open_job(plan, config, default_model(plan).parent, reporter) as run:
        notes = (*run.plan.notes, *run.notes, *run.job.notes)
        refuse_strict(notes, strict)
        found = find_rate(run.job.training, reporter)
        notes += run.job.row_notes()
        refuse_strict(notes, strict)
        return replace(found, notes=notes)


def checked_start(
    plan: FinetunePlan, run: FinetuneRun, config: FinetuneConfig
) -> tuple[Measured, tuple[Note, ...]]:
    """The head measured on val, and what a reader must know of the start.

    Raises FitError where the network does not start with the head's logits.
    """
    measured = measure(run.start.head_logits, run.start.labels, run.job.training.objective)
    if config.init == "random":
        return measured, (*plan.notes, *run.notes, *run.job.notes)
    start = (*run.start.notes(), *faint_start(run.start, run.cache, measured, config.labels))
    return measured, (*plan.notes, *run.notes, *run.job.notes, *start)


def default_model(plan: FinetunePlan) -> Path:
    """`models/CACHE--TARGET--LOWEST_UNFROZEN_BLOCK.safetensors` below the current folder."""
    name = file_name(cache_name(plan.cache), plan.head.target, plan.cut.blocks[-1])
    return Path("models") / f"{name}.safetensors"


def _draft(
    plan: FinetunePlan, run: FinetuneRun, path: Path, notes: tuple[Note, ...], compared: bool
) -> ModelDraft:
    """The model as far as it is known before training."""
    trained_on = plan.cut.node or PIXELS
    finetuned = {"unfrozen": list(plan.cut.blocks), "input": trained_on}
    return ModelDraft(
        path=path,
        kind="finetuned",
        head=replace(
            plan.start,
            settings={**plan.start.settings, "finetuned": finetuned},
            trained_on=seen_before(
                plan.start.trained_on, run.cache.images.digest, plan.splits.table, plan.splits.rows["train"]
            ),
        ),
        backbone=plan.backbone,
        splits=plan.splits,
        unfrozen=plan.cut.blocks,
        input=trained_on,
        map_seconds=run.map_seconds,
        difference_at_start=run.start.difference if compared else None,
        notes=notes,
        data=data_sheet(plan.splits.table, {}),
    )


def _fallback(plan: FinetunePlan, cache: FeatureCache, measured: Measured) -> Fallback:
    """The head, measured on every split: on train and val the one that training started from."""
    metrics = head_metrics(plan.start, cache, plan.splits)
    if plan.start is not plan.head and "test" in metrics:
        metrics["test"] = head_metrics(plan.head, cache, plan.splits, ("test",))["test"]
    # Random weights need no more than their statistics, published ones nothing.
    tensors = {name: torch.from_numpy(array) for name, array in statistics_of(cache).items()}
    return Fallback(plan.head, tensors, measured, metrics)


def _fingerprint(plan: FinetunePlan, cache: FeatureCache, config: FinetuneConfig) -> str:
    """Fingerprint of everything that a run depends on; a checkpoint is valid for the same one only."""
    digest = hashlib.sha256(torch.__version__.encode())
    for array in (*plan.start.arrays.values(), cache.images.digest, *plan.splits.rows.values()):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(plan.splits.labels.tobytes())
    settings = replace(
        config, labels=None, group=None, label_separator=None
    ).nested()  # the digest has the labels
    data = {"config": settings, "cut": plan.cut.node, "data": digest.hexdigest()}
    return fingerprint({**data, "cache": cache.fingerprint, "node": plan.head.node})


@dataclass(frozen=True)
class FoundRate(Result):
    """lr : the suggestion for the head. rates, losses : the curve, losses smoothed. notes : on the data."""

    lr: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    notes: tuple[Note, ...] = ()


def _endless(train: Batches) -> Generator[Batch]:
    """Yield the batches of epoch after epoch; closing it ends the reading ahead."""
    for epoch in count(1):
        with closing(train.epoch(epoch)) as batches:
            yield from batches


def find_rate(training: Training, reporter: Reporter = SILENT) -> FoundRate:
    """Try rates of the head from 1e-6 to 10, the others in proportion; the network keeps its parameters.

    training : a run that has not begun. Its optimizer cannot be used again: build another run to train.

    Raises FitError where the loss is not finite at the lowest rate.
    """
    module = training.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rates = np.geomspace(LOWEST, HIGHEST, STEPS)
    tried: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for group in training.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    base = training.optimizer.param_groups[0]["base_lr"]
    with (
        closing(_endless(training.train)) as batches,
        torch.random.fork_rng(devices=[]),
        reporter.step("Finding a learning rate", STEPS, "steps") as advance,
    ):
        for step, (rate, batch) in enumerate(zip(rates, islice(batches, STEPS), strict=True), start=1):
            for group in training.optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate / base
            loss, _ = training.update(batch)
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            smooth = mean / (1 - SMOOTHING**step)
            advance(1)
            if not math.isfinite(smooth) or (losses and smooth > BLOWN_UP * min(losses)):
                break
            tried.append(float(rate))
            losses.append(smooth)
    module.load_state_dict(before)
    if not losses:
        raise FitError(
            f"The loss is not finite even at a learning rate of {LOWEST:g}.",
            "Look for values in the cache that are not numbers: bottleneck cache verify.",
        )
    return FoundRate(tried[int(np.argmin(losses))] / MARGIN, tuple(tried), tuple(losses))
