"""Which images to label next, whether choosing them helps, and what more labels may bring.

    labelled samples ──► head ──► margins of the candidates ──► list (`selector`)
                    ├──► replay on labels that exist ──► verdict (`backtest`)
                    └──► accuracy by labels ──► 2 and 5 times as many (`shot_curve`)

The test split takes no part.

Shapes: n labelled samples, m candidates, b suggestions, K classes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.config import ReadConfig
from bottleneck.data.table_file import csv_lines
from bottleneck.errors import CacheError, FitError, Note, counted, refuse_strict, verb
from bottleneck.extraction.config import EngineConfig
from bottleneck.files import require_file_name, write_whole
from bottleneck.fitting.head_files import blockwise
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.cross_validation import assign_folds
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import Result, config_from
from bottleneck.samples import RowReader
from bottleneck.store.join import common_root
from bottleneck.store.reader import FeatureCache
from bottleneck.store.tables import as_bytes
from bottleneck.studies.class_task import sole_target
from bottleneck.studies.new_images import NewImages, new_images
from bottleneck.studies.shot_curve import Outlook, ShotCurve, outlook, shot_curve
from bottleneck.studies.study_config import SuggestConfig
from bottleneck.studies.suggest.backtest import Backtest, backtest
from bottleneck.studies.suggest.selector import Space, choose, directions, margins
from bottleneck.trials.heads import artifact_of, fit_on
from bottleneck.trials.task import Task, task_of

REPLAYED = 2000  # labelled samples; of more, so many are drawn
CURVE_FOLDS = 4  # the curve is measured on one of them


@dataclass(frozen=True)
class SuggestResult(Result):
    """Result of `suggest`.

    suggestions : {image, predicted, confidence, margin, score, reason}, the first to be labelled first.
    backtest : see `Backtest`. curve : see `ShotCurve`, of a ridge head. outlook : see `Outlook`, or None.
    candidates : samples without a label. labelled : those that the head learnt from.
    features : the cache that the candidates' features are in.
    failed : [{image, error}] of the images that cannot be suggested.
    engines : that computed candidates, each {"engine", "precision", "nodes"}; none where they had features.
    precisions : of the features, by node.
    """

    cache: str
    features: str
    target: str
    node: str
    labelled: int
    candidates: int
    suggestions: list[dict[str, Any]]
    backtest: dict[str, Any]
    curve: dict[str, Any]
    outlook: dict[str, Any] | None
    failed: list[dict[str, str]]
    seed: int
    files: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    extract_seconds: float = 0.0
    engines: list[dict[str, Any]] = field(default_factory=list)
    precisions: dict[str, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True)
class _Candidates:
    """Samples without a label.

    cache : open. rows : (m,) of its samples. prefix : of their keys in the list.
    """

    cache: FeatureCache
    rows: np.ndarray
    prefix: str = ""
    notes: tuple[Note, ...] = ()

    @property
    def names(self) -> np.ndarray:
        """(m,) keys of the images; of the samples where one has several images."""
        samples = self.cache.samples
        if samples.image.shape[1] > 1:
            return samples.key[self.rows]
        return self.cache.images.key[samples.image[self.rows, 0]]


def suggest(
    cache: str | os.PathLike[str],
    unlabelled: str | os.PathLike[str] | None = None,
    *,
    target: str | None = SuggestConfig.target,
    node: str = SuggestConfig.node,
    n: int = SuggestConfig.n,
    cv: int = SuggestConfig.cv,
    seed: int = SuggestConfig.seed,
    output: str | Path | None = SuggestConfig.output,
    strict: bool = False,
    weights: str | None = LoadOptions.weights,
    trust_code: bool = LoadOptions.trust_code,
    engine: str = EngineConfig.engine,
    precision: str = EngineConfig.precision,
    device: str = EngineConfig.device,
    batch_size: int | None = EngineConfig.batch_size,
    workers: int | None = EngineConfig.workers,
    force: bool = EngineConfig.force,
    image_columns: Sequence[str] = ReadConfig.image_columns,
    sample_column: str | None = ReadConfig.sample_column,
    covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
    reporter: Reporter = SILENT,
) -> SuggestResult:
    """Say which images to label next, after a backtest of that choice on the labels that there are.

    Parameters
    ----------
    cache : path of a feature cache with labels.
    unlabelled : a cache of the same network, or a folder or other source of images, whose features are
        computed and kept (`new_images`). None takes the samples of `cache` without a label.
    target, node, n, cv, seed : see `SuggestConfig`.
    output : .csv file to write: the suggestions without a label, then the labels that there are, in the form
        that `fit-head --labels` takes. The images of another source have the names that `cache merge` gives.
    strict : refuse decisions that change what is learnt.
    weights, trust_code, engine, precision, device, batch_size, workers, force
        As in `extract`, for images whose features have to be computed.
    image_columns, sample_column, covariate_columns
        Columns of a manifest, see `ReadConfig`; those of `cache` by default.

    Raises
    ------
    FitError
        The target has no classes, or cannot be learnt from; or no sample is without a label.
    FingerprintError
        The features of `unlabelled` were computed in another way.
    CacheError, SourceError, BackboneError, EngineError, StrictError
    """
    config = config_from(SuggestConfig, locals())
    load, run = config_from(LoadOptions, locals()), config_from(EngineConfig, locals())
    reading = config_from(ReadConfig, locals(), seed=0)  # `seed` is of the study, not of splits
    if output is not None:
        require_file_name(Path(output))
    started = time.perf_counter()
    with FeatureCache(cache) as opened:
        task = _class_task(opened, config)
        refuse_strict(task.notes, strict)
        source: AbstractContextManager[NewImages] = nullcontext(NewImages(opened))
        if unlabelled is not None:
            source = new_images(opened, unlabelled, node, load, run, reading, reporter)
        with source as new:
            result = _suggested(task, new, unlabelled, config, reporter)
    spent = time.perf_counter() - started - new.startup_seconds - new.extract_seconds
    features = str(cache) if unlabelled is None else result.features
    return replace(result, cache=str(cache), features=features, seconds=spent)


def _suggested(
    task: Task, new: NewImages, source: object, config: SuggestConfig, reporter: Reporter
) -> SuggestResult:
    """Choose among the images of `new`, which are of `source`, and say what the choice is worth."""
    candidates = _candidates(task, new.cache, source)
    head = fitted_head(task, config, reporter)
    suggestions, space = _suggestions(task, candidates, head, config)
    tested, curve, ahead, drawn = worth(task, space, head, config, reporter)
    files = {}
    if config.output is not None:
        files["output"] = _write(Path(config.output), task, candidates, suggestions)
    return SuggestResult(
        cache=str(task.cache.path),
        features=str(new.cache.path),
        target=task.target.name,
        node=config.node,
        labelled=len(task.judged),
        candidates=len(candidates.rows),
        suggestions=suggestions,
        backtest=tested.to_json(),
        curve=curve.to_json(),
        outlook=None if ahead is None else vars(ahead),
        failed=new.failed,
        seed=config.seed,
        files=files,
        extract_seconds=new.extract_seconds,
        engines=list(new.engines),
        precisions=task.cache.precisions_of(config.node),
        notes=[*task.notes, *new.notes, *candidates.notes, *drawn, *_short(suggestions, candidates, config)],
    )


def _class_task(cache: FeatureCache, config: SuggestConfig) -> Task:
    """Return the labelled samples as a task. Raises FitError unless the target is of classes."""
    targets, name = cache.samples.targets, sole_target(cache, config.target)
    if name is not None and targets[name].kind != "class":
        raise FitError(
            f"Target {name!r} is a {targets[name].kind} one; what to label next is suggested for classes.",
            "Name a target with classes by --target.",
        )
    return task_of(cache, name, cv=config.cv, seed=config.seed)


def _candidates(task: Task, cache: FeatureCache, source: object) -> _Candidates:
    """Return the samples to choose from."""
    samples = cache.samples
    if cache is task.cache:
        blank, test = ~samples.targets[task.target.name].labelled, samples.split == "test"
        if not (blank & ~test).any():
            raise FitError(
                f"All samples of {cache.path} outside test have a label of {task.target.name!r}.",
                "Name a folder or a cache of images to choose from: bottleneck suggest CACHE FOLDER",
            )
        held = int((blank & test).sum())
        text = f"Not suggested: {counted(held, 'sample')} of test without a label; a choice among them would "
        text += "make test another one."
        aside = (Note("test-not-suggested", text, details={"samples": held}),) if held else ()
        return _Candidates(cache, np.flatnonzero(blank & ~test), notes=aside)
    ours, theirs = ((each.image.shape[1], each.covariate_names) for each in (task.samples, samples))
    if ours != theirs:
        raise CacheError(
            f"A sample of {task.cache.path} has {counted(ours[0], 'image')} and "
            f"{counted(len(ours[1]), 'covariate')}, one of "
            f"{source} {theirs[0]} and {len(theirs[1])}.",
            "Extract them from a manifest with the same columns, and name that cache.",
        )
    known = set(as_bytes(task.cache.images.digest))
    digests = as_bytes(cache.images.digest)
    copy = np.array([all(digests[i] in known for i in images) for images in samples.image], bool)
    notes: list[Note] = []
    if copy.any():
        text = (
            f"{int(copy.sum()):,} of {counted(len(copy), 'sample')} of {source} {verb(copy.sum())} in "
            f"{task.cache.path} and left out."
        )
        notes.append(Note("copies-left-out", text, details={"samples": int(copy.sum())}))
    if any(target.labelled.any() for target in samples.targets.values()):
        text = f"Labels of {source} (such as its folders' names) are not used: all its images are candidates."
        notes.append(Note("labels-not-used", text))
    rows = np.flatnonzero(~copy)
    if not len(rows):
        raise FitError(
            f"All {counted(len(copy), 'sample')} of {source} are in {task.cache.path}; none is new."
        )
    return _Candidates(cache, rows, _prefixes(task.cache, cache)[1], tuple(notes))


def _prefixes(*caches: FeatureCache) -> list[str]:
    """Return what `cache merge` puts before the keys of each cache; nothing where it cannot merge them."""
    try:
        return common_root([cache.source_root for cache in caches])[1]
    except CacheError:
        return [""] * len(caches)


def fitted_head(task: Task, config: SuggestConfig, reporter: Reporter) -> HeadArtifact:
    """Return a head on train and val, with the temperature of its held-out logits."""
    rows, problem = task.refit_problem()
    fit = fit_on(task, config.node, rows, problem, reporter=reporter)
    return artifact_of(task, config.node, rows, fit, problem)


def _suggestions(
    task: Task, candidates: _Candidates, head: HeadArtifact, config: SuggestConfig
) -> tuple[list[dict[str, Any]], Space]:
    """Choose samples, and say why each."""
    rows = candidates.cache.sample_rows(config.node, candidates.rows)
    space = space_of(task, config.node, rows)
    probabilities = blockwise(rows, head.probabilities)
    margin = margins(probabilities)
    chosen, scores = choose(margin, directions(space.project(rows)), config.n)
    names, classes = candidates.names, head.class_names
    suggestions = []
    for i, score in zip(chosen, scores, strict=True):
        first, second = np.argsort(-probabilities[i], kind="stable")[:2]
        p, q = probabilities[i, [first, second]]
        suggestions.append(
            {
                "image": names[i],
                "predicted": classes[first],
                "confidence": float(p),
                "margin": float(margin[i]),
                "score": float(score),
                "reason": f"{classes[first]} {p:.2f} or {classes[second]} {q:.2f}",
            }
        )
    return suggestions, space


def space_of(task: Task, node: str, *others: RowReader) -> Space:
    """Return the components of the labelled samples of train and val, and of others."""
    return Space.of(task.cache.sample_rows(node, np.sort(task.judged)), *others)


def worth(
    task: Task, space: Space, head: HeadArtifact, config: SuggestConfig, reporter: Reporter
) -> tuple[Backtest, ShotCurve, Outlook | None, list[Note]]:
    """Replay the selector, measure the curve and extend it, on at most `REPLAYED` labelled samples."""
    rows, notes = np.sort(task.judged), list[Note]()
    if len(rows) > REPLAYED:
        drawn = np.random.default_rng(config.seed).permutation(len(rows))[:REPLAYED]
        text = f"The backtest and the curve are of {REPLAYED:,} of {counted(len(rows), 'labelled sample')}."
        notes.append(Note("samples-drawn", text, details={"samples": REPLAYED, "of": len(rows)}))
        rows = rows[np.sort(drawn)]
    target = task.target.take(rows)
    groups = None if task.samples.group is None else task.samples.group[rows]
    projected = space.project(task.cache.sample_rows(config.node, rows))
    assert head.C is not None
    tested = backtest(
        projected, target, head.C, head.temperature, groups=groups, seed=config.seed, reporter=reporter
    )
    units = len(rows) if groups is None else len(np.unique(groups))
    fold = assign_folds(target, min(CURVE_FOLDS, units), groups, config.seed)
    held = fold == 0
    with reporter.step("Curve of accuracy by labels"):
        curve = shot_curve(
            projected[~held],
            target.values[~held],
            projected[held],
            target.values[held],
            seed=config.seed,
            standardise=False,
        )
    return tested, curve, outlook(curve, len(task.judged), seed=config.seed), notes


def _short(
    suggestions: list[dict[str, Any]], candidates: _Candidates, config: SuggestConfig
) -> Iterator[Note]:
    """Yield a note where fewer are suggested than were asked for."""
    if len(suggestions) < config.n:
        text = f"{len(suggestions):,} are suggested, not {config.n:,}: there are {len(candidates.rows):,} "
        text += "images without a label, and a copy of a suggested one, or one that is certain, is left out."
        yield Note("fewer-suggestions", text, details={"suggested": len(suggestions)})


def _write(path: Path, task: Task, candidates: _Candidates, suggestions: list[dict[str, Any]]) -> str:
    """Write the suggestions without a label, then the samples that have one."""
    samples, target, cache = task.samples, task.target, task.cache
    own = _prefixes(cache, candidates.cache)[0]
    key = "sample" if samples.image.shape[1] > 1 else "image"
    lines: list[list[Any]] = [[key, target.name, "predicted", "confidence", "score", "reason"]]
    for each in suggestions:
        cells = [f"{each['confidence']:.4f}", f"{each['score']:.4f}", each["reason"]]
        lines.append([candidates.prefix + each["image"], "", each["predicted"], *cells])
    names = samples.key if key == "sample" else cache.images.key[samples.image[:, 0]]
    labels = cache.samples.targets[target.name]
    for row in np.flatnonzero(labels.labelled):
        lines.append([own + names[row], labels.class_names[labels.values[row]], "", "", "", ""])
    write_whole(path, "".join(csv_lines(lines, raw=True)).encode())
    return str(path)
