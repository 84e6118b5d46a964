"""From images to the best classifier that they allow: extract, try, choose, fit again, read test once.

    source ──► every stage's features, in one pass ──► heads on each ──► choice by pooled evidence
    ──► the chosen one again, on train and val ──► test, once ──► model, card, table of all that was tried

Everything is kept in a folder beside the model, `MODEL.work`: the caches and the finished trials. A run that
was killed, or that is run again on more images, computes only what is new.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bottleneck.backbones.model_file import save_model
from bottleneck.backbones.registry import outline
from bottleneck.data.config import ReadConfig
from bottleneck.data.source import Source, read_source
from bottleneck.errors import BottleneckError, Note, refuse_strict
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.extraction.extract import ExtractResult, run_extraction
from bottleneck.extraction.prepare import read_model_file
from bottleneck.extraction.settings import default_cache, source_name
from bottleneck.files import require_file_name
from bottleneck.fitting.head_files import file_name
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.names import BOTTLENECK, DEFAULT_BACKBONE, SPLITS
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.study_config import TrainConfig
from bottleneck.studies.train.result import TrainResult, write_tables
from bottleneck.training.inputs import statistics_of
from bottleneck.training.results import model_card
from bottleneck.trials.evidence import Contender, Step, choose
from bottleneck.trials.heads import Tried, final_head, try_head
from bottleneck.trials.nodes import stage_nodes
from bottleneck.trials.records import Records
from bottleneck.trials.task import Task, task_of

MODELS_FOLDER = "models"
HEAD, NODE, COMBINED, FINETUNED = range(4)  # tiers of candidates, the simplest first


def train(
    source: str | Path | Source,
    output: str | Path | None = None,
    *,
    backbone: str | Sequence[str] = (),
    target: str | None = TrainConfig.target,
    cache: str | Path | None = None,
    cv: int = TrainConfig.cv,
    weights: str | None = ExtractConfig.weights,
    image_size: int | None = ExtractConfig.image_size,
    crop: float | str | None = ExtractConfig.crop,
    in_channels: int | None = ExtractConfig.in_channels,
    depth: int | None = ExtractConfig.depth,
    dtype: str | None = ExtractConfig.dtype,
    trust_code: bool = ExtractConfig.trust_code,
    engine: str = EngineConfig.engine,
    precision: str = EngineConfig.precision,
    device: str = EngineConfig.device,
    batch_size: int | None = EngineConfig.batch_size,
    workers: int | None = EngineConfig.workers,
    force: bool = EngineConfig.force,
    image_columns: Sequence[str] = ReadConfig.image_columns,
    label_columns: Sequence[str] = ReadConfig.label_columns,
    split_column: str | None = ReadConfig.split_column,
    group_column: str | None = ReadConfig.group_column,
    sample_column: str | None = ReadConfig.sample_column,
    covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
    classes: Sequence[str] = ReadConfig.classes,
    regression: Sequence[str] = ReadConfig.regression,
    label_separator: str | None = ReadConfig.label_separator,
    val_fraction: float = ReadConfig.val_fraction,
    test_fraction: float = ReadConfig.test_fraction,
    limit: int | None = ReadConfig.limit,
    seed: int = TrainConfig.seed,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> TrainResult:
    """Train the best classifier that the images allow, and write it as one model file.

    The choice is by the rule of `trials.evidence`: cross-validation on train and val are pooled, and a
    candidate replaces a simpler one only if it is better by more than the noise of paired samples. Test is
    read once, by the model that is written.

    Parameters
    ----------
    source : path, URL or Source
        A folder of images, a manifest, shards, or an already read `Source`.
    output : path, optional
        The model; `models/SOURCE.safetensors` below the current folder by default.
    backbone : str or sequence of str
        Networks to compare, the preferred one first; `names.DEFAULT_BACKBONE` by default.
    cache : path, optional
        Feature cache (.h5) of the one network, or a folder for the caches of several. By default they are in
        the folder `MODEL.work` beside the model.
    target, cv, seed
        As in `TrainConfig`.
    weights, image_size, crop, in_channels, depth, dtype, trust_code
        As in `ExtractConfig`.
    engine, precision, device, batch_size, workers, force
        As in `EngineConfig`.
    image_columns, label_columns, split_column, group_column, sample_column, covariate_columns, classes, \
regression, label_separator, val_fraction, test_fraction, limit
        As in `ReadConfig`.
    strict
        Refuse decisions that change what is learnt or measured.

    Raises
    ------
    SourceError, BackboneError, EngineError, CacheError
        As `extract` does.
    FitError
        The labels cannot be learnt: none, one class, too few samples.
    StrictError
        `strict` is given and a note changes the result.
    """
    started = time.perf_counter()
    config = config_from(TrainConfig, locals())
    extraction = config_from(ExtractConfig, locals(), backbone=None)
    reading = config_from(ReadConfig, locals())
    opened = read_source(source, reading)
    refuse_strict(opened.notes, strict)
    names = (backbone,) if isinstance(backbone, str) else tuple(dict.fromkeys(backbone))
    route = _Route(opened, names or (DEFAULT_BACKBONE,), config, extraction, strict, reporter)
    return route.run(_model_path(opened, output), cache, started)


@dataclass(frozen=True)
class Candidate:
    """A head on one node of one backbone, as it was tried."""

    kind: str
    tier: int
    backbone: str
    node: str
    task: Task
    tried: Tried

    @property
    def what(self) -> str:
        """The candidate in words."""
        return f"head on {self.node}"

    def to_json(self, chosen: bool) -> dict[str, Any]:
        """Return the candidate as one row of the table."""
        metric = self.task.metric
        figures = {f"{of}_{metric}": self.tried.metrics.get(of, {}).get(metric) for of in ("cv", "val")}
        return {
            "what": self.what,
            "kind": self.kind,
            "backbone": self.backbone,
            "node": self.node,
            **figures,
            "pooled": self.tried.evidence.mean,
            "seconds": self.tried.seconds,
            "chosen": chosen,
        }


@dataclass(frozen=True)
class _Route:
    """One run."""

    source: Source
    backbones: tuple[str, ...]
    config: TrainConfig
    extraction: ExtractConfig
    strict: bool
    reporter: Reporter

    def run(self, model: Path, cache: str | Path | None, started: float) -> TrainResult:
        work = model.with_suffix(".work")
        paths = self._caches(work, cache)
        nodes = {name: self._nodes(name) for name in paths}
        extracted = {name: self._extract(name, path, nodes[name]) for name, path in paths.items()}
        for result in extracted.values():
            result.require_rows()
        with ExitStack() as stack:
            tasks = {}
            for name, path in paths.items():
                opened = stack.enter_context(FeatureCache(path))
                tasks[name] = task_of(opened, self.config.target, cv=self.config.cv, seed=self.config.seed)
            notes = _unique([note for result in extracted.values() for note in result.notes])
            notes = _unique([*notes, *(note for task in tasks.values() for note in task.notes)])
            refuse_strict(notes, self.strict)
            candidates = self._try_heads(tasks, nodes, Records(work / "trials"))
            contenders = [
                Contender(_named(each, self), each.tier, each.tried.evidence) for each in candidates
            ]
            index, steps = choose(contenders)
            notes += [*_split_notes(tasks[self.backbones[0]]), _choice_note(contenders[index].what, steps)]
            rows = [each.to_json(i == index) for i, each in enumerate(candidates)]
            head = self._finish(candidates[index], model, rows, notes)
        files = write_tables(model, rows, candidates[index].task.metric)
        metrics = {split: values for split, values in head.metrics.items() if split in SPLITS}
        first = extracted[self.backbones[0]]
        return TrainResult(
            model=str(model),
            target=head.target,
            metric=candidates[index].task.metric,
            chosen=rows[index],
            candidates=rows,
            accuracy={split: each["accuracy"] for split, each in metrics.items() if "accuracy" in each},
            accuracy_ci95={
                split: list(each["accuracy_ci95"]) for split, each in metrics.items() if "accuracy" in each
            },
            metrics=metrics,
            rule=[str(step) for step in steps],
            samples={split: len(indices) for split, indices in candidates[index].task.rows.items()},
            images={"computed": first.computed, "reused": first.reused, "failed": first.failed},
            files={"card": str(model.with_suffix(".md")), **files, **{n: str(p) for n, p in paths.items()}},
            seconds=time.perf_counter() - started,
            notes=notes,
        )

    def _caches(self, work: Path, cache: str | Path | None) -> dict[str, Path]:
        """Return the path of each backbone's cache."""
        if cache is not None and Path(cache).suffix == ".h5":
            if len(self.backbones) > 1:
                raise BottleneckError(
                    f"--cache names one file, {cache}, for {len(self.backbones)} backbones.",
                    "Name a folder: there is one cache for each backbone.",
                )
            return {self.backbones[0]: Path(cache)}
        folder = work if cache is None else Path(cache)
        return {
            name: folder / default_cache(self.source, replace(self.extraction, backbone=name)).name
            for name in self.backbones
        }

    def _nodes(self, backbone: str) -> list[str]:
        """Return the nodes of every stage, the bottleneck first."""
        config = replace(self.extraction, backbone=backbone)
        named, preprocess = read_model_file(config)
        network = outline(
            named.backbone or DEFAULT_BACKBONE,
            in_channels=named.in_channels or 3,
            depth=named.depth,
            trust_code=named.trust_code,
        )
        sized = (preprocess or network.preprocess).override(config.image_size, config.crop)
        *earlier, top = stage_nodes(network, sized)
        return [top, *earlier]

    def _extract(self, backbone: str, path: Path, nodes: Sequence[str]) -> ExtractResult:
        """Extract all nodes in one pass."""
        path.parent.mkdir(parents=True, exist_ok=True)
        config = replace(self.extraction, backbone=backbone, nodes=tuple(nodes))
        return run_extraction(self.source, path, config, self.reporter)

    def _try_heads(
        self, tasks: dict[str, Task], nodes: dict[str, list[str]], records: Records
    ) -> list[Candidate]:
        """Fit and judge a head on every node of every backbone."""
        found = []
        for number, (backbone, task) in enumerate(tasks.items()):
            for node in nodes[backbone]:
                record = file_name(backbone, task.target.name, node)
                tried = try_head(task, node, records, record, self.reporter)
                tier = (HEAD if node == BOTTLENECK else NODE) * len(tasks) + number
                found.append(Candidate("head", tier, backbone, node, task, tried))
        return found

    def _finish(
        self, chosen: Candidate, model: Path, rows: list[dict[str, Any]], notes: list[Note]
    ) -> HeadArtifact:
        """Fit the chosen candidate on train and val, measure it, and write model and card."""
        head = final_head(chosen.task, chosen.node, chosen.tried.settings["C"], self.reporter)
        tried = {f"tried: {row['what']}, {row['backbone']}": f"{row['pooled']:.4f}" for row in rows}
        counts = {split: len(indices) for split, indices in chosen.task.rows.items()}
        settings = {
            "chosen": chosen.what,
            "fitted on": " and ".join(head.settings["fitted_on"]),
            "samples": ", ".join(f"{count:,} {split}" for split, count in counts.items()),
            "C": f"{head.C:g}",
            **tried,
        }
        arrays = statistics_of(chosen.task.cache)
        statistics = {name: torch.from_numpy(array) for name, array in arrays.items()}
        card = model_card(head, model.name, settings, tuple(notes))
        save_model(model, head, statistics, card)
        return head


def _model_path(source: Source, output: str | Path | None) -> Path:
    """Return `output`, or `models/SOURCE.safetensors` below the current folder."""
    if output is None:
        return Path(MODELS_FOLDER) / f"{source_name(source)}.safetensors"
    path = Path(output)
    if path.suffix != ".safetensors":
        raise BottleneckError(
            f"The model's file is {path}; expected a name that ends in .safetensors.",
            f"Write it to {path.with_name(path.name + '.safetensors')}.",
        )
    require_file_name(path)
    return path


def _named(candidate: Candidate, route: _Route) -> str:
    return candidate.what + (f" of {candidate.backbone}" if len(route.backbones) > 1 else "")


def _unique(notes: Sequence[Note]) -> list[Note]:
    """Return the notes without those that repeat an earlier message."""
    return list({note.message: note for note in notes}.values())


def _split_notes(task: Task) -> list[Note]:
    """Return what a reader must know of the splits that chose and measured."""
    notes = []
    if "val" not in task.rows:
        text = "There is no val split: cross-validation on train alone chose."
        notes.append(Note("chosen-without-val", text))
    else:
        text = (
            "The model has learnt from train and val; its accuracy on val is that of the same candidate "
            "fitted on train alone."
        )
        notes.append(Note("fitted-on-val", text))
    if "test" not in task.rows:
        text = (
            "There is no test split, so nothing confirms the accuracy that chose; set one aside with "
            "--test-fraction 0.2."
        )
        notes.append(Note("no-test", text))
    return notes


def _choice_note(what: str, steps: Sequence[Step]) -> Note:
    """Return how the choice came about."""
    told = " ".join(str(step) for step in steps)
    return Note("chosen", f"Chosen: {what}. {told}".strip(), details={"chosen": what})
