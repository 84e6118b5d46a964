"""The trials of a comparison: each is a run of its own on the open cache, and is written to disk as it ends.

Heads, tuned blocks and the judging of samples are those of `trials`.

Shapes: S samples, n of a split.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from bottleneck.backbones.node_names import stored_nodes
from bottleneck.backbones.section import find_cut
from bottleneck.data.config import LabelConfig
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import FitError, Note, distinct
from bottleneck.extraction.cached_source import source_of
from bottleneck.fitting.config import FitConfig
from bottleneck.fitting.labels import relabelled
from bottleneck.fitting.training_set import require_classes, require_labels, with_numbers
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.solver.problem import NO_FOLD
from bottleneck.progress import Reporter
from bottleneck.samples import ArrayRows
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import fingerprint
from bottleneck.studies.compare.stored_runs import CompareRun, Trial, store_run, stored_runs
from bottleneck.training import finetune_plan, scratch
from bottleneck.training.batches import batch_count
from bottleneck.training.config import ALL, CompareConfig, ScratchConfig
from bottleneck.training.inputs import backbone_of, decoded, inputs_of, unread_note
from bottleneck.training.job import Inputs, Pace, TrainingJob, pace
from bottleneck.training.labelled_splits import LabelledSplits, few_shots, labelled_splits, shots_notes
from bottleneck.training.network import TransferNetwork
from bottleneck.trials.finetuning import FreshNetwork
from bottleneck.trials.heads import evidence_of, head_on, outputs_of
from bottleneck.trials.task import Task

SCRATCH = "scratch"


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
            backbone = backbone_of(cache, config.load)
            self.network = FreshNetwork(path, cache.identity, backbone)
        depths = [depth for depth in config.unfreeze if depth != 0]
        self.cuts = {depth: find_cut(backbone, config.node, depth) for depth in depths}
        self._heads: dict[tuple[int | str, int], HeadArtifact] = {}

    def _extract_maps(self) -> None:
        """Extract the feature maps, and plan again without the images that could not be read for them."""
        for cut in list(self.cuts.values()):
            if cut.node:
                load = self.config.load
                finetune_plan.ensure_map(self.path, cut.node, options=load, reporter=self.reporter)
        with FeatureCache(self.path) as cache:
            unchanged = cache.identity == self.network.identity
        if not unchanged:
            before = len(self.splits.table)
            self._plan_trials()
            self.notes += finetune_plan.lost_notes(before, len(self.splits.table))

    def __enter__(self) -> Trials:
        self._extract_maps()
        with self._open():
            head = self._head(ALL, 0, self.splits)
        for depth, cut in self.cuts.items():
            if cut.node:  # opened once, which makes sure that its map is exact enough
                config = self.config.finetuning(unfreeze=depth, init="head")
                plan = self.network.plan(cut, head, self.splits)
                with finetune_plan.open_job(plan, config, self.folder, self.reporter):
                    pass
        self._open()
        self._fingerprint = self._settings_fingerprint()
        self.done = {run.trial: run for run in stored_runs(self.folder, self._fingerprint) if run.evidence}
        return self

    def _open(self) -> FeatureCache:
        """Open the cache, with the samples as the task of `trials`."""
        self.cache = FeatureCache(self.path)
        finetune_plan.require_unchanged(self.cache, self.network.identity)
        splits = self.splits
        unfolded = np.full(len(splits.rows["train"]), NO_FOLD, np.int16)
        target = splits.table.targets[self.target]
        cv = FitConfig.cv
        self.task = Task(self.cache, splits.table, target, splits.rows, unfolded, cv, self.config.seed)
        return self.cache

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
                    store_run(self.folder, self._fingerprint, self.done[trial], self.done.values())
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
                self.cache, self.network.backbone, self.cuts[unfreeze].node, config, self.folder
            ) as inputs:
                yield inputs

    def _run(self, trial: Trial, inputs: Inputs | None) -> CompareRun:
        """Train and measure."""
        started = time.perf_counter()
        splits = few_shots(self.splits, trial.shots, trial.seed)
        epochs, blocks, stopped, unread = 0, 0, "", ""
        if inputs is None:
            head = self._head(trial.shots, trial.seed, splits)
            outputs = {split: outputs_of(self.task, head, rows) for split, rows in splits.rows.items()}
        else:
            job = self._job(trial, splits, inputs)
            keys, readable = self.cache.images.key, splits.without(inputs.unread)
            lost = {keys[index]: reason for index, reason in inputs.unread.items()}
            unread = unread_note(lost).message if readable.counts() != splits.counts() else ""
            splits = readable
            job.train()
            outputs = {split: job.logits(split) for split in splits.rows}
            epochs, stopped = len(job.training.state.history) - 1, job.training.state.stopped
            blocks = trial.depth or len(self.cuts[trial.unfreeze].blocks)
        evidence = {
            split: replace(evidence_of(self.task, rows, outputs[split]), keys=rows.astype(str))
            for split, rows in splits.rows.items()
        }
        return CompareRun(
            **asdict(trial),
            accuracy={split: each.mean for split, each in evidence.items()},
            n=len(splits.rows["train"]),
            epochs=epochs,
            seconds=time.perf_counter() - started,
            stopped=stopped,
            unread=unread,
            blocks=blocks,
            evidence={split: each for split, each in evidence.items() if split != "train"},
        )

    def _job(self, trial: Trial, splits: LabelledSplits, inputs: Inputs) -> TrainingJob[TransferNetwork]:
        """The job of a trial that trains, from the original weights, without images that have no rows."""
        readable = splits.without(inputs.unread)
        config = self.settings(trial.seed, len(readable.rows["train"]))
        if trial.depth is not None:
            own = config.from_scratch(trial.depth)
            network = scratch.new_backbone(own)
            return scratch.build_job(network, self._small_pixels(), inputs, readable, self.target, own)
        head, cut = self._head(trial.shots, trial.seed, splits), self.cuts[trial.unfreeze]
        finetuning = config.finetuning(unfreeze=trial.unfreeze, init=trial.init)
        return self.network.job(self.cache, cut, head, readable, inputs, finetuning)

    def settings(self, seed: int, samples: int) -> CompareConfig:
        """The settings of a run on so many train samples."""
        return replace(self.config, seed=seed).for_samples(samples)

    def _head(self, shots: int | str, seed: int, splits: LabelledSplits) -> HeadArtifact:
        """The head on the samples of a trial, C by cross-validation; on all samples one for all seeds."""
        key = (shots, 0 if shots == ALL else seed)
        if key not in self._heads:
            self._heads[key] = head_on(self.task, self.config.node, splits.rows["train"])
        return self._heads[key]

    def _small_pixels(self) -> Preprocess:
        """The preprocessing of the small CNN, with images not larger than the cache's, decoded as those."""
        preprocess = scratch.new_backbone(ScratchConfig()).preprocess
        cached = Preprocess.from_json(self.cache.spec.preprocess)
        return preprocess.override(min(preprocess.size, cached.size), None, cached.decoding)

    def _settings_fingerprint(self) -> str:
        """Fingerprint of everything that a run's result depends on beside its trial."""
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
