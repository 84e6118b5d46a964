"""How deep to unfreeze, from which start, and is transfer worth it: all tried on the user's own data.

    unfreeze 0, 1, 2, all × init head, random ─┐
    the small CNN from scratch, by depth ──────┴─ × shots × seeds ──► table, chosen on val, answers

Every run is kept in a file as it ends, so that a killed comparison goes on with the run that was cut.

Shapes: S samples, n of a split, C classes.

What many runs say together: means with intervals, the choice on val, and answers in words.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.errors import Note
from bottleneck.heads.metrics import wilson_interval
from bottleneck.progress import SILENT, Reporter
from bottleneck.training.config import run_config
from bottleneck.training.timing import duration
from bottleneck.training.trials import Bench, CompareConfig, CompareRun

if TYPE_CHECKING:
    from bottleneck.training.trials import CompareRun


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    accuracy : mean by split. interval : 95 %, of the mean accuracy on the split that is shown, for as many
    samples (Wilson 1927). spread : standard deviation over the seeds. seconds : mean of a run.
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


@dataclass(frozen=True)
class Answer:
    """A question that people ask, answered for these data."""

    question: str
    answer: str


def summarise(runs: Sequence[CompareRun], measured_on: str, n: int) -> tuple[Row, ...]:
    """Means over seeds, in the order in which they were tried. n : samples of the split `measured_on`."""
    groups: dict[tuple, list[CompareRun]] = {}
    for run in runs:
        groups.setdefault((run.unfreeze, run.init, run.depth, run.shots), []).append(run)
    rows = []
    for (unfreeze, init, depth, shots), members in groups.items():
        means = {
            split: float(np.mean([run.accuracy[split] for run in members])) for split in members[0].accuracy
        }
        shown = [run.accuracy[measured_on] for run in members]
        rows.append(
            Row(
                name=_name(unfreeze, init, depth),
                unfreeze=unfreeze,
                init=init,
                depth=depth,
                shots=shots,
                seeds=len(members),
                accuracy=means,
                interval=wilson_interval(means[measured_on] * n, n),
                spread=float(np.std(shown)),
                seconds=float(np.mean([run.seconds for run in members])),
            )
        )
    return tuple(rows)


def choose(rows: Sequence[Row]) -> Row:
    """The most accurate on val with the most samples; among equals the one that trains least."""
    most = max(rows, key=_shots).shots
    candidates = [row for row in rows if row.shots == most]
    return max(candidates, key=lambda row: (row.accuracy["val"], -row.seconds))


def answers(rows: Sequence[Row], chosen: Row, measured_on: str, n: int) -> tuple[Answer, ...]:
    """What the rows with the most samples say to the usual questions; none where they were not tried."""
    there = {row.name: row for row in rows if row.shots == chosen.shots}
    found = []
    head, block = _name(0, "head", None), _name(1, "head", None)
    is_deeper = not chosen.depth and chosen.name not in (head, block)
    deeper = [("Is going deeper worth it?", head, chosen.name)] if is_deeper else []
    for question, first, second in (
        ("Is fine-tuning worth it?", head, block),
        *deeper,
        ("One block or two?", block, _name(2, "head", None)),
        ("Does it matter to start from the head?", _name(1, "random", None), block),
    ):
        if first in there and second in there:
            found.append(Answer(question, _versus(there[first], there[second], measured_on, n)))
    scratch = [row for row in there.values() if row.depth]
    transfer = [row for row in there.values() if not row.depth]
    if scratch and transfer:
        best = [max(part, key=lambda row: row.accuracy["val"]) for part in (scratch, transfer)]
        found.append(Answer("Is transfer worth it with these data?", _versus(*best, measured_on, n)))
    return tuple(found)


def _versus(first: Row, second: Row, split: str, n: int) -> str:
    """Both figures and whether their difference is beyond what so few samples and seeds can tell."""
    difference = second.accuracy[split] - first.accuracy[split]
    p = (first.accuracy[split] + second.accuracy[split]) / 2
    seeds = first.spread**2 / first.seeds + second.spread**2 / second.seeds
    noise = 1.96 * float(np.sqrt(2 * p * (1 - p) / n + seeds))
    figures = (
        f"{second.name} {second.accuracy[split]:.4f}, {first.name} {first.accuracy[split]:.4f} on {split} "
        f"({difference:+.4f} ± {noise:.4f}; {second.seconds:.0f} s against {first.seconds:.0f} s)"
    )
    if abs(difference) <= noise:
        return f"These data cannot tell: {figures}."
    return f"{second.name if difference > 0 else first.name} is better: {figures}."


def _name(unfreeze: int | str, init: str, depth: int | None) -> str:
    """What people call it."""
    if depth:
        return f"scratch, {depth} blocks"
    if unfreeze == 0:
        return "head only"
    blocks = {1: "1 block", "all": "all blocks"}.get(unfreeze, f"{unfreeze} blocks")
    if isinstance(unfreeze, str) and unfreeze != "all":
        blocks = f"from {unfreeze}"
    return f"{blocks}, {'from the head' if init == 'head' else 'random last layer'}"


def _shots(row: Row) -> float:
    return float("inf") if row.shots == "all" else float(row.shots)


@dataclass(frozen=True)
class Comparison:
    """All runs; rows : their means by what was tried; chosen : the row that val prefers, with all samples.

    measured_on : the split that answers and pictures show; n : its samples.
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
    notes: tuple[str | Note, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck compare --json`."""
        parts = {name: [asdict(item) for item in getattr(self, name)] for name in ("runs", "rows", "answers")}
        return {**vars(self), **parts, "chosen": asdict(self.chosen)}


def compare(
    cache: str | Path,
    folder: str | Path | None = None,
    *,
    reporter: Reporter = SILENT,
    **options: Any,
) -> Comparison:
    """Try what is to be compared, and choose on val.

    Killed and called again with the same arguments, it goes on with the runs that are not done.

    Parameters
    ----------
    cache : a feature cache with labels
    folder : where runs are kept; `compare/CACHE` by default
    reporter, tell : hear of the runs, and of what maps will cost
    options : fields of `CompareConfig`, `RunConfig` and `OptimConfig`

    Raises
    ------
    FitError, BackboneError, CacheError
        As `finetune` and `scratch` raise them.
    """
    started = time.perf_counter()
    extend, run = options.get("epochs") is None, run_config(options)
    chosen_options = {name: value for name, value in options.items() if value is not None}
    config = CompareConfig(**chosen_options, extend=extend, run=run)
    path = Path(cache)
    folder = Path(folder) if folder else Path("compare") / path.stem
    with Bench(path, config, folder, reporter) as bench:
        trials = bench.trials()
        left = [trial for trial in trials if trial not in bench.done]
        reporter.tell(
            f"{len(left)} of {len(trials)} runs are to be done: at most {duration(bench.estimate(left))}, "
            "less where val stops improving. What is done is kept, should you stop it."
        )
        with reporter.step("Comparing", total=len(trials), unit="runs") as advance:
            for _ in bench.results(trials):
                advance(1)
        runs = tuple(bench.done[trial] for trial in trials)
        n = {split: len(rows) for split, rows in bench.sets.rows.items()}
    shown = "test" if "test" in n else "val"
    rows = summarise(runs, shown, n[shown])
    chosen = choose(rows)
    return Comparison(
        runs=runs,
        rows=rows,
        chosen=chosen,
        answers=answers(rows, chosen, shown, n[shown]),
        measured_on=shown,
        n=n,
        seconds=time.perf_counter() - started,
        folder=str(folder),
        notes=tuple(bench.notes),
    )
