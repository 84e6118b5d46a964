"""What the runs of a transfer study show: curves, paired differences, and which effects exceed their noise.

Every run is paired with runs of its own seed: the same halves, target images and base network. Intervals are
95 % intervals of the mean over seeds (Student's t); they cover the draw of halves, of weights and of images.

Shapes: s seeds, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from bottleneck.studies.study_plan import KINDS
from bottleneck.studies.study_runs import RunResult

CONFIDENCE = 0.95
DIFFERENCES = {  # minuend − subtrahend, at the same n; a base has n = 0
    "base-BnB": ("baseB", "BnB"),
    "BnB-AnB": ("BnB", "AnB"),
    "BnB+-BnB": ("BnB+", "BnB"),
    "AnB+-base": ("AnB+", "baseB"),
    "AnB+-BnB+": ("AnB+", "BnB+"),
    "AnB-random": ("AnB", "random"),
}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. values : one a seed. low, high : its 95 % interval, None from a single seed."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        """Mean and interval of `values`."""
        values = np.asarray(values, float)
        mean, s = float(values.mean()), len(values)
        if s < 2:
            return Estimate(mean, None, None, tuple(values.tolist()))
        reach = float(student.ppf((1 + CONFIDENCE) / 2, s - 1) * values.std(ddof=1) / np.sqrt(s))
        return Estimate(mean, mean - reach, mean + reach, tuple(values.tolist()))

    @property
    def sign(self) -> int:
        """+1 or −1 where the whole interval lies on that side of 0, else 0."""
        if self.low is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{100 * self.low:+.1f} … {100 * self.high:+.1f}]"
        return f"{100 * self.mean:+.1f}{interval}"


class Curves:
    """Accuracies by kind, n and share, the seeds in one order."""

    def __init__(self, results: Sequence[RunResult]) -> None:
        self._values: dict[tuple[str, int, float], dict[int, float]] = {}
        for run in results:
            self._values.setdefault((run.kind, run.n, run.share), {})[run.seed] = run.accuracy
        self.depths = sorted({n for _, n, _ in self._values if n})
        self.shares = sorted({share for *_, share in self._values})

    def values(self, kind: str, n: int, share: float = 1.0) -> dict[int, float]:
        """Accuracy by seed."""
        return self._values.get((kind, 0 if kind.startswith("base") else n, share), {})

    def difference(self, minuend: str, subtrahend: str, n: int, share: float = 1.0) -> dict[int, float]:
        """Paired difference by seed, of the seeds that have both. The share is of the minuend's source."""
        ours, theirs = self.values(minuend, n, share), self.values(subtrahend, n)
        return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}

    def estimate(self, name: str, n: int, share: float = 1.0) -> Estimate | None:
        """One of `DIFFERENCES` at n; None before any seed has it."""
        values = self.difference(*DIFFERENCES[name], n, share)
        return Estimate.of(list(values.values())) if values else None

    def to_json(self) -> dict[str, Any]:
        """`curves` and `differences`: for each a list over n."""
        curves: dict[str, list] = {kind: [] for kind in KINDS}
        for kind, n, share in sorted(self._values):
            if share == 1.0:
                curves[kind].append({"n": n, **asdict(Estimate.of(list(self.values(kind, n).values())))})
        differences = {
            name: [
                {"n": n, **asdict(found)}
                for n in self.depths
                if (found := self.estimate(name, n)) is not None
            ]
            for name in DIFFERENCES
        }
        return {"curves": curves, "differences": differences}


@dataclass(frozen=True)
class Effect:
    """One of the paper's findings, looked for here.

    key : short name. finding : what the paper says. estimate : in accuracy.
    where : n at which it shows by itself, by intervals that are not corrected for their number.
    shown : +1 it shows, −1 the opposite shows, 0 neither exceeds the noise.
    """

    key: str
    finding: str
    estimate: Estimate
    where: tuple[int, ...]
    shown: int

    @property
    def verdict(self) -> str:
        """A sentence with the estimate."""
        verb = {1: "shows", -1: "does not show; the opposite does", 0: "does not show beyond the noise"}[
            self.shown
        ]
        where = f"; by itself at n = {', '.join(map(str, self.where))}" if self.where else ""
        return f"{self.finding}: {verb} ({self.estimate} points{where})."


def find_effects(curves: Curves) -> list[Effect]:
    """The paper's interpretations, each as one number fixed beforehand: a mean over layers, paired by seed.

    A base trains once, a fine-tuned copy twice as long: AnB+ is held against BnB+ too, which trained as long.
    """
    depths = curves.depths
    middle = [n for n in depths if depths[0] < n < depths[-1]] or depths
    top = depths[-1:]
    upper = depths[len(depths) // 2 :]
    effects = [
        _mean_effect(
            curves, "co-adaptation", "Frozen selffer layers lose accuracy in the middle", "base-BnB", middle
        ),
        _recovery(curves, middle, top[0]),
        _mean_effect(curves, "fine-tuned selffer", "Fine-tuning brings the selffer back", "BnB+-BnB", middle),
        _mean_effect(
            curves, "specificity", "Transferred frozen layers lose more, the higher", "BnB-AnB", upper
        ),
        _mean_effect(
            curves, "gain", "Transfer with fine-tuning beats training on B alone", "AnB+-base", depths
        ),
        _mean_effect(
            curves,
            "gain over selffer",
            "Transfer with fine-tuning beats as long a training on B",
            "AnB+-BnB+",
            depths,
        ),
        _mean_effect(curves, "learnt filters", "Transferred layers beat random ones", "AnB-random", depths),
        *_dependence_on_size(curves, top[0]),
    ]
    return [effect for effect in effects if effect is not None]


def _mean_effect(curves: Curves, key: str, finding: str, name: str, depths: Sequence[int]) -> Effect | None:
    by_depth = [curves.difference(*DIFFERENCES[name], n) for n in depths]
    seeds = set.intersection(*(set(values) for values in by_depth))
    if not seeds:
        return None
    estimate = Estimate.of([np.mean([values[seed] for values in by_depth]) for seed in sorted(seeds)])
    found = {n: curves.estimate(name, n) for n in curves.depths}
    where = tuple(n for n, each in found.items() if each is not None and each.sign > 0)
    return Effect(key, f"{finding} ({name}, mean over n = {_span(depths)})", estimate, where, estimate.sign)


def _recovery(curves: Curves, middle: Sequence[int], top: int) -> Effect | None:
    """The top frozen selffer against the mean of the middle ones."""
    at_top = curves.values("BnB", top)
    by_depth = [curves.values("BnB", n) for n in middle if n != top]
    seeds = sorted(set(at_top).intersection(*(set(values) for values in by_depth))) if by_depth else []
    if not seeds:
        return None
    estimate = Estimate.of([at_top[seed] - np.mean([values[seed] for values in by_depth]) for seed in seeds])
    finding = f"The selffer recovers towards the top (BnB at {top} less its mean over n = {_span(middle)})"
    return Effect("recovery", finding, estimate, (), estimate.sign)


def _dependence_on_size(curves: Curves, top: int) -> list[Effect]:
    """The gain at the top with all of A less the gain with the smallest share of it."""
    share = curves.shares[0] if curves.shares else 1.0
    full, small = (curves.difference("AnB+", "baseB", top, each) for each in (1.0, share))
    seeds = sorted(full.keys() & small.keys())
    if share == 1.0 or not seeds:
        return []
    estimate = Estimate.of([full[seed] - small[seed] for seed in seeds])
    finding = f"More of A's images transfer more (AnB+ at {top}, all of A less {share:.0%} of it)"
    return [Effect("size of A", finding, estimate, (), estimate.sign)]


def _span(depths: Sequence[int]) -> str:
    return f"{depths[0]} … {depths[-1]}" if len(depths) > 1 else str(depths[0])
