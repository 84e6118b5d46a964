"""Fine-tuned blocks as a candidate: trained from the cached map, judged on the held-out samples of the heads.

    val (or the first fold) held out ──► better than what is chosen? ──► the next fold ──► … ──► evidence

What is trained depends on the samples alone, never on the clock, unless the user sets a time: a run that was
killed, or another computer, comes to the same choice. A network is trained for a fixed number of epochs and
its last one is taken, so that no held-out sample has chosen anything, and the final network can be trained on
all samples in the same way. Each part is on disk as soon as it is finished.

Shapes: n samples, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.backbones.section import Cut, find_cut
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.metrics import fit_temperature
from bottleneck.progress import Reporter
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import fingerprint
from bottleneck.training.config import FinetuneConfig
from bottleneck.training.finetune_plan import FinetunePlan, build_job, ensure_map
from bottleneck.training.inputs import backbone_of, inputs_of
from bottleneck.training.job import Inputs, Pace, TrainingJob, pace
from bottleneck.training.labelled_splits import LabelledSplits
from bottleneck.training.network import TransferNetwork, folded
from bottleneck.training.results import PIXELS
from bottleneck.trials.evidence import Evidence, difference
from bottleneck.trials.heads import Tried, head_fingerprint, head_on, judged, measured
from bottleneck.trials.task import Records, Task

EPOCHS = 10  # of few samples; see `epochs_for`
LEAST_EPOCHS = 2
PASSES = 50_000  # samples × epochs of one training, two minutes at 400 a second, as long as epochs can be cut
ENOUGH = 500  # held-out samples of a candidate: a paired difference of 5 % of them has an error of one point
MONITORED = 64  # samples on which the final training is watched, in place of a val split

Allows = Callable[[float], bool]
"""Seconds of the next work → whether there is time for it."""


@dataclass(frozen=True)
class Tuning:
    """What is fine-tuned, for how many epochs: `unfreeze` blocks below a head on `node`, whose C is given."""

    node: str
    unfreeze: int
    C: float
    load: LoadOptions
    seed: int
    epochs: int

    @property
    def config(self) -> FinetuneConfig:
        """The settings of training."""
        return FinetuneConfig(
            unfreeze=self.unfreeze,
            epochs=self.epochs,
            patience=0,
            seed=self.seed,
            weights=self.load.weights,
            trust_code=self.load.trust_code,
        )


class FreshNetwork:
    """A network that is trained several times, each time from its original weights.

    Parameters
    ----------
    path, identity : of the cache (`FeatureCache.identity`)
    """

    def __init__(self, path: Path, identity: str, backbone: Backbone) -> None:
        self.path, self.identity, self.backbone = path, identity, backbone
        self._original = {name: value.clone() for name, value in backbone.module.state_dict().items()}

    def plan(self, cut: Cut, head: HeadArtifact, splits: LabelledSplits) -> FinetunePlan:
        """Return the plan of a job that starts from `head`, with the original weights."""
        self.backbone.module.load_state_dict(self._original)
        return FinetunePlan(self.path, self.identity, head, head, splits, self.backbone, cut)

    def job(
        self,
        cache: FeatureCache,
        cut: Cut,
        head: HeadArtifact,
        splits: LabelledSplits,
        inputs: Inputs,
        config: FinetuneConfig,
    ) -> TrainingJob[TransferNetwork]:
        """Return a job from the original weights and `head`. cache : open, with the map of `inputs`."""
        return build_job(self.plan(cut, head, splits), cache, inputs, config)


class OpenTuning:
    """The network, the cached map and the samples of a `Tuning`, ready to train on any part of them.

    Parameters
    ----------
    cache : that has the map, open
    inputs : rows of the map
    """

    def __init__(
        self, task: Task, tuning: Tuning, cache: FeatureCache, backbone: Backbone, cut: Cut, inputs: Inputs
    ) -> None:
        self.task, self.tuning, self.cache, self.inputs = task, tuning, cache, inputs
        self.cut, self.network = cut, FreshNetwork(cache.path, cache.identity, backbone)

    def job(self, rows: Mapping[str, np.ndarray]) -> tuple[TrainingJob[TransferNetwork], HeadArtifact]:
        """Return a job from the original weights, and the head that it starts from, fitted on its train rows.

        rows : {split: (n,)} of the samples; "train" is trained on and "val" only watched.
        """
        task, tuning = self.task, self.tuning
        head = head_on(task, tuning.node, rows["train"], tuning.C, {})
        splits = LabelledSplits(task.samples, task.target.values, dict(rows), carved=False)
        job = self.network.job(self.cache, self.cut, head, splits, self.inputs, tuning.config)
        job.training.choose_best = False
        return job, head

    def held_out_logits(self, train: np.ndarray, held: np.ndarray) -> np.ndarray:
        """Train on the samples `train` (n,) and return the logits (m, K) of the samples `held` (m,)."""
        job, _ = self.job({"train": train, "val": held})
        job.train()
        return job.logits("val")

    def seconds(self, train: np.ndarray, held: np.ndarray) -> float:
        """Return an estimate of the seconds of `held_out_logits`: a step is timed."""
        job, _ = self.job({"train": train, "val": held})
        return pace(job).seconds(self.tuning.epochs, len(train), len(held))


@contextmanager
def opened(task: Task, tuning: Tuning, folder: Path, reporter: Reporter) -> Iterator[OpenTuning]:
    """Extract the map unless it is cached, and yield everything that training needs."""
    path = task.cache.path
    backbone = backbone_of(task.cache, tuning.load)
    cut = find_cut(backbone, tuning.node, tuning.unfreeze)
    if cut.node is not None:
        ensure_map(path, cut.node, options=tuning.load, reporter=reporter)
    with (
        FeatureCache(path) as cache,
        inputs_of(cache, backbone, cut.node, tuning.config, folder, reporter) as inputs,
    ):
        yield OpenTuning(task, tuning, cache, backbone, cut, inputs)


def try_finetuning(
    task: Task,
    tuning: Tuning,
    against: Evidence | None,
    records: Records,
    name: str,
    allows: Allows,
    reporter: Reporter,
) -> Tried | str:
    """Judge fine-tuning on held-out samples; a finished part is read from `records`.

    Val is held out first, or the first fold without one. As long as what was held out so far is better than
    `against` on the same samples, the next fold follows, until there are `ENOUGH` samples. Without `against`
    the choice is made, and no other fold follows.

    Returns
    -------
    The candidate, judged on the samples that were held out so far; or why nothing was trained.
    """
    inputs = fingerprint(
        {"start": head_fingerprint(task, tuning.node), "config": tuning.config.nested(), "C": tuning.C}
    )
    parts, seconds = _parts(task), 0.0
    done: list[tuple[str, np.ndarray, np.ndarray]] = []
    tried: Tried | None = None
    with opened(task, tuning, records.folder, reporter) as tune:
        for number, (kind, train, held) in enumerate(parts):
            record = f"{name}--{number}"
            stored = records.read(record, inputs)
            if stored is None:
                # Of the first part alone: others follow only where it is promising, and then mostly all.
                count = 1 if number == 0 else len(parts) - number
                if not allows(count * tune.seconds(train, held)):
                    break
                started = time.perf_counter()
                logits = tune.held_out_logits(train, held)
                stored = {"seconds": time.perf_counter() - started}, {"logits": logits}
                records.write(record, inputs, *stored)
            done.append((kind, held, stored[1]["logits"]))
            seconds += stored[0]["seconds"]
            tried = _tried(task, done, seconds)
            if against is None or difference(tried.evidence, against).gain <= 0:
                break
    return tried or "there is no time for it"


def seconds_at_most(pace: Pace, train: int, val: int, test: int, cv: int) -> float:
    """Return the seconds of every part, where each is promising, and of the final network.

    pace : of the network. train, val, test : samples.
    """
    parts, held = ([(train, val)] if val else []), val
    for _ in range(cv):
        if held >= ENOUGH:
            break
        parts.append((train - train // cv, train // cv))
        held += train // cv
    epochs = epochs_for(train + val)
    final = pace.seconds(epochs, train + val, MONITORED, test)
    return final + sum(pace.seconds(epochs, learnt, judged) for learnt, judged in parts)


def epochs_for(n: int) -> int:
    """Return for how many epochs n samples are trained on: `EPOCHS`, fewer where these are many passes."""
    return min(EPOCHS, max(LEAST_EPOCHS, PASSES // max(1, n)))


def _tried(task: Task, done: list[tuple[str, np.ndarray, np.ndarray]], seconds: float) -> Tried:
    """Return the finished parts as one candidate. done : (name, rows (m,), logits (m, K)) of each part."""
    rows, logits = (np.concatenate([part[index] for part in done]) for index in (1, 2))
    temperature = fit_temperature(task.target.values[rows], logits, "softmax")
    _, evidence, metrics, conformal = judged(task, done, "softmax", temperature)
    return Tried(evidence, metrics, seconds, {"temperature": temperature}, conformal)


def final_network(
    task: Task, tuning: Tuning, tried: Tried, folder: Path, reporter: Reporter
) -> tuple[HeadArtifact, dict[str, torch.Tensor]]:
    """Train the chosen network on train and val together, and measure it: the one time that test is read.

    Returns
    -------
    The classifier as a head on the trained network's features, and the network's state.
    """
    with opened(task, tuning, folder, reporter) as tune:
        rows = np.sort(task.judged)
        watched = rows[np.linspace(0, len(rows) - 1, min(MONITORED, len(rows))).astype(int)]
        others = {split: task.rows[split] for split in ("test",) if split in task.rows}
        job, head = tune.job({"train": rows, "val": watched, **others})
        job.train(reporter=reporter)
        temperature = tried.settings["temperature"]
        metrics = dict(tried.metrics)
        for split in ("train", *others):
            indices = rows if split == "train" else task.rows[split]
            metrics[split] = measured(task, indices, job.logits(split), "softmax", temperature)
        unused = tune.network.backbone.entries_above(tuning.node.partition("@")[0])
        state = {
            name: value.clone()
            for name, value in tune.network.backbone.module.state_dict().items()
            if name not in unused
        }
        finetuned = {
            "unfrozen": list(tune.cut.blocks),
            "input": tune.cut.node or PIXELS,
            "epochs": tuning.epochs,
        }
        settings: dict[str, Any] = {**head.settings, "finetuned": finetuned}
        settings["fitted_on"] = [split for split in ("train", "val") if split in task.rows]
        trained = replace(
            head,
            arrays=folded(job.network, head.scale),
            link="softmax",
            temperature=temperature,
            settings=settings,
            node_fingerprint="",  # no cache has features of this network
            computed={},
            cv={},
            n_train=len(rows),
            metrics=metrics,
            conformal=tried.conformal,
        )
    return trained, state


def _parts(task: Task) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return ("val" or "cv", rows of train, held-out rows) of each part.

    Val is first, then folds follow until `ENOUGH` samples are held out.
    """
    train = task.rows["train"]
    parts = [("val", train, task.rows["val"])] if "val" in task.rows else []
    for fold in range(int(task.fold.max()) + 1):
        if sum(len(held) for _, _, held in parts) >= ENOUGH:
            break
        held = task.fold == fold
        seen = task.target.values[train[~held]]
        if held.any() and len(np.unique(seen)) == len(task.target.class_names):
            parts.append(("cv", train[~held], train[held]))
    return parts
