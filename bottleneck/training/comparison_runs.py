"""The trials of a comparison: each is a run of its own on the open cache, and is written to disk as it ends.

Shapes: S samples, n of a split.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from bottleneck.backbones.node_names import stored_nodes
from bottleneck.backbones.section import find_cut
from bottleneck.data.config import LabelConfig
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import FitError, Note, distinct
from bottleneck.extraction.cached_source import source_of
from bottleneck.files import write_whole
from bottleneck.fitting.labels import relabelled
from bottleneck.fitting.training_set import require_classes, require_labels, with_numbers
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.progress import Reporter
from bottleneck.samples import ArrayRows
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import fingerprint
from bottleneck.training import finetune_plan, scratch
from bottleneck.training.batches import batch_count
from bottleneck.training.config import ALL, CompareConfig, ScratchConfig
from bottleneck.training.initial_head import head_metrics, plain_head, refitted
from bottleneck.training.inputs import backbone_of, decoded, inputs_of, unread_note
from bottleneck.training.job import Inputs, Pace, TrainingJob, pace
from bottleneck.training.labelled_splits import LabelledSplits, few_shots, labelled_splits, shots_notes
from bottleneck.training.network import TransferNetwork
from bottleneck.training.results import accuracies

RUNS = "runs.json"
SCRATCH = "scratch"


@dataclass(frozen=True)
class Trial:
    """A run to do. unfreeze : blocks, or "scratch", where `depth` is that of the small CNN."""

    unfreeze: int | str
    init: str
    shots: int | str
    seed: int
    depth: int | None = None


@dataclass(frozen=True)
class CompareRun:
    """A run that is done. accuracy : by split, of its best epoch on val; n : samples trained on.

    stopped : "done", "early" or "diverged"; empty for a head.
    unread : what was left out because images could not be read; empty without such images.
    """

    unfreeze: int | str
    init: str
    shots: int | str
    seed: int
    depth: int | None
    accuracy: dict[str, float]
    n: int
    epochs: int
    seconds: float
    stopped: str = ""
    unread: str = ""


class Trials:
    """The trials of a comparison on one cache; a context manager, while which the cache is open.

    Parameters
    ----------
    path : of the cache
    config : CompareConfig
    folder : where the runs are stored
    reporter : is told what feature maps will cost

    Attributes
    ----------
    done : the runs by their trial, those of an earlier call included
    splits : LabelledSplits, notes : what a reader must know of the labels
    """

    def __init__(self, path: Path, config: CompareConfig, folder: Path, reporter: Reporter) -> None:
        self.path, self.config, self.folder, self.reporter = path, config, folder, reporter
        self._plan_trials()

    def _plan_trials(self) -> None:
        """Read labels and backbone, and choose samples and blocks."""
        path, config = self.path, self.config
        with FeatureCache(path) as cache:
            targets = () if config.target is None else (config.target,)
            keys = cache.images.key
            kind = LabelConfig(config.classes, config.regression, config.label_separator)
            samples, self.notes = relabelled(cache.samples, keys, config.labels, targets, config.group, kind)
            require_labels(samples, path)
            require_classes(samples, config.classes)
            samples = with_numbers(samples, config.regression)
            self.target = scratch.target_of(samples, config.target)
            splits = labelled_splits(samples, self.target, val_fraction=config.val_fraction, seed=config.seed)
            self.notes += splits.notes
            # The heads are fitted here, on train alone, so none of them has seen a val that was carved.
            self.splits = replace(splits, carved=False)
            self._require_shots()
            for shots in config.shots:
                self.notes += shots_notes(splits, self.target, shots)
            (node,), renamed = stored_nodes(cache, [config.node])
            self.config = config = replace(config, node=node)
            self.notes += renamed
            self.notes += config.epoch_notes(len(splits.rows["train"]))
            self.backbone = backbone_of(cache, config.load)
            self._identity = finetune_plan.cache_identity(cache)
        depths = [depth for depth in config.unfreeze if depth != 0]
        self.cuts = {depth: find_cut(self.backbone, config.node, depth) for depth in depths}
        self._original = {name: tensor.clone() for name, tensor in self.backbone.module.state_dict().items()}
        self._heads: dict[tuple[int | str, int], HeadArtifact] = {}

    def _extract_maps(self) -> None:
        """Extract the feature maps, and plan again without the images that could not be read for them."""
        for cut in list(self.cuts.values()):
            if cut.node:
                load = self.config.load
                finetune_plan.ensure_map(self.path, cut.node, options=load, reporter=self.reporter)
        with FeatureCache(self.path) as cache:
            unchanged = finetune_plan.cache_identity(cache) == self._identity
        if not unchanged:
            before = len(self.splits.table)
            self._plan_trials()
            self.notes += finetune_plan.lost_notes(before, len(self.splits.table))

    def __enter__(self) -> Trials:
        self._extract_maps()
        with FeatureCache(self.path) as self.cache:
            finetune_plan.require_unchanged(self.cache, self._identity)
            head = self._head(ALL, 0, self.splits)
        for depth, cut in self.cuts.items():
            if cut.node:  # opened once, which makes sure that its map is exact enough
                config = self.config.finetuning(unfreeze=depth, init="head")
                with finetune_plan.open_job(
                    self._plan(depth, head, self.splits), config, self.folder, self.reporter
                ):
                    pass
        self.cache = FeatureCache(self.path)
        finetune_plan.require_unchanged(self.cache, self._identity)
        self._fingerprint = self._settings_fingerprint()
        self.done = self._read()
        return self

    def __exit__(self, *exception: object) -> None:
        self.cache.close()

    def _require_shots(self) -> None:
        """Raise FitError where no class has as many samples as requested: that would be all of them."""
        most = int(np.bincount(self.splits.labels[self.splits.rows["train"]]).max())
        for shots in self.config.shots:
            if isinstance(shots, int) and shots > most:
                raise FitError(
                    f"shots is {shots}, but no class has more than {most} samples to train on.",
                    f"Ask for up to {most}, or for all.",
                )

    def trials(self) -> list[Trial]:
        """All runs, those with the same inputs together."""
        config = self.config
        trials: list[Trial] = []
        for unfreeze in config.unfreeze:
            for init in config.init if unfreeze != 0 else ("head",):
                for shots in config.shots:
                    # On all samples there is one head only: it has no order and no draw.
                    seeds = 1 if unfreeze == 0 and shots == ALL else config.seeds
                    trials += [Trial(unfreeze, init, shots, seed) for seed in range(seeds)]
        for depth in config.scratch:
            for shots in config.shots:
                trials += [Trial(SCRATCH, "random", shots, seed, depth) for seed in range(config.seeds)]
        return trials

    def estimate(self, trials: list[Trial]) -> float:
        """The greatest number of seconds that the trials which are not done will take on this machine.

        One step of each network is timed. The decoding of images is not included.
        """
        paces: dict[tuple[int | str, int | None], Pace] = {}
        seconds = 0.0
        for trial in trials:
            if trial in self.done or trial.unfreeze == 0:
                continue
            network = (trial.unfreeze, trial.depth)
            if network not in paces:
                paces[network] = self._pace(trial)
            n = few_shots(self.splits, trial.shots, trial.seed).counts()
            epochs = self.settings(trial.seed, n["train"]).epochs
            seconds += paces[network].seconds(epochs, n["train"], n["val"], n.get("test", 0))
        return seconds

    def batch_notes(self, trials: list[Trial]) -> list[Note]:
        """What is decided on the batches of the trials.

        Raises FitError where BatchNorm cannot be trained with batches of the requested size.
        """
        notes: list[Note] = []
        size = self.config.batch_size
        for trial in {(trial.unfreeze, trial.depth, trial.shots): trial for trial in trials}.values():
            splits = few_shots(self.splits, trial.shots, trial.seed)
            n = len(splits.rows["train"])
            if trial.unfreeze != 0 and n // batch_count(n, size) == 1:
                notes += self._job_on_zeros(trial, splits).notes
        return distinct(notes)

    def _pace(self, trial: Trial) -> Pace:
        """How long a sample takes the network of a trial, on rows of zeros."""
        return pace(self._job_on_zeros(replace(trial, shots=ALL, seed=0), self.splits))

    def _job_on_zeros(self, trial: Trial, splits: LabelledSplits) -> TrainingJob[TransferNetwork]:
        """The job of a trial that trains, on rows of zeros."""
        row: tuple[int, ...]
        node = None if trial.unfreeze == SCRATCH else self.cuts[trial.unfreeze].node
        if node is None:
            small = trial.unfreeze == SCRATCH
            preprocess = self._small_pixels() if small else Preprocess.from_json(self.cache.spec.preprocess)
            row, dtype = (preprocess.size, preprocess.size, preprocess.channels), np.dtype(np.uint8)
        else:
            row, dtype = self.cache.node(node).shape, np.dtype(self.cache.node(node).dtype)
        zeros = ArrayRows(np.broadcast_to(np.zeros(1, dtype), (len(self.cache.images), *row)))
        return self._job(trial, splits, Inputs(zeros, zeros))

    def results(self, trials: list[Trial]) -> Iterator[CompareRun]:
        """Do the trials that are not done; each run is on disk when it is yielded."""
        groups: dict[int | str, list[Trial]] = {}
        for trial in trials:
            groups.setdefault(trial.unfreeze, []).append(trial)
        for unfreeze, group in groups.items():
            yield from (self.done[trial] for trial in group if trial in self.done)
            to_do = [trial for trial in group if trial not in self.done]
            if not to_do:
                continue
            with self._inputs(unfreeze) as inputs:
                for trial in to_do:
                    self.done[trial] = self._run(trial, inputs)
                    self._write()
                    yield self.done[trial]

    @contextmanager
    def _inputs(self, unfreeze: int | str) -> Iterator[Inputs | None]:
        """The rows that a group of trials is trained on; the head alone needs none."""
        if unfreeze == 0:
            yield None
        elif unfreeze == SCRATCH:
            keys, preprocess = list(self.cache.images.key), self._small_pixels()
            with decoded(source_of(self.cache), keys, preprocess, self.folder) as pixels:
                yield Inputs(pixels, pixels, unread=pixels.failures)
        else:
            config = self.config.finetuning(unfreeze=unfreeze, init="head")
            with inputs_of(
                self.cache, self.backbone, self.cuts[unfreeze].node, config, self.folder
            ) as inputs:
                yield inputs

    def _run(self, trial: Trial, inputs: Inputs | None) -> CompareRun:
        """Train and measure."""
        started = time.perf_counter()
        splits = few_shots(self.splits, trial.shots, trial.seed)
        if inputs is None:
            metrics, epochs = head_metrics(self._head(trial.shots, trial.seed, splits), self.cache, splits), 0
            stopped = unread = ""
        else:
            job = self._job(trial, splits, inputs)
            keys, readable = self.cache.images.key, splits.without(inputs.unread)
            lost = {keys[index]: reason for index, reason in inputs.unread.items()}
            unread = unread_note(lost).message if readable.counts() != splits.counts() else ""
            splits = readable
            job.train()
            metrics = job.metrics(splits.table.targets[self.target].class_names)
            epochs, stopped = len(job.training.state.history) - 1, job.training.state.stopped
        return CompareRun(
            **asdict(trial),
            accuracy=accuracies(metrics),
            n=len(splits.rows["train"]),
            epochs=epochs,
            seconds=time.perf_counter() - started,
            stopped=stopped,
            unread=unread,
        )

    def _job(self, trial: Trial, splits: LabelledSplits, inputs: Inputs) -> TrainingJob[TransferNetwork]:
        """The job of a trial that trains, from the original weights, without images that have no rows."""
        readable = splits.without(inputs.unread)
        config = self.settings(trial.seed, len(readable.rows["train"]))
        if trial.depth is not None:
            own = config.from_scratch(trial.depth)
            network = scratch.new_backbone(own)
            return scratch.build_job(network, self._small_pixels(), inputs, readable, self.target, own)
        head = self._head(trial.shots, trial.seed, splits)
        self.backbone.module.load_state_dict(self._original)
        plan = self._plan(trial.unfreeze, head, readable)
        return finetune_plan.build_job(
            plan, self.cache, inputs, config.finetuning(unfreeze=trial.unfreeze, init=trial.init)
        )

    def settings(self, seed: int, samples: int) -> CompareConfig:
        """The settings of a run on so many train samples."""
        return replace(self.config, seed=seed).for_samples(samples)

    def _plan(
        self, depth: int | str, head: HeadArtifact, splits: LabelledSplits
    ) -> finetune_plan.FinetunePlan:
        cut = self.cuts[depth]
        return finetune_plan.FinetunePlan(self.path, self._identity, head, head, splits, self.backbone, cut)

    def _head(self, shots: int | str, seed: int, splits: LabelledSplits) -> HeadArtifact:
        """The head on the samples of a trial, C by cross-validation; on all samples one for all seeds."""
        key = (shots, 0 if shots == ALL else seed)
        if key not in self._heads:
            rows = splits.rows["train"]
            target, groups = splits.table.targets[self.target], splits.table.group
            plain = plain_head(self.cache, target, self.config.node)
            groups = None if groups is None else groups[rows]
            self._heads[key] = refitted(plain, self.cache, rows, splits.labels[rows], groups=groups)
        return self._heads[key]

    def _small_pixels(self) -> Preprocess:
        """The preprocessing of the small CNN, with images not larger than the cache's."""
        preprocess = scratch.new_backbone(ScratchConfig()).preprocess
        size = Preprocess.from_json(self.cache.spec.preprocess).size
        return preprocess.override(min(preprocess.size, size), None)

    def _settings_fingerprint(self) -> str:
        """Of everything that a run's result depends on beside its trial."""
        digests = hashlib.sha256(self.cache.images.digest.tobytes())
        for array in (self.splits.labels, *self.splits.rows.values()):
            digests.update(np.ascontiguousarray(array).tobytes())
        return fingerprint(
            {
                "node": self.config.node,
                "run": self.config.nested()["run"],
                "cache": self.cache.fingerprint,
                "target": self.target,
                "data": digests.hexdigest(),
            }
        )

    def _read(self) -> dict[Trial, CompareRun]:
        """The runs that an earlier call has done under the same settings."""
        try:
            stored = json.loads((self.folder / RUNS).read_text())
            if stored["fingerprint"] != self._fingerprint:
                return {}
            runs = [CompareRun(**values) for values in stored["runs"]]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        names = [item.name for item in fields(Trial)]
        return {Trial(**{name: getattr(run, name) for name in names}): run for run in runs}

    def _write(self) -> None:
        runs = [asdict(run) for run in self.done.values()]
        text = json.dumps({"fingerprint": self._fingerprint, "runs": runs}, ensure_ascii=False, indent=1)
        write_whole(self.folder / RUNS, text.encode())
