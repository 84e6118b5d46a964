"""How deep to unfreeze, from which start, and whether transfer is worth it: all tried on the user's own data.

    unfreeze 0, 1, 2, all × init head, random ─┐
    the small CNN from scratch, by depth ──────┴─ × shots × seeds ──► means, the choice on val, answers

Every run is written to a file as it ends, so that a comparison that was killed continues with the run that
was cut. Rows are compared sample by sample (`trials.evidence`): the simplest is chosen that no other one
beats on val by more than the noise of paired samples.

Shapes: n samples of a split.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import Note, counted, refuse_strict, reused_note, verb
from bottleneck.files import require_no_url
from bottleneck.heads.metrics import wilson_interval
from bottleneck.progress import SILENT, Reporter, duration
from bottleneck.records import config_from
from bottleneck.remote.path import path_of
from bottleneck.store.layout import cache_name
from bottleneck.studies.compare.runs import Trials
from bottleneck.studies.compare.stored_runs import CompareRun
from bottleneck.training.config import ALL, CompareConfig
from bottleneck.trials.evidence import Contender, Evidence, Step, choose, difference, mean_evidence

FROM_SCRATCH = 1000  # tiers above any number of blocks


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    accuracy : mean by split. interval : 95 %, of the mean accuracy on the split that is shown, for as many
    samples (Wilson 1927). spread : standard deviation over the seeds. seconds : mean of a run.
    blocks : that are trained, 0 of a head. evidence : on val and test, each sample's mean over the seeds.
    """

    name: str
    unfreeze: int | str
    init: str
    depth: int | None
    shots: int | str
    seeds: int
    accuracy: dict[str, float]
    interval: tuple[float, float]
    spread: float
    seconds: float
    blocks: int = 0
    evidence: Mapping[str, Evidence] = field(default_factory=dict, compare=False, repr=False)

    @property
    def tier(self) -> int:
        """A smaller one is simpler: a head, then few blocks, then networks from scratch."""
        return self.blocks + (FROM_SCRATCH if self.depth else 0)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the evidence."""
        return {name: value for name, value in vars(self).items() if name != "evidence"}


@dataclass(frozen=True)
class Answer:
    """A usual question, answered for these data."""

    question: str
    answer: str


@dataclass(frozen=True)
class Comparison:
    """All runs; rows : their means by what was tried; chosen : one of those with the most samples.

    rule : the comparisons on val that led to the choice, in their order.
    measured_on : the split that answers and pictures show; n : samples by split.
    notes : what a reader must know of the labels.
    """

    runs: tuple[CompareRun, ...]
    rows: tuple[Row, ...]
    chosen: Row
    answers: tuple[Answer, ...]
    measured_on: str
    n: dict[str, int]
    seconds: float
    folder: str
    notes: tuple[Note, ...] = ()
    rule: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck compare --json`."""
        parts = {name: [each.to_json() for each in getattr(self, name)] for name in ("runs", "rows", "notes")}
        answers = [asdict(answer) for answer in self.answers]
        return {**vars(self), **parts, "answers": answers, "chosen": self.chosen.to_json()}


def compare(
    cache: str | Path,
    folder: str | Path | None = None,
    *,
    unfreeze: Sequence[int | str] = CompareConfig.unfreeze,
    init: Sequence[str] = CompareConfig.init,
    scratch: Sequence[int] = CompareConfig.scratch,
    shots: Sequence[int | str] = CompareConfig.shots,
    seeds: int = CompareConfig.seeds,
    target: str | None = CompareConfig.target,
    node: str = CompareConfig.node,
    epochs: int | None = None,
    patience: int = CompareConfig.patience,
    batch_size: int = CompareConfig.batch_size,
    optimizer: str = CompareConfig.optimizer,
    lr: float | None = CompareConfig.lr,
    backbone_ratio: float = CompareConfig.backbone_ratio,
    decay: float = CompareConfig.decay,
    weight_decay: float = CompareConfig.weight_decay,
    warmup: float = CompareConfig.warmup,
    unfreeze_every: int = CompareConfig.unfreeze_every,
    clip: float = CompareConfig.clip,
    label_smoothing: float = CompareConfig.label_smoothing,
    val_fraction: float = CompareConfig.val_fraction,
    seed: int = CompareConfig.seed,
    memory: int = CompareConfig.memory,
    device: str = CompareConfig.device,
    precision: str = CompareConfig.precision,
    weights: str | None = CompareConfig.weights,
    trust_code: bool = CompareConfig.trust_code,
    labels: str | Path | None = CompareConfig.labels,
    group: str | None = CompareConfig.group,
    label_separator: str | None = CompareConfig.label_separator,
    classes: Sequence[str] = CompareConfig.classes,
    regression: Sequence[str] = CompareConfig.regression,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> Comparison:
    """Try what is to be compared, and choose on val what is better beyond its noise, else the simpler one.

    A comparison that was killed continues with the runs that are not done when it is called again.

    Parameters
    ----------
    cache : path of a feature cache with labels
    folder : where the runs are stored; `compare/CACHE` by default
    epochs : 20 by default, or as many as make 200 steps
    strict : refuse decisions that change what is learnt or measured (`errors.refuse_strict`)
    reporter : receives the progress, and what feature maps will cost

    The other parameters are the fields of `training.config.CompareConfig`.

    Raises
    ------
    FitError, BackboneError, CacheError
        As `finetune` and `scratch` raise them.
    StrictError
        `strict` is given and a note changes the result.
    """
    chosen_epochs = CompareConfig.epochs if epochs is None else epochs
    config = config_from(CompareConfig, locals(), epochs=chosen_epochs, extend=epochs is None)
    path = path_of(cache)
    kept = Path(folder) if folder else Path("compare") / cache_name(path)
    require_no_url(kept)
    return _compare(path, kept, config, strict, reporter)


def _compare(path: Path, folder: Path, config: CompareConfig, strict: bool, reporter: Reporter) -> Comparison:
    started = time.perf_counter()
    trials = Trials(path, config, folder, reporter)
    refuse_strict(trials.notes, strict, reporter.tell)
    with trials:
        planned = trials.trials()
        notes = trials.notes + trials.batch_notes(planned)
        refuse_strict(notes, strict)
        to_do = [trial for trial in planned if trial not in trials.done]
        reused = len(planned) - len(to_do)
        cost = duration(trials.estimate(to_do))
        reporter.tell(
            f"{len(to_do)} of {counted(len(planned), 'run')} {verb(len(to_do))} to be "
            f"done: at most {cost}, less where "
            "val stops improving. What is done is kept, should you stop it."
        )
        with reporter.step("Comparing", total=len(planned), unit="runs") as advance:
            for _ in trials.results(planned):
                advance(1)
        runs = tuple(trials.done[trial] for trial in planned)
    notes += _run_notes(runs, reused, folder)
    refuse_strict(notes, strict)
    n = trials.splits.counts()
    shown = "test" if "test" in n else "val"
    rows = summarise(runs, shown, n[shown])
    chosen, steps = choose_row(rows)
    return Comparison(
        runs=runs,
        rows=rows,
        chosen=chosen,
        answers=answers(rows, chosen, shown),
        measured_on=shown,
        n=n,
        seconds=time.perf_counter() - started,
        folder=str(folder),
        notes=tuple(notes),
        rule=tuple(map(str, steps)),
    )


def _run_notes(runs: Sequence[CompareRun], reused: int, folder: Path) -> list[Note]:
    """Return what a reader must know of the runs themselves."""
    notes = []
    if reused:
        notes.append(reused_note(reused, len(runs), folder))
    for text in dict.fromkeys(run.unread for run in runs if run.unread):
        count = sum(run.unread == text for run in runs)
        text = f"In {count} of {counted(len(runs), 'run')}, which are fed with images: {text}"
        notes.append(Note("images-unread", text, True, {"runs": count}))
    if diverged := sum(run.stopped == "diverged" for run in runs):
        text = f"The loss diverged in {diverged} of {counted(len(runs), 'run')}. Try a lower --lr."
        notes.append(Note("loss-diverged", text, True, {"runs": diverged}))
    return notes


def summarise(runs: Sequence[CompareRun], measured_on: str, n: int) -> tuple[Row, ...]:
    """Return means over seeds, in the order of the runs. n : samples of the split `measured_on`."""
    groups: dict[tuple[int | str, str, int | None, int | str], list[CompareRun]] = {}
    for run in runs:
        groups.setdefault((run.unfreeze, run.init, run.depth, run.shots), []).append(run)
    rows = []
    for (unfreeze, init, depth, shots), members in groups.items():
        means = {
            split: float(np.mean([run.accuracy[split] for run in members])) for split in members[0].accuracy
        }
        shown = [run.accuracy[measured_on] for run in members]
        judged = [len(run.evidence[measured_on].keys) for run in members if measured_on in run.evidence]
        least = min(judged, default=n)  # runs that are fed with images lack those that cannot be read
        rows.append(
            Row(
                name=_name(unfreeze, init, depth),
                unfreeze=unfreeze,
                init=init,
                depth=depth,
                shots=shots,
                seeds=len(members),
                accuracy=means,
                interval=wilson_interval(means[measured_on] * least, least),
                spread=float(np.std(shown)),
                seconds=float(np.mean([run.seconds for run in members])),
                blocks=members[0].blocks,
                evidence=_mean_evidence([run.evidence for run in members]),
            )
        )
    return tuple(rows)


def _mean_evidence(runs: Sequence[Mapping[str, Evidence]]) -> dict[str, Evidence]:
    """Return each sample's mean over the seeds, by split, of the samples that all runs could read."""
    return {
        split: mean_evidence([run[split] for run in runs])
        for split in runs[0]
        if all(split in run for run in runs)
    }


def choose_row(rows: Sequence[Row]) -> tuple[Row, list[Step]]:
    """Return the row that the rule of `trials.evidence` chooses on val among those with the most samples.

    All rows have evidence. The comparisons that led to the choice follow.
    """
    most = max(rows, key=_shots).shots
    candidates = [row for row in rows if row.shots == most]
    index, steps = choose([Contender(row.name, row.tier, row.evidence["val"]) for row in candidates])
    return candidates[index], steps


def answers(rows: Sequence[Row], chosen: Row, measured_on: str) -> tuple[Answer, ...]:
    """Answer the usual questions from the rows with the most samples, where both sides were tried."""
    by_name = {row.name: row for row in rows if row.shots == chosen.shots}
    head, block = _name(0, "head", None), _name(1, "head", None)
    questions = [
        ("Is fine-tuning worth it?", head, block),
        ("Is going deeper worth it?", head, chosen.name),
        ("One block or two?", block, _name(2, "head", None)),
        ("Does it matter to start from the head?", _name(1, "random", None), block),
    ]
    if chosen.depth or chosen.name in (head, block):
        del questions[1]
    pairs = [
        (question, by_name[first], by_name[second])
        for question, first, second in questions
        if first in by_name and second in by_name
    ]
    scratch = [row for row in by_name.values() if row.depth]
    transfer = [row for row in by_name.values() if not row.depth]
    if scratch and transfer:
        best = [max(part, key=lambda row: row.accuracy["val"]) for part in (scratch, transfer)]
        pairs.append(("Is transfer worth it with these data?", best[0], best[1]))
    return tuple(Answer(question, _versus(first, second, measured_on)) for question, first, second in pairs)


def _versus(first: Row, second: Row, split: str) -> str:
    """Both figures, and whether their difference exceeds the noise of the paired samples and the seeds."""
    paired = difference(second.evidence[split], first.evidence[split])
    seeds = first.spread**2 / first.seeds + second.spread**2 / second.seeds
    noise = 1.96 * float(np.sqrt(paired.error**2 + seeds))
    figures = (
        f"{second.name} {second.accuracy[split]:.4f}, {first.name} {first.accuracy[split]:.4f} on {split} "
        f"({paired.gain:+.4f} ± {noise:.4f}; {second.seconds:.0f} s against {first.seconds:.0f} s)"
    )
    if abs(paired.gain) <= noise:
        return f"These data cannot tell: {figures}."
    return f"{second.name if paired.gain > 0 else first.name} is better: {figures}."


def _name(unfreeze: int | str, init: str, depth: int | None) -> str:
    """The name of a row in tables and answers."""
    if depth:
        return f"scratch, {counted(depth, 'block')}"
    if unfreeze == 0:
        return "head only"
    blocks = {1: "1 block", ALL: "all blocks"}.get(unfreeze, f"{unfreeze} blocks")
    if isinstance(unfreeze, str) and unfreeze != ALL:
        blocks = f"from {unfreeze}"
    return f"{blocks}, {'from the head' if init == 'head' else 'random last layer'}"


def _shots(row: Row) -> float:
    return float("inf") if row.shots == ALL else float(row.shots)
