"""How deep to unfreeze, from which start, and is transfer worth it: all tried on the user's own data.

    unfreeze 0, 1, 2, all × init head, random ─┐
    the small CNN from scratch, by depth ──────┴─ × shots × seeds ──► table, chosen on val, answers

Every run is kept in a file as it ends, so that a killed comparison goes on with the run that was cut.

Shapes: S samples, n of a split, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bottleneck.progress import Progress, silent
from bottleneck.training.bench import Bench, CompareConfig, CompareRun
from bottleneck.training.cost import duration
from bottleneck.training.run import run_config
from bottleneck.training.summary import Answer, Row, answers, choose, summarise


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
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck compare --json`."""
        parts = {name: [asdict(item) for item in getattr(self, name)] for name in ("runs", "rows", "answers")}
        return {**vars(self), **parts, "chosen": asdict(self.chosen)}


def compare(
    cache: str | Path,
    folder: str | Path | None = None,
    *,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Comparison:
    """Try what is to be compared, and choose on val.

    Killed and called again with the same arguments, it goes on with the runs that are not done.

    Parameters
    ----------
    cache : a feature cache with labels
    folder : where runs are kept; `compare/CACHE` by default
    progress, tell : hear of the runs, and of what maps will cost
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
    with Bench(path, config, folder, tell) as bench:
        trials = bench.trials()
        left = [trial for trial in trials if trial not in bench.done]
        tell(
            f"{len(left)} of {len(trials)} runs are to be done: at most {duration(bench.estimate(left))}, "
            "less where val stops improving. What is done is kept, should you stop it."
        )
        with progress("Comparing", total=len(trials), unit="runs") as advance:
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
