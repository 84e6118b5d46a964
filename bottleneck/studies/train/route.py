"""The route of `train`: extract, try, choose, fit again, read test once.

    source ──► every stage's features, in one pass ──► heads on each ──► heads on the best, side by side
    ──► choice by pooled evidence ──► the chosen one again, on train and val ──► test, once
    ──► model, card, table of all that was tried

Everything is kept in a folder beside the model, `MODEL.work`: caches, finished trials, the choice. A run that
was killed goes on where it was. Where the samples have changed by no more than `KEEP` since the choice was
made, the choice is kept, and only its fit is done again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bottleneck.backbones.model_file import save_model
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.backbones.registry import outline
from bottleneck.data.source import Source, evenly
from bottleneck.errors import BottleneckError, FitError, Note, refuse_strict
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.extract import ExtractResult, run_extraction
from bottleneck.extraction.prepare import read_model_file
from bottleneck.extraction.settings import default_cache, source_name
from bottleneck.files import require_file_name
from bottleneck.fitting.head_files import file_name
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.names import DEFAULT_BACKBONE, SPLITS, nodes_in
from bottleneck.progress import Reporter
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import fingerprint
from bottleneck.studies.study_config import TrainConfig
from bottleneck.studies.train.budget import (
    Clock,
    ExtractionCost,
    TrainPlan,
    extraction_cost,
    fit_seconds,
    within_time,
)
from bottleneck.studies.train.candidates import (
    FINETUNED,
    HEAD,
    NODE,
    Candidate,
    combinations,
    kind_of,
    width,
)
from bottleneck.studies.train.result import TrainResult, write_tables
from bottleneck.training.inputs import statistics_of
from bottleneck.training.results import model_card
from bottleneck.trials.evidence import Step, choose
from bottleneck.trials.finetuning import Tuning, final_network, try_finetuning
from bottleneck.trials.heads import final_head, try_head
from bottleneck.trials.task import Records, Task, stage_nodes, task_of

MODELS_FOLDER = "models"
CHOICE = "choice"
LEAST_TUNING = 30.0  # seconds that fine-tuning may take however short the rest was
TUNE_FROM = 50  # train samples a class; with fewer, a tuned block seldom beats the head
TUNE_ABOVE = 0.03  # share of samples that the best head is wrong on
KEEP = 0.25  # share of samples that may change before the choice is made anew
FINAL = 1.5  # the final fit, with reading and writing, in fits of the chosen candidate


@dataclass(frozen=True)
class Route:
    """One run of `train`, or its plan."""

    source: Source
    output: str | Path | None
    backbones: tuple[str, ...]
    config: TrainConfig
    extraction: ExtractConfig
    cache: str | Path | None
    strict: bool
    reporter: Reporter

    def run(self, started: float) -> TrainResult:
        """Do everything, and write model, card and tables."""
        refuse_strict(self.source.notes, self.strict)
        clock, notes = Clock(started, self.config.minutes), list[Note]()
        nodes = {name: self._nodes(name) for name in self.backbones}
        source = self.source
        if self.config.minutes is not None:
            costs = [self._cost(name, nodes[name]) for name in self.backbones]
            source, notes = self._limited(costs, self.config.minutes - clock.elapsed / 60)
            refuse_strict(notes, self.strict)
            for note in notes:
                self.reporter.tell(f"Note: {note}")
        extracted = {name: self._extract(source, name, nodes[name]) for name in self.backbones}
        for result in extracted.values():
            result.require_rows()
            notes += result.notes
            if result.computed:
                clock.per_image = max(clock.per_image, result.seconds / result.computed)
        with ExitStack() as stack:
            tasks = {name: self._task(stack.enter_context(FeatureCache(self.paths[name]))) for name in nodes}
            notes += [note for task in tasks.values() for note in task.notes]
            refuse_strict(notes, self.strict)
            candidates, told = self._try(tasks, nodes, clock)
            refuse_strict(told, self.strict)
            several = len(self.backbones) > 1
            if not any(note.code == "choice-kept" for note in told):
                best, _ = choose([each.contender(several) for each in candidates])
                tuned, reason = self._tune(candidates, candidates[best], clock)
                candidates += tuned
                told += reason
            index, steps = choose([each.contender(several) for each in candidates])
            chosen = candidates[index]
            self._keep(chosen, len(candidates))
            notes += [*told, *_split_notes(chosen.task), _choice_note(chosen, steps)]
            notes = list({note.message: note for note in notes}.values())
            rows = [each.to_json(i == index) for i, each in enumerate(candidates)]
            head = self._finish(chosen, rows, notes)
        files = write_tables(self.model, rows, chosen.task.metric)
        return self._result(head, chosen, rows, steps, extracted, files, notes, started)

    def plan(self) -> TrainPlan:
        """Say what would be done. Nothing is written."""
        refuse_strict(self.source.notes, self.strict)
        nodes = {name: self._nodes(name) for name in self.backbones}
        costs = [self._cost(name, nodes[name]) for name in self.backbones]
        source, notes = within_time(self.source, costs, self.config.minutes)
        samples, target = source.samples, next(iter(source.samples.targets.values()), None)
        if self.config.target is not None:
            target = source.samples.targets.get(self.config.target)
        K = 1 if target is None else len(target.class_names)
        n, M = int((samples.split != "test").sum()), samples.image.shape[1]
        share = len(source.samples) / max(1, len(self.source.samples))
        widths = [
            [int(np.prod(cost.nodes[node])) for node in nodes[cost.backbone] if node in cost.nodes]
            for cost in costs
        ]
        sizes = [size for each in widths for size in each] + [sum(each) for each in widths]
        fits = [fit_seconds(n, M * size, K) for size in sizes]
        return TrainPlan(
            model=str(self.model),
            extraction=[
                replace(
                    cost,
                    images=round(cost.images * share),
                    seconds=cost.seconds * share,
                    bytes=round(cost.bytes * share),
                )
                for cost in costs
            ],
            heads=sum(len(each) for each in widths),
            combinations=4 * len(costs),
            head_seconds=sum(fits) + FINAL * max(fits, default=0.0),
            finetuning=False,
            samples=len(source.samples),
            samples_of=len(self.source.samples),
            minutes=self.config.minutes,
            notes=[*source.notes, *notes],
        )

    # ------------------------------------------------------------ where everything is

    @cached_property
    def model(self) -> Path:
        """The model's file: `output`, or `models/SOURCE.safetensors` below the current folder."""
        if self.output is None:
            return Path(MODELS_FOLDER) / f"{source_name(self.source)}.safetensors"
        path = Path(self.output)
        if path.suffix != ".safetensors":
            raise BottleneckError(
                f"The model's file is {path}; expected a name that ends in .safetensors.",
                f"Write it to {path.with_name(path.name + '.safetensors')}.",
            )
        require_file_name(path)
        return path

    @cached_property
    def work(self) -> Path:
        """The folder of caches and trials."""
        return self.model.with_suffix(".work")

    @cached_property
    def paths(self) -> dict[str, Path]:
        """The cache of each backbone."""
        if self.cache is not None and Path(self.cache).suffix == ".h5":
            if len(self.backbones) > 1:
                raise BottleneckError(
                    f"--cache names one file, {self.cache}, for {len(self.backbones)} backbones.",
                    "Name a folder: there is one cache for each backbone.",
                )
            return {self.backbones[0]: Path(self.cache)}
        folder = self.work if self.cache is None else Path(self.cache)
        return {
            name: folder / default_cache(self.source, replace(self.extraction, backbone=name)).name
            for name in self.backbones
        }

    @cached_property
    def records(self) -> Records:
        """The finished trials."""
        return Records(self.work / "trials")

    # ------------------------------------------------------------ features

    def _nodes(self, backbone: str) -> list[str]:
        """Return the nodes of every stage, the bottleneck first, the others from the bottom up."""
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

    def _cost(self, backbone: str, nodes: Sequence[str]) -> ExtractionCost:
        config = replace(self.extraction, backbone=backbone)
        return extraction_cost(self.source, self.paths[backbone], config, nodes)

    def _limited(self, costs: Sequence[ExtractionCost], minutes: float) -> tuple[Source, list[Note]]:
        """Return the samples that can be extracted in time; a resumed run keeps to its first number."""
        location = {"source": self.source.location, "samples": len(self.source.samples)}
        inputs = fingerprint({**location, "settings": self._settings})
        if stored := self.records.read("samples", inputs):
            return evenly(self.source, stored[0]["samples"]), [Note(**stored[0]["note"])]
        source, notes = within_time(self.source, costs, minutes)
        if notes:
            values = {"samples": len(source.samples), "note": asdict(notes[0])}
            self.records.write("samples", inputs, values, {"none": np.zeros(1)})
        return source, notes

    def _extract(self, source: Source, backbone: str, nodes: Sequence[str]) -> ExtractResult:
        """Extract all nodes in one pass."""
        path = self.paths[backbone]
        path.parent.mkdir(parents=True, exist_ok=True)
        config = replace(self.extraction, backbone=backbone, nodes=tuple(nodes))
        return run_extraction(source, path, config, self.reporter)

    def _task(self, cache: FeatureCache) -> Task:
        return task_of(cache, self.config.target, cv=self.config.cv, seed=self.config.seed)

    # ------------------------------------------------------------ trials

    def _try(
        self, tasks: dict[str, Task], nodes: dict[str, list[str]], clock: Clock
    ) -> tuple[list[Candidate], list[Note]]:
        """Try the candidates that the time allows; all of them where no choice was made before."""
        kept = self._kept(tasks)
        if kept is not None:
            backbone, node, note = kept
            return [self._head(backbone, tasks[backbone], node, clock)], [note]
        found, skipped = list[Candidate](), list[str]()
        for backbone, task in tasks.items():
            single = list[Candidate]()
            for node in [nodes[backbone][0], *reversed(nodes[backbone][1:])]:
                self._within(clock, task, node, backbone, single, skipped)
            single.sort(key=lambda each: nodes[backbone].index(each.node))
            found += single
            for node in combinations(single):
                self._within(clock, task, node, backbone, found, skipped)
        notes = []
        if skipped:
            text = (
                f"{len(skipped)} candidates were left out to keep to the minutes: {'; '.join(skipped[:6])}."
            )
            notes.append(Note("candidates-left-out", text, True, {"left_out": skipped}))
        return found, notes

    def _within(
        self,
        clock: Clock,
        task: Task,
        node: str,
        backbone: str,
        found: list[Candidate],
        skipped: list[str],
    ) -> None:
        """Add the head on `node` to `found` where the time allows it and the final fit, else to `skipped`."""
        size = width(task, node)
        if found and not clock.allows(clock.fit(size) * (1 + FINAL)):
            skipped.append(f"head on {node}")
            return
        found.append(self._head(backbone, task, node, clock))

    def _head(self, backbone: str, task: Task, node: str, clock: Clock) -> Candidate:
        record = file_name(backbone, task.target.name, node)
        tried = try_head(task, node, self.records, record, self.reporter)
        clock.learn(width(task, node), tried.seconds)
        order, all_nodes = self.backbones.index(backbone), len(nodes_in(node))
        several = all_nodes > 1 and all_nodes == sum(not each.is_map for each in task.cache.nodes.values())
        what = f"head on all {all_nodes} nodes" if several else f"head on {node}"
        return Candidate(kind_of(node), backbone, order, node, task, tried, what)

    def _tune(
        self, candidates: Sequence[Candidate], best: Candidate, clock: Clock
    ) -> tuple[list[Candidate], list[Note]]:
        """Fine-tune one block below a head where it may pay, and say why not otherwise."""
        reason = self._not_tuned(candidates, best)
        if reason is not None:
            return [], [
                Note("not-finetuned", f"Nothing was fine-tuned: {reason}.", details={"reason": reason})
            ]
        heads = [each for each in candidates if each.backbone == best.backbone and each.kind in (HEAD, NODE)]
        start, _ = choose([each.contender(False) for each in heads])
        head, elapsed = heads[start], clock.elapsed
        load = LoadOptions(self.extraction.weights, self.extraction.trust_code)
        tuning = Tuning(head.node, 1, head.tried.settings["C"], load, self.config.seed)

        def allows(seconds: float) -> bool:
            """Without minutes, fine-tuning may take as long as everything before it."""
            if self.config.minutes is None and self.config.finetune == "auto":
                return clock.elapsed + seconds <= 2 * max(elapsed, LEAST_TUNING)
            return clock.allows(2 * seconds)  # the final network is trained once more

        if not allows(clock.per_image * len(head.task.cache.images)):
            reason = "there is no time to extract the map that it would be trained from"
            return [], [
                Note("not-finetuned", f"Nothing was fine-tuned: {reason}.", details={"reason": reason})
            ]
        name = file_name(best.backbone, head.task.target.name, head.node, "1")
        tried = try_finetuning(
            head.task, tuning, best.tried.evidence, self.records, name, allows, self.reporter
        )
        if isinstance(tried, str):
            return [], [Note("not-finetuned", f"Nothing was fine-tuned: {tried}.", details={"reason": tried})]
        what = f"one block tuned below the head on {head.node}"
        order = self.backbones.index(best.backbone)
        return [Candidate(FINETUNED, best.backbone, order, head.node, head.task, tried, what, tuning)], []

    def _not_tuned(self, candidates: Sequence[Candidate], best: Candidate) -> str | None:
        """Return why fine-tuning is not tried; None where it may pay.

        In "auto" it may pay where the best head leaves errors, and there are enough samples to learn blocks
        from: on few photographs a tuned block seldom beats the head.
        """
        task = best.task
        if self.config.finetune == "never":
            return "--finetune never"
        if task.target.kind != "class":
            text = (
                f"target {task.target.name!r} is a {task.target.kind} one, and blocks are tuned for classes"
            )
            if self.config.finetune == "always":
                raise FitError(f"--finetune always: {text}.", "Leave --finetune out.")
            return text
        if self.config.finetune == "always":
            return None
        per_class = len(task.rows["train"]) / len(task.target.class_names)
        if per_class < TUNE_FROM:
            return f"{per_class:.0f} train samples a class are fewer than {TUNE_FROM}"
        if 1 - best.tried.evidence.mean < TUNE_ABOVE:
            return f"the best head is wrong on less than {TUNE_ABOVE:.0%} of the samples"
        return None

    # ------------------------------------------------------------ the choice, kept while little changes

    @cached_property
    def _settings(self) -> str:
        """A fingerprint of what the user asked for."""
        asked = {**asdict(self.config), "backbones": self.backbones, "weights": self.extraction.weights}
        return fingerprint({"choice": 1, **asked})

    def _kept(self, tasks: dict[str, Task]) -> tuple[str, str, Note] | None:
        """Return backbone and node of an earlier choice, if the samples have changed, but by little."""
        stored = self.records.read(CHOICE, self._settings)
        if stored is None:
            return None
        values, arrays = stored
        backbone, node = values["backbone"], values["node"]
        if values["kind"] == FINETUNED:
            return None
        if backbone not in tasks or any(part not in tasks[backbone].cache.nodes for part in node.split("+")):
            return None
        before, now = arrays["samples"], _sample_digests(tasks[backbone])
        changed = len(np.setxor1d(before, now))
        if not 0 < changed <= KEEP * len(before):
            return None
        text = (
            f"The choice of an earlier run is kept, head on {node}: {changed:,} samples are new, gone or "
            f"changed, at most {KEEP:.0%} of {len(before):,}. Delete {self.work / 'trials'} to choose anew."
        )
        return backbone, node, Note("choice-kept", text, details={"changed": changed, "of": len(before)})

    def _keep(self, chosen: Candidate, tried: int) -> None:
        """Store the choice, with the samples that it was made on, unless it was kept itself."""
        if tried > 1:
            values = {"backbone": chosen.backbone, "node": chosen.node, "kind": chosen.kind}
            self.records.write(CHOICE, self._settings, values, {"samples": _sample_digests(chosen.task)})

    # ------------------------------------------------------------ the model

    def _finish(self, chosen: Candidate, rows: list[dict[str, Any]], notes: list[Note]) -> HeadArtifact:
        """Fit the chosen candidate on train and val, measure it, and write model and card."""
        if chosen.tuning is not None:
            head, state = final_network(
                chosen.task, chosen.tuning, chosen.tried, self.records.folder, self.reporter
            )
        else:
            head = final_head(chosen.task, chosen.node, chosen.tried, self.reporter)
            arrays = statistics_of(chosen.task.cache)
            state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tried = {f"tried: {row['what']}, {row['backbone']}": f"{row['pooled']:.4f}" for row in rows}
        counts = {split: len(indices) for split, indices in chosen.task.rows.items()}
        settings = {
            "chosen": chosen.what,
            "fitted on": " and ".join(head.settings["fitted_on"]),
            "samples": ", ".join(f"{count:,} {split}" for split, count in counts.items()),
            "C": "–" if head.C is None else f"{head.C:g}",
            **tried,
        }
        save_model(self.model, head, state, model_card(head, self.model.name, settings, tuple(notes)))
        return head

    def _result(
        self,
        head: HeadArtifact,
        chosen: Candidate,
        rows: list[dict[str, Any]],
        steps: Sequence[Step],
        extracted: dict[str, ExtractResult],
        files: dict[str, str],
        notes: list[Note],
        started: float,
    ) -> TrainResult:
        metrics = {split: values for split, values in head.metrics.items() if split in SPLITS}
        measured = {split: each for split, each in metrics.items() if "accuracy" in each}
        paths = {f"cache {name}": str(path) for name, path in self.paths.items()}
        return TrainResult(
            model=str(self.model),
            target=head.target,
            metric=chosen.task.metric,
            chosen=next(row for row in rows if row["chosen"]),
            candidates=rows,
            accuracy={split: each["accuracy"] for split, each in measured.items()},
            accuracy_ci95={split: list(each["accuracy_ci95"]) for split, each in measured.items()},
            metrics=metrics,
            rule=[str(step) for step in steps],
            samples={split: len(indices) for split, indices in chosen.task.rows.items()},
            images={
                name: sum(getattr(result, name) for result in extracted.values())
                for name in ("computed", "reused", "failed")
            },
            files={"card": str(self.model.with_suffix(".md")), **files, **paths},
            seconds=time.perf_counter() - started,
            notes=notes,
        )


def _sample_digests(task: Task) -> np.ndarray:
    """Return (n,) uint64, sorted: a digest of each judged sample's images, answer, split and group."""
    samples, names = task.samples, task.target.class_names
    images = task.cache.images.digest
    found = np.empty(len(task.judged), np.uint64)
    for number, row in enumerate(task.judged):
        value = task.target.values[row]
        answer = names[value] if task.target.kind == "class" else np.asarray(value).tobytes().hex()
        digest = hashlib.sha256(images[samples.image[row]].tobytes())
        digest.update(f"{answer}\0{samples.split[row]}".encode(errors="surrogatepass"))
        found[number] = int.from_bytes(digest.digest()[:8], "little")
    return np.sort(found)


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


def _choice_note(chosen: Candidate, steps: Sequence[Step]) -> Note:
    """Return how the choice came about."""
    told = " ".join(str(step) for step in steps)
    return Note("chosen", f"Chosen: {chosen.what}. {told}".strip(), details={"chosen": chosen.what})
