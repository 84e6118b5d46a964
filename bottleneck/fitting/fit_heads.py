"""Fit heads on a cache: choose samples, labels and nodes; fit, measure and write each head.

Shapes: n training samples.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.backbones.node_names import stored_nodes
from bottleneck.data.config import LabelConfig
from bottleneck.engines.device import resolve_device
from bottleneck.errors import FitError, Note, listed, quoted, refuse_strict
from bottleneck.files import require_file_name
from bottleneck.fitting.config import FitConfig
from bottleneck.fitting.head_files import HeadFiles, shot_record
from bottleneck.fitting.labels import relabelled
from bottleneck.fitting.left_out import Listed, left_out, without_rows
from bottleneck.fitting.training_set import (
    folds_of,
    require_classes,
    training_samples,
    with_numbers,
    with_training_classes,
)
from bottleneck.heads.config import SweepConfig
from bottleneck.heads.fit import fit_kind, shot_scores
from bottleneck.heads.solver.problem import ClassWeight, TargetProblem
from bottleneck.names import HEADS_FOLDER, LINEAR_HEADS
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import Result, config_from
from bottleneck.samples import SampleTable, Target
from bottleneck.store.reader import FeatureCache
from bottleneck.threads import trim_memory


@dataclass(frozen=True)
class FitResult(Result):
    """Result of `fit_heads`.

    heads : one dict per head, as `fit-head --json` prints them.
    seconds : wall time.
    files : paths of the tables that were written beside the heads, by name.
    curves : k-shot scores and the probe curve.
    notes : what was decided about the data and the heads.
    """

    heads: list[dict[str, Any]]
    seconds: float
    files: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def fit_heads(
    cache: str | os.PathLike[str],
    *,
    targets: Sequence[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    group: str | None = None,
    without: Listed | None = None,
    classes: Sequence[str] = (),
    regression: Sequence[str] = (),
    label_separator: str | None = None,
    nodes: Sequence[str] | None = None,
    head: str | Sequence[str] = FitConfig.head,
    C: str | float | Sequence[float] = FitConfig.C,
    cv: int = FitConfig.cv,
    scales: str = FitConfig.scales,
    class_weight: str | Mapping[int, float] | None = FitConfig.class_weight,
    multi_class: str = FitConfig.multi_class,
    one_standard_error: bool = FitConfig.one_standard_error,
    shots: Sequence[int] | None = FitConfig.shots,
    repeats: int = FitConfig.repeats,
    views: bool = FitConfig.views,
    memory: int | None = FitConfig.memory,
    device: str = FitConfig.device,
    seed: int = FitConfig.seed,
    output: str | os.PathLike[str] = HEADS_FOLDER,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> FitResult:
    """Fit heads on the train split of a cache: one for every target, node and kind.

    C and the temperature are chosen by cross-validation on the train split; val and test are only measured.
    Every head is written as an artifact, its out-of-fold logits beside it.

    Parameters
    ----------
    cache : path of a feature cache.
    targets : names; None takes all targets of the cache or of `labels`.
    labels : .csv, .jsonl or .parquet file whose columns replace the cache's targets (`labels.join_labels`).
    group : column of `labels` that names groups, which folds keep together; None takes the cache's groups.
    without : list of images, samples or groups that take no part, in the fit or in its figures
        (`left_out.left_out`); the heads' files keep its digest, and `left_out.seen_images` proves it.
    classes : targets whose numbers are names of classes (codes, versions), not quantities.
    label_separator : character between several labels in one cell of `labels`.
    regression : targets whose whole numbers are quantities (ages, counts), not names of classes.
    nodes : names, A+B for one head on several side by side; None takes each vector node of the cache.
    head, C, cv, scales, class_weight, multi_class, one_standard_error, shots, repeats, views, memory, \
    device, seed : see `FitConfig`; None of `shots` and `memory` is the default.
    output : folder for the heads.
    strict : refuse decisions that change what is learnt or measured (`errors.refuse_strict`).

    Raises
    ------
    FitError
        The data cannot be fitted: no labels, one class, NaN features …
    StrictError
        `strict` is given and a note changes the result.
    CacheError
        There is no such cache or node.
    """
    started = time.perf_counter()
    config = config_from(
        FitConfig,
        locals(),
        head=(head,) if isinstance(head, str) else tuple(dict.fromkeys(head)),
        C=C if isinstance(C, str | float | int) else tuple(C),
        shots=tuple(sorted(shots or ())),
        memory=FitConfig.memory if memory is None else memory,
    )
    sweep = SweepConfig(
        memory=config.memory,
        device=resolve_device(device),
        one_standard_error=one_standard_error,
        scales=scales,
    )
    kinds = LabelConfig(tuple(classes), tuple(regression), label_separator)
    with FeatureCache(cache) as opened:
        opened.require_rows()
        data, notes = _data_of(opened, _Wanted(targets, labels, group, without, kinds), config)
        names, renamed = stored_nodes(opened, nodes or ())
        notes += renamed
        refuse_strict(notes, strict)
        require_file_name(Path(output) / "head.safetensors")
        files = HeadFiles(opened, data.samples, Path(output), data.unseen, data.left, seed)
        run = _Run(opened, data, config, sweep, files, reporter, notes, strict)
        records: list[dict[str, Any]] = []
        curves: list[dict[str, Any]] = []
        for node in dict.fromkeys(names or _vectors(opened)):
            for kind in config.head:
                records += run.fit(node, kind)
            curves += run.shot_curves(node, records)
        written, drawn = files.curves(records, curves)
    return FitResult(records, time.perf_counter() - started, written, drawn, [*run.notes, *files.notes])


@dataclass(frozen=True)
class _Wanted:
    """The answers that heads are fitted to; the fields are the arguments of `fit_heads`."""

    targets: Sequence[str] | None
    labels: str | os.PathLike[str] | None
    group: str | None
    without: Listed | None
    kinds: LabelConfig


@dataclass(frozen=True)
class _Data:
    """The samples that heads are fitted to.

    samples : with the classes that train has. train : (n,) rows of it. problems : on these, one a target.
    unseen : {target: {class: samples}} of the classes that train lacks. left : what a list left out.
    """

    samples: SampleTable
    train: np.ndarray
    problems: list[TargetProblem]
    unseen: dict[str, dict[str, int]]
    left: dict[str, Any] | None


def _data_of(cache: FeatureCache, wanted: _Wanted, config: FitConfig) -> tuple[_Data, list[Note]]:
    """Return samples, targets and folds of a cache, and notes on them."""
    targets, kinds = wanted.targets, wanted.kinds
    samples, notes = relabelled(
        cache.samples, cache.images.key, wanted.labels, targets or (), wanted.group, kinds
    )
    require_classes(samples, kinds.classes)
    complete, left = with_numbers(samples, kinds.regression), None
    if wanted.without is not None:
        found = left_out(cache, wanted.without)
        complete, left = without_rows(complete, found.rows), found.record(cache)
        notes += found.notes(cache)
    samples, lacking = with_training_classes(complete, targets)
    train, requested = training_samples(samples, targets, cache.path)
    notes += [*lacking, *_left_out(config, requested), *_unused(config, requested)]
    notes += _fewer_shots(config, requested)
    problems = [
        TargetProblem(
            target,
            folds_of(target, samples, train, config.cv, config.seed, notes),
            class_weight=_weights_for(target, complete.targets[target.name], config.class_weight),
            multi_class=config.multi_class,
        )
        for target in requested
    ]
    unseen = {note.details["target"]: note.details["unseen"] for note in lacking}
    return _Data(samples, train, problems, unseen, left), notes


def _vectors(cache: FeatureCache) -> list[str]:
    """Return the names of the nodes that are vectors."""
    names = cache.vector_names
    if not names:
        raise FitError(f"{cache.path} has maps only.", "Extract a vector, for example with --node NODE@avg.")
    return names


@dataclass(frozen=True)
class _Run:
    """The heads of one call. notes : those on heads are added."""

    cache: FeatureCache
    data: _Data
    config: FitConfig
    sweep: SweepConfig
    files: HeadFiles
    reporter: Reporter
    notes: list[Note]
    strict: bool

    def fit(self, node: str, kind: str) -> list[dict[str, Any]]:
        """Fit, measure and write the heads of one kind on one node, and return their records."""
        started = time.perf_counter()
        problems = [problem for problem in self.data.problems if self._is_fitted(kind, problem.target)]
        if not problems:
            return []
        train = self.data.train
        views = self.cache.sample_rows(node, train, views=True) if self.config.views else None
        heads = fit_kind(
            kind,
            self.cache.sample_rows(node, train),
            problems,
            self.config.C,
            config=self.sweep,
            views=views,
            seed=self.config.seed,
            reporter=self.reporter,
        )
        trim_memory()
        seconds = time.perf_counter() - started
        for problem, head in zip(problems, heads, strict=True):
            self.notes.extend(head.notes(problem.target.name, node))
        refuse_strict(self.notes, self.strict)
        records = []
        for problem, head in zip(problems, heads, strict=True):
            record = self.files.write(node, problem, head, train)
            solved = {"seconds": seconds, "converged": head.converged, "library": head.library}
            records.append(record | solved)
        return records

    def _is_fitted(self, kind: str, target: Target) -> bool:
        """Return False where the kind cannot predict the target or another kind of this call has done so."""
        if target.kind != "regression":
            return kind in LINEAR_HEADS or target.kind == "class"
        # A logistic head of a regression is a ridge head.
        return kind == "logistic" or (kind == "ridge" and "logistic" not in self.config.head)

    def shot_curves(self, node: str, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the k-shot curve of every class target on one node, at the C of its first head with one."""
        shots = self.config.shots
        curves = []
        for target in (problem.target for problem in self.data.problems if shots):
            if target.kind != "class":
                continue
            like = [r for r in records if r["target"] == target.name and r["node"] == node and r["C"]]
            scores = shot_scores(
                self.cache.sample_rows(node, self.data.train),
                target,
                like[0]["C"] if like else 1.0,
                shots,
                scales=like[0]["scales"] if like else None,
                repeats=self.config.repeats,
                seed=self.config.seed,
                config=self.sweep,
                reporter=self.reporter,
            )
            curves.append(shot_record(target.name, node, shots, scores))
        return curves


def _weights_for(target: Target, complete: Target, weight: ClassWeight) -> ClassWeight:
    """Return weights by code of `complete` as weights by code of `target`, which may lack some classes."""
    if weight is None or isinstance(weight, str):
        return weight
    names = dict(enumerate(complete.class_names))
    codes = {name: code for code, name in enumerate(target.class_names)}
    return {codes[names[code]]: w for code, w in weight.items() if names.get(code) in codes}


def _left_out(config: FitConfig, targets: list[Target]) -> list[Note]:
    """Return notes on targets and views that some kinds of head cannot use; FitError if none can."""
    others = [kind for kind in config.head if kind not in LINEAR_HEADS]
    not_classes = [target.name for target in targets if target.kind != "class"]
    notes: list[Note] = []
    if others and len(not_classes) == len(targets):
        raise FitError(
            f"A {others[0]} head predicts classes; {targets[0].name!r} is a {targets[0].kind} target.",
            "Use --head logistic or --head ridge.",
        )
    if others and not_classes:
        text = f"Heads of kind {', '.join(others)} predict classes: none is fitted to {quoted(not_classes)}."
        notes.append(Note("heads-left-out", text, True, {"heads": others, "targets": not_classes}))
    if others and config.views:
        if len(others) == len(config.head):
            raise FitError(
                f"Views train logistic and ridge heads, not those of kind {', '.join(others)}.",
                "Leave --views out, or use --head logistic.",
            )
        text = f"Heads of kind {', '.join(others)} are fitted on plain features, not on views."
        notes.append(Note("views-left-out", text, True, {"heads": others}))
    return notes


def _unused(config: FitConfig, targets: list[Target]) -> list[Note]:
    """Return a note for each option that differs from its default and changes nothing in some heads."""
    heads = [
        (kind, target)
        for target in targets
        for kind in config.head
        if kind in LINEAR_HEADS or target.kind == "class"
    ]
    notes = []
    for option in ("C", "class_weight", "multi_class", "one_standard_error"):
        if getattr(config, option) == getattr(FitConfig, option):
            continue
        names = [f"{kind} of {target.name!r}" for kind, target in heads if not _uses(kind, target, option)]
        if names:
            text = f"{option} changes nothing in these heads: {listed(names)}."
            notes.append(Note("options-unused", text, True, {"options": [option], "heads": names}))
    return notes


def _uses(kind: str, target: Target, option: str) -> bool:
    """Return whether a head of the kind on the target depends on an option of `FitConfig`."""
    if option in ("C", "one_standard_error"):
        return kind in LINEAR_HEADS
    if target.kind == "regression":
        return False
    return kind == "logistic" or (
        option == "class_weight" and target.kind == "class" and kind in ("ridge", "mlp")
    )


def _fewer_shots(config: FitConfig, targets: list[Target]) -> list[Note]:
    """Return a note for each class target with classes of no more train samples than the most shots."""
    notes, most = [], max(config.shots, default=0)
    for target in targets:
        if target.kind != "class" or not most:
            continue
        counts = np.bincount(target.values[target.labelled], minlength=len(target.class_names))
        few = {name: int(n) for name, n in zip(target.class_names, counts, strict=True) if n <= most}
        if few:
            text = (
                f"Target {target.name!r}: {quoted(few)} with no more than {most} training samples. "
                "Where that many shots are drawn, all of them are taken and none is left to measure."
            )
            notes.append(Note("fewer-shots", text, True, {"target": target.name, "classes": few}))
    return notes
