"""The trials of a comparison: each a run of its own on the open cache, kept on disk as it ends.

Shapes: S samples, n of a split, C classes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.backbones.section import Section, find_cut
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import FitError
from bottleneck.extraction.cached_source import source_of
from bottleneck.files import write_whole
from bottleneck.fitting.labels import relabelled
from bottleneck.fitting.training_set import require_labels
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.names import BOTTLENECK
from bottleneck.progress import Reporter
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import fingerprint
from bottleneck.training.config import Inputs, RunConfig, enough_steps
from bottleneck.training.feature_map import ensure_exact_map
from bottleneck.training.finetune import FinetuneConfig, Finetuning
from bottleneck.training.initial_head import head_metrics, plain_head, refitted
from bottleneck.training.inputs import backbone_of, decoded, inputs_of, require_read
from bottleneck.training.network import network_of
from bottleneck.training.results import accuracies
from bottleneck.training.scratch import DEFAULTS, Scratch, ScratchConfig, new_backbone, target_of
from bottleneck.training.split_rows import Sets, few_shots, labelled_sets
from bottleneck.training.timing import Pace, pace

ALL = "all"
RUNS = "runs.json"
SCRATCH = "scratch"


@dataclass(frozen=True)
class CompareConfig:
    """What is compared.

    unfreeze : blocks; 0 is the head alone. init : "head", "random". scratch : depths of the small CNN.
    shots : train samples per class, or "all". seeds : runs of each, other in order, draws and new weights.
    target, node : what the heads answer, and from which features.
    labels, group : a table of the answers in place of the cache's, and its column of groups.
    extend : more epochs where samples are few, so that no run has fewer steps than it takes to learn.
    """

    unfreeze: tuple[int | str, ...] = (0, 1, 2)
    init: tuple[str, ...] = ("head", "random")
    scratch: tuple[int, ...] = ()
    shots: tuple[int | str, ...] = (ALL,)
    seeds: int = 3
    target: str | None = None
    node: str = BOTTLENECK
    weights: str | None = None
    trust_code: bool = False
    labels: str | Path | None = None
    group: str | None = None
    extend: bool = True
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for name, least in (("shots", 1), ("unfreeze", 0)):
            for value in getattr(self, name):
                if isinstance(value, int) and value < least:
                    raise FitError(f"{name} is {value}; expected {least} or more, or all.")
        if self.seeds < 1:
            raise FitError(f"seeds is {self.seeds}; expected 1 or more.")


@dataclass(frozen=True)
class Trial:
    """One run to be done. unfreeze : blocks, or "scratch", where `depth` is that of the small CNN."""

    unfreeze: int | str
    init: str
    shots: int | str
    seed: int
    depth: int | None = None


@dataclass(frozen=True)
class CompareRun:
    """One run that was done. accuracy : by split, of its best epoch on val; n : samples trained on."""

    unfreeze: int | str
    init: str
    shots: int | str
    seed: int
    depth: int | None
    accuracy: dict[str, float]
    n: int
    epochs: int
    seconds: float


class Bench:
    """An open cache, the network in its original state, and the runs that are done.

    Parameters
    ----------
    path : of the cache
    config : CompareConfig
    folder : where the runs are kept
    reporter : receives what maps will cost
    """

    def __init__(self, path: Path, config: CompareConfig, folder: Path, reporter: Reporter) -> None:
        self.path, self.config, self.folder, self.reporter = path, config, folder, reporter
        with FeatureCache(path) as cache:
            wanted = () if config.target is None else (config.target,)
            keys = cache.images.key
            samples, self.notes = relabelled(cache.samples, keys, config.labels, wanted, config.group)
            require_labels(samples, path)
            self.target = target_of(samples, config.target)
            run = config.run
            found = labelled_sets(samples, self.target, val_fraction=run.val_fraction, seed=run.seed)
            # Heads are fitted here, on train alone: there is nothing left that has seen a carved val.
            self.sets = replace(found, carved=False)
            self._require_shots()
            self.backbone = backbone_of(cache, LoadOptions(config.weights, config.trust_code))
        depths = [depth for depth in config.unfreeze if depth != 0]
        self.cuts = {depth: find_cut(self.backbone, config.node, depth) for depth in depths}
        self.original = {name: tensor.clone() for name, tensor in self.backbone.module.state_dict().items()}
        self.heads: dict[tuple[int | str, int], HeadArtifact] = {}

    def __enter__(self) -> Bench:
        config = self.config
        asked = {"options": LoadOptions(config.weights, config.trust_code), "reporter": self.reporter}
        with FeatureCache(self.path) as self.cache:
            head = self._head(ALL, 0, self.sets)
        for cut in self.cuts.values():
            if cut.node:
                ensure_exact_map(self.path, self.backbone, cut, head, self.sets, config.run, **asked)
        self.cache = FeatureCache(self.path)
        self.fingerprint = self._fingerprint()
        self.done = self._read()
        return self

    def __exit__(self, *exception: object) -> None:
        self.cache.close()

    def _require_shots(self) -> None:
        """Raise FitError where no class has as many samples as are asked for: that would be all of them."""
        most = int(np.bincount(self.sets.labels[self.sets.rows["train"]]).max())
        for shots in self.config.shots:
            if shots != ALL and shots > most:
                raise FitError(
                    f"shots is {shots}, but no class has more than {most} samples to train on.",
                    f"Ask for up to {most}, or for all.",
                )

    def trials(self) -> list[Trial]:
        """All runs, those that are fed alike together."""
        config, found = self.config, []
        for unfreeze in config.unfreeze:
            for init in config.init if unfreeze != 0 else ("head",):
                for shots in config.shots:
                    # On all samples there is one head only: it has no order and no draw.
                    seeds = 1 if unfreeze == 0 and shots == ALL else config.seeds
                    found += [Trial(unfreeze, init, shots, seed) for seed in range(seeds)]
        for depth in config.scratch:
            for shots in config.shots:
                found += [Trial(SCRATCH, "random", shots, seed, depth) for seed in range(config.seeds)]
        return found

    def estimate(self, trials: list[Trial]) -> float:
        """Seconds that the trials will take at most which are not done: all their epochs, on this machine.

        One step of each network is timed for it. Without decoding of images where pixels are what goes in.
        """
        paces: dict[tuple, Pace] = {}
        seconds = 0.0
        for trial in trials:
            if trial in self.done or trial.unfreeze == 0:
                continue
            what = (trial.unfreeze, trial.depth)
            if what not in paces:
                paces[what] = self._pace(trial)
            sets = few_shots(self.sets, trial.shots, trial.seed)
            n = {split: len(rows) for split, rows in sets.rows.items()}
            run = self._run_config(trial.seed, n["train"])
            seconds += paces[what].seconds(run.epochs, n["train"], n["val"], n.get("test", 0))
        return seconds

    def _pace(self, trial: Trial) -> Pace:
        """How long a sample takes the network of a trial."""
        preprocess = Preprocess.from_json(self.cache.spec.preprocess)
        if trial.unfreeze == SCRATCH:
            preprocess = self._pixels()
            own = ScratchConfig(depth=trial.depth)
            nothing = Inputs(None, None)
            network = Scratch(new_backbone(own), preprocess, nothing, self.sets, self.target, own).network
            node = None
        else:
            node = self.cuts[trial.unfreeze].node
            section = Section(self.backbone, self.cuts[trial.unfreeze], self.config.node, preprocess)
            network = network_of(section, self._head(ALL, 0, self.sets))
        if node:
            row, dtype = self.cache.node(node).shape, np.dtype(self.cache.node(node).dtype)
        else:
            row, dtype = (preprocess.size, preprocess.size, preprocess.channels), np.dtype(np.uint8)
        samples = self.sets.table
        images, covariates = samples.image.shape[1], len(samples.covariate_names)
        return pace(network, row, dtype, images, covariates, self.config.run.batch_size)

    def results(self, trials: list[Trial]) -> Iterator[CompareRun]:
        """Do the trials that are not done; yields each run, which then is on disk."""
        groups: dict[int | str, list[Trial]] = {}
        for trial in trials:
            groups.setdefault(trial.unfreeze, []).append(trial)
        for unfreeze, group in groups.items():
            yield from (self.done[trial] for trial in group if trial in self.done)
            left = [trial for trial in group if trial not in self.done]
            if not left:
                continue
            with self._inputs(unfreeze) as inputs:
                for trial in left:
                    self.done[trial] = self._run(trial, inputs)
                    self._write()
                    yield self.done[trial]

    @contextmanager
    def _inputs(self, unfreeze: int | str) -> Iterator[Inputs | None]:
        """What a group of trials is fed with."""
        if unfreeze == 0:
            yield None
        elif unfreeze == SCRATCH:
            keys, preprocess = list(self.cache.images.key), self._pixels()
            with decoded(source_of(self.cache), keys, preprocess, self.folder) as pixels:
                require_read(pixels.failures, keys)
                yield Inputs(pixels, pixels)
        else:
            node = self.cuts[unfreeze].node
            with inputs_of(self.cache, self.backbone, node, folder=self.folder) as inputs:
                yield inputs

    def _run_config(self, seed: int, samples: int) -> RunConfig:
        """How a run on so many samples is trained."""
        run = replace(self.config.run, seed=seed)
        return enough_steps(run, samples) if self.config.extend else run

    def _run(self, trial: Trial, inputs: Inputs | None) -> CompareRun:
        """Train and measure."""
        started = time.perf_counter()
        sets = few_shots(self.sets, trial.shots, trial.seed)
        run = self._run_config(trial.seed, len(sets.rows["train"]))
        if trial.unfreeze == 0:
            metrics, epochs = head_metrics(self._head(trial.shots, trial.seed, sets), self.cache, sets), 0
        else:
            job = self._job(trial, sets, inputs, run)
            job.train()
            metrics, epochs = job.trained_metrics(), len(job.training.state.history) - 1
        seconds = time.perf_counter() - started
        return CompareRun(
            **asdict(trial),
            accuracy=accuracies(metrics),
            n=len(sets.rows["train"]),
            epochs=epochs,
            seconds=seconds,
        )

    def _job(self, trial: Trial, sets: Sets, inputs: Inputs, run: RunConfig) -> Finetuning | Scratch:
        """The run of a trial that trains."""
        if trial.unfreeze == SCRATCH:
            own = ScratchConfig(depth=trial.depth, run=replace(run, optim=DEFAULTS))
            return Scratch(new_backbone(own), self._pixels(), inputs, sets, self.target, own)
        head = self._head(trial.shots, trial.seed, sets)
        own = FinetuneConfig(unfreeze=trial.unfreeze, init=trial.init, run=run)
        self.backbone.module.load_state_dict(self.original)
        return Finetuning(self.cache, self.backbone, self.cuts[trial.unfreeze], inputs, sets, head, own)

    def _head(self, shots: int | str, seed: int, sets: Sets) -> HeadArtifact:
        """The head on the samples of a trial, C by cross-validation; on all samples one for all seeds."""
        key = (shots, 0 if shots == ALL else seed)
        if key not in self.heads:
            rows = sets.rows["train"]
            target, groups = sets.table.targets[self.target], sets.table.group
            plain = plain_head(self.cache, target, self.config.node)
            groups = None if groups is None else groups[rows]
            self.heads[key] = refitted(plain, self.cache, rows, sets.labels[rows], groups=groups)
        return self.heads[key]

    def _pixels(self) -> Preprocess:
        """How images become the small CNN's pixels: its own way, but not larger than the cache's."""
        preprocess = new_backbone(ScratchConfig()).preprocess
        size = Preprocess.from_json(self.cache.spec.preprocess).size
        return preprocess.override(min(preprocess.size, size), None)

    def _fingerprint(self) -> str:
        """Of all that a run's result depends on beside its trial."""
        config = {name: value for name, value in asdict(self.config).items() if name in ("node", "run")}
        digests = hashlib.sha256(self.cache.images.digest.tobytes())
        for array in (self.sets.labels, *self.sets.rows.values()):
            digests.update(np.ascontiguousarray(array).tobytes())
        return fingerprint(
            {**config, "cache": self.cache.fingerprint, "target": self.target, "data": digests.hexdigest()}
        )

    def _read(self) -> dict[Trial, CompareRun]:
        """The runs that an earlier call has done under the same settings."""
        try:
            kept = json.loads((self.folder / RUNS).read_text())
            if kept["fingerprint"] != self.fingerprint:
                return {}
            runs = [CompareRun(**values) for values in kept["runs"]]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        names = [item.name for item in fields(Trial)]
        return {Trial(**{name: getattr(run, name) for name in names}): run for run in runs}

    def _write(self) -> None:
        runs = [asdict(run) for run in self.done.values()]
        text = json.dumps({"fingerprint": self.fingerprint, "runs": runs}, ensure_ascii=False, indent=1)
        write_whole(self.folder / RUNS, text.encode())
