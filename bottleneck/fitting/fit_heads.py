"""Heads from a cache: which samples and labels, which nodes and kinds of head, what is measured and written.

Shapes: S samples, n of them to train on, D features, C classes or labels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.engines.device import resolve_device
from bottleneck.errors import FitError
from bottleneck.fitting.head_files import HeadFiles, head_record, shot_record
from bottleneck.fitting.labels import relabelled
from bottleneck.fitting.training_set import folds_of, training_samples, with_numbers
from bottleneck.heads.cross_validation import grid_of
from bottleneck.heads.few_shot import shot_scores
from bottleneck.heads.fit import KindResult, fit_kind
from bottleneck.heads.logistic import DEFAULT_MEMORY, SweepConfig
from bottleneck.heads.solver.problem import ClassWeight, TargetProblem
from bottleneck.names import HEAD_KINDS, LINEAR_HEADS
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import SampleTable, Target
from bottleneck.store.reader import FeatureCache
from bottleneck.threads import trim_memory


@dataclass(frozen=True)
class FitResult:
    """What `fit_heads` made.

    heads : one dict per head, as `fit-head --json` prints them; curves : k-shot scores and the probe curve;
    files : what was written beside the heads, by name; notes : what a user has to know of the data.
    """

    heads: list[dict[str, Any]]
    seconds: float
    files: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck fit-head --json`."""
        return dict(vars(self))


@dataclass(frozen=True)
class FitConfig:
    """How heads are fitted.

    head : one or several of logistic, ridge, nearest-mean, knn, mlp.
    C : "auto" (13 values from 1e-6 to 1), a number or several. cv : folds.
    class_weight : None or "balanced". multi_class : "multinomial" or "ovr".
    one_standard_error : take the simplest head within one standard error of the best.
    shots : images per class of the k-shot curve, drawn `repeats` times.
    views : train logistic and ridge heads on the cached views.
    memory : bytes for rows and work. device : "cpu", "cuda" …, "auto".
    """

    head: tuple[str, ...] = ("logistic",)
    C: str | float | tuple[float, ...] = "auto"
    cv: int = 5
    class_weight: ClassWeight = None
    multi_class: str = "multinomial"
    one_standard_error: bool = False
    shots: tuple[int, ...] = ()
    repeats: int = 20
    views: bool = False
    memory: int = DEFAULT_MEMORY
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for kind in self.head:
            if kind not in HEAD_KINDS:
                raise FitError(f"There is no head {kind!r}; choose from {', '.join(HEAD_KINDS)}.")
        if self.multi_class not in ("multinomial", "ovr"):
            raise FitError(f"multi_class is {self.multi_class!r}; expected multinomial or ovr.")
        if self.cv < 2:
            raise FitError(f"cv is {self.cv}; expected 2 folds or more.")
        if any(k < 1 for k in self.shots) or self.repeats < 1:
            raise FitError(f"shots are {list(self.shots)}, drawn {self.repeats} times; expected 1 or more.")
        if self.memory < 32 << 20:
            raise FitError(f"memory is {self.memory / 2**20:.0f} MiB; expected at least 32 MiB.")
        grid_of(self.C)
        object.__setattr__(self, "device", resolve_device(self.device))

    def sweep(self) -> SweepConfig:
        """As the solver takes it."""
        return SweepConfig(memory=self.memory, device=self.device, one_standard_error=self.one_standard_error)


def fit_heads(
    cache: str | os.PathLike,
    *,
    targets: Sequence[str] | None = None,
    labels: str | os.PathLike | None = None,
    nodes: Sequence[str] | None = None,
    head: str | Sequence[str] = "logistic",
    group: str | None = None,
    regression: Sequence[str] = (),
    output: str | os.PathLike = "heads",
    memory: int | None = None,
    reporter: Reporter = SILENT,
    **options: Any,
) -> FitResult:
    """Fit heads on the train split of a cache: one for every target, node and kind.

    What is chosen (C, the temperature) is chosen by cross-validation on train alone; val and test are only
    measured. Every head is written as an artifact, its out-of-fold logits beside it.

    Parameters
    ----------
    cache : path of a feature cache
    targets : names; all that the cache (or `labels`) has where left out
    labels : .csv, .jsonl or .parquet file whose columns replace the cache's targets (`labelling.join_labels`)
    nodes : names; all vectors of the cache where left out
    head : a kind or several, see `FitConfig`
    group : column of `labels` that names groups; without it the cache's own groups keep together in folds
    regression : targets whose whole numbers are quantities (ages, counts), not names of classes
    output : folder for the heads
    options : further fields of `FitConfig`

    Raises
    ------
    FitError
        No labels, one class, NaN features …: what was found and what to do.
    CacheError
        No such cache or node.
    """
    started = time.perf_counter()
    kinds = (head,) if isinstance(head, str) else tuple(dict.fromkeys(head))
    config = FitConfig(head=kinds, memory=memory or DEFAULT_MEMORY, **_tuples(options))
    with FeatureCache(cache) as opened:
        opened.require_rows()
        samples, notes = relabelled(opened.samples, opened.images.key, labels, targets or (), group)
        samples = with_numbers(samples, regression)
        train, asked = training_samples(samples, targets, Path(cache))
        notes += _left_out(config, asked)
        names = list(dict.fromkeys(nodes or _vectors(opened)))
        folds = {
            target.name: folds_of(target, samples, train, config.cv, config.seed, notes) for target in asked
        }
        files = HeadFiles(opened, samples, Path(output))
        run = _Run(opened, samples, train, asked, folds, config, files, reporter)
        records, shots = [], []
        for node in names:
            for kind in config.head:
                records += run.fit(node, kind)
            shots += run.shots(node, records)
        written, curves = files.curves(records, shots)
    return FitResult(records, time.perf_counter() - started, written, curves, notes)


def _vectors(cache: FeatureCache) -> list[str]:
    """The nodes that a head can take as they are."""
    names = [name for name, node in cache.nodes.items() if not node.is_map]
    if not names:
        raise FitError(f"{cache.path} has maps only.", "Extract a vector, for example with --node NODE@avg.")
    return names


@dataclass(frozen=True)
class _Run:
    """What the heads of one call have in common. train : (n,) samples; asked : their targets."""

    cache: FeatureCache
    samples: SampleTable
    train: np.ndarray
    asked: list[Target]
    folds: dict[str, np.ndarray]
    config: FitConfig
    files: HeadFiles
    reporter: Reporter

    def fit(self, node: str, kind: str) -> list[dict[str, Any]]:
        """Fit, measure and write the heads of one kind on one node; their records."""
        config = self.config
        started = time.perf_counter()
        asked = self.asked
        if kind == "ridge" and "logistic" in config.head:  # which has answered regressions by ridge already
            asked = [target for target in asked if target.kind != "regression"]
        if kind not in LINEAR_HEADS:
            asked = [target for target in asked if target.kind == "class"]
        questions = [
            TargetProblem(target, self.folds[target.name], config.class_weight, None, config.multi_class)
            for target in asked
        ]
        if not questions:
            return []
        found = fit_kind(
            kind,
            self.cache.sample_rows(node, self.train),
            questions,
            grid_of(config.C),
            config.sweep(),
            views=self.cache.sample_rows(node, self.train, views=True) if config.views else None,
            seed=config.seed,
            reporter=self.reporter,
        )
        trim_memory()
        seconds = time.perf_counter() - started
        pairs = zip(asked, found, strict=True)
        return [self._keep(node, target, result, seconds) for target, result in pairs]

    def _keep(self, node: str, target: Target, result: KindResult, seconds: float) -> dict[str, Any]:
        artifact, path, beside = self.files.write(node, target, result, self.train, self.folds[target.name])
        return head_record(artifact, path, beside) | {"seconds": seconds, "converged": result.converged}

    def shots(self, node: str, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The k-shot curve of every class target on one node, at the C of its logistic head."""
        config = self.config
        if not config.shots:
            return []
        found = []
        for target in self.asked:
            if target.kind != "class":
                continue
            fitted = [r for r in records if r["target"] == target.name and r["node"] == node and r["C"]]
            rows = self.cache.sample_rows(node, self.train)
            scores = shot_scores(
                rows,
                target,
                fitted[0]["C"] if fitted else 1.0,
                sorted(config.shots),
                repeats=config.repeats,
                seed=config.seed,
                config=config.sweep(),
                reporter=self.reporter,
            )
            found.append(shot_record(target.name, node, sorted(config.shots), scores))
        return found


def _left_out(config: FitConfig, asked: list[Target]) -> list[str]:
    """Notes on targets and views that some of the kinds of head cannot use; FitError where none can."""
    others = [kind for kind in config.head if kind not in LINEAR_HEADS]
    unanswered = [target.name for target in asked if target.kind != "class"]
    notes = []
    if others and len(unanswered) == len(asked):
        raise FitError(
            f"A {others[0]} head answers class targets; {asked[0].name!r} is a {asked[0].kind} one.",
            "Use --head logistic or --head ridge.",
        )
    if others and unanswered:
        shown = ", ".join(map(repr, unanswered[:5]))
        notes.append(f"Heads of kind {', '.join(others)} answer class targets: none is fitted to {shown}.")
    if others and config.views:
        if len(others) == len(config.head):
            raise FitError(
                f"Views train logistic and ridge heads, not those of kind {', '.join(others)}.",
                "Leave --views out, or use --head logistic.",
            )
        notes.append(f"Heads of kind {', '.join(others)} are fitted on plain features, not on views.")
    return notes


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    """Options with sequences as tuples; None of `shots` is none."""
    if options.get("shots", ()) is None:
        options = {**options, "shots": ()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
