"""Test the selector on labels that exist: they are hidden and bought again, by it and at random.

Every sample is held aside in one of ten folds, and the heads are measured on it. For each fold the rest is
the pool. Several times a few samples of each class are drawn from it as a start; then the labels are doubled,
and doubled again, once by the selector and twice at random. All heads of a round are fitted side by side.

The gain of a fold is the selector's accuracy less the random one, averaged over its starts and rounds. The
interval is Student's over the folds, whose samples are different ones.

Shapes: n samples, d components, K classes, R runs (folds × starts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from bottleneck.errors import counted, verb
from bottleneck.heads.artifact import apply_link
from bottleneck.heads.config import SweepConfig
from bottleneck.heads.cross_validation import assign_folds
from bottleneck.heads.fit import MAX_C, DrawnHeads, draw_shots
from bottleneck.heads.row_blocks import Standardisation
from bottleneck.heads.solver.arrays import to_numpy
from bottleneck.progress import Reporter
from bottleneck.samples import ArrayRows, Target
from bottleneck.studies.suggest.selector import choose, directions, margins
from bottleneck.threads import WorkerPool

FOLDS, STARTS, ROUNDS = 10, 2, 2
START = 0.05  # of the labels, two of each class at least
RANDOM = 2  # purchases at random for one by the selector
FEWEST = 60  # labels
CONFIG = SweepConfig(standardize=False, tol=1e-3)
SELECTOR = "selector"


@dataclass(frozen=True)
class Backtest:
    """What the selector gained over random on labels that exist.

    done : whether there were enough. verdict : in words. helps : True or False where the interval excludes 0.
    random, selector : mean accuracy on samples held aside. gain, interval : their difference, 95 %.
    rounds : {labels, random, selector} after each. rows : labels used. seed : of folds, starts and draws.
    """

    done: bool
    verdict: str
    helps: bool | None = None
    random: float | None = None
    selector: float | None = None
    gain: float | None = None
    interval: tuple[float, float] | None = None
    rounds: tuple[dict[str, Any], ...] = ()
    rows: int = 0
    folds: int = FOLDS
    starts: int = STARTS
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def backtest(
    projected: np.ndarray,
    target: Target,
    C: float,
    temperature: float = 1.0,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    reporter: Reporter,
) -> Backtest:
    """Replay the selector against random purchases on n labelled samples.

    Parameters
    ----------
    projected : (n, d) components (`selector.Space`)
    target : class target, all labelled
    C, temperature : of the head on all n samples; a head on fewer has C · n / (its samples), at most 1 or C
    groups : (n,), samples of one group are in one fold
    """
    n, K = len(projected), len(target.class_names)
    start = max(2, round(START * n / K))
    units = n if groups is None else len(np.unique(groups))
    reason = _too_few(target, start, units)
    if reason:
        return Backtest(False, f"There was no backtest: {reason}.", rows=n, seed=seed)
    fold = assign_folds(target, FOLDS, groups, seed)
    runs = [number for number in range(FOLDS) for _ in range(STARTS)]
    drawn = []
    for run, number in enumerate(runs):
        pool = Target(target.name, "class", np.where(fold == number, -1, target.values), target.class_names)
        drawn.append(draw_shots(pool, start, 1, np.random.default_rng([seed, run]))[0])
    arms = [SELECTOR, *["random"] * RANDOM]
    draws = [np.stack(drawn) for _ in arms]
    accuracy: list[list[np.ndarray]] = []  # of each round and arm (R,)
    labels: list[int] = []
    with WorkerPool(CONFIG.device) as workers, reporter.step("Backtest", ROUNDS + 1, "rounds") as advance:
        standard = Standardisation.identity(projected.shape[1])
        heads = DrawnHeads(ArrayRows(projected), target, standard, workers, CONFIG)
        margin = _margins(_probabilities(heads, draws[0], C, temperature))
        unit = directions(projected)
        advance(1)
        for turn in range(ROUNDS):
            for arm, name in enumerate(arms):
                for run, number in enumerate(runs):
                    free = np.flatnonzero(~draws[arm][run] & (fold != number))
                    count = min(int(draws[arm][run].sum()), len(free))
                    if name == SELECTOR:
                        bought, _ = choose(margin[run, free], unit[free], count)
                    else:
                        bought = np.random.default_rng([seed, arm, turn, run]).permutation(len(free))[:count]
                    draws[arm][run, free[bought]] = True
            probabilities = [_probabilities(heads, each, C, temperature) for each in draws]
            accuracy.append([_accuracy(p, target.values, fold, runs) for p in probabilities])
            margin = _margins(probabilities[0])
            labels.append(int(draws[0].sum(axis=1).mean()))
            advance(1)
    return _judged(np.array(accuracy), labels, n, seed)


def _margins(probabilities: np.ndarray) -> np.ndarray:
    """Return the margins (R, n) of probabilities (R, n, K)."""
    return np.stack([margins(each) for each in probabilities])


def _too_few(target: Target, start: int, units: int) -> str:
    """Return why there is no backtest, or ""."""
    n, counts = len(target.values), np.bincount(target.values, minlength=len(target.class_names))
    needed = int(np.minimum(counts, start).sum()) * 2**ROUNDS / (0.8 * (1 - 1 / FOLDS))
    if units < FOLDS:
        groups = counted(units, "group of labelled samples is", "groups of labelled samples are")
        return f"{groups} too few for {FOLDS} folds"
    if n < max(FEWEST, needed):
        return (
            f"{counted(n, 'labelled sample')} of {counted(len(counts), 'class', 'classes')} "
            f"{verb(n)} too few to hide some and hold others aside"
        )
    return ""


def _probabilities(heads: DrawnHeads, draws: np.ndarray, C: float, temperature: float) -> np.ndarray:
    """Return (R, n, K) of the heads on `draws` (R, n)."""
    n = draws.shape[1]
    at = min(max(MAX_C, C), C * n / int(draws[0].sum()))
    parts = [to_numpy(logits).transpose(0, 2, 1) for _, _, logits in heads.logits(draws, at)]
    logits = np.concatenate(parts, axis=1)
    if logits.shape[2] == 1:
        logits = np.concatenate([-logits, logits], axis=2) / 2
    return np.stack([apply_link(each, "softmax", temperature) for each in logits])


def _accuracy(p: np.ndarray, codes: np.ndarray, fold: np.ndarray, runs: Sequence[int]) -> np.ndarray:
    """Return the accuracy (R,) of each run on its fold."""
    right = p.argmax(axis=2) == codes
    return np.array([right[run, fold == number].mean() for run, number in enumerate(runs)])


def _judged(accuracy: np.ndarray, labels: Sequence[int], n: int, seed: int) -> Backtest:
    """Compare the arms. accuracy : (rounds, arms, R)."""
    selector, random = accuracy[:, 0], accuracy[:, 1:].mean(axis=1)
    by_fold = (selector - random).mean(axis=0).reshape(FOLDS, STARTS).mean(axis=1)
    gain = float(by_fold.mean())
    half = float(stdtrit(FOLDS - 1, 0.975) * by_fold.std(ddof=1) / np.sqrt(FOLDS))
    low, high = gain - half, gain + half
    helps = True if low > 0 else False if high < 0 else None
    span = f"from {labels[0]:,} to {labels[-1]:,} of the {counted(n, 'label')}"
    figures = f"{100 * gain:+.1f} points of accuracy, 95 % interval {100 * low:+.1f} … {100 * high:+.1f}"
    verdict = {
        True: f"It would have helped here: {figures}, against labels bought at random, {span}.",
        False: f"It would have harmed here: {figures}, against labels bought at random, {span}. "
        "Label images at random instead.",
        None: f"A gain is not shown here: {figures}, against labels bought at random, {span}. "
        "Images drawn at random may serve as well.",
    }[helps]
    rounds = [
        {"labels": count, "random": float(r.mean()), "selector": float(s.mean())}
        for count, r, s in zip(labels, random, selector, strict=True)
    ]
    means = float(random.mean()), float(selector.mean())
    return Backtest(True, verdict, helps, *means, gain, (low, high), tuple(rounds), n, seed=seed)
