"""Which runs of a transfer study count: nothing is learnt from copies of a network that learnt nothing.

A seed whose base network of A or of B is no better than guessing is left out as a whole, and so is a run that
diverged. A copy that ends no better than guessing counts, since that may be what its layers are worth; it is
named, because its training may have failed instead.

What the runs of a transfer study show: curves, paired differences, and which effects exceed their noise.

Every run is paired with runs of its own seed: the same halves, target images and base network. Intervals are
95 % intervals of the mean over s seeds (Student's t); they cover the draw of halves, weights and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from bottleneck.errors import FitError
from bottleneck.studies.transfer_study.runs import RunResult
from bottleneck.studies.transfer_study.study_config import BASES, KINDS, Run

CONFIDENCE = 0.95
DIFFERENCES = {  # minuend − subtrahend, at the same n; a base has n = 0
    "base-BnB": ("baseB", "BnB"),
    "BnB-AnB": ("BnB", "AnB"),
    "BnB+-BnB": ("BnB+", "BnB"),
    "AnB+-base": ("AnB+", "baseB"),
    "BnB+-base": ("BnB+", "baseB"),
    "AnB+-BnB+": ("AnB+", "BnB+"),
    "AnB-random": ("AnB", "random"),
}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. values : one a seed. reach : half its 95 % interval, None from a single seed."""

    mean: float
    reach: float | None
    values: tuple[float, ...]

    @staticmethod
    def of(outcomes: Sequence[np.ndarray]) -> Estimate:
        """Mean and interval from one array a seed, of what each val image contributes.

        Seeds differ by halves, weights and images. The interval is never narrower than images alone would
        make it: a few seeds that happen to agree prove nothing.
        """
        values = np.array([each.mean() for each in outcomes])
        s = len(values)
        if s < 2:
            return Estimate(float(values.mean()), None, tuple(values.tolist()))
        between_seeds = values.var(ddof=1)
        by_images = np.mean([each.var() / len(each) for each in outcomes])
        error = np.sqrt(max(between_seeds, by_images) / s)
        reach = float(student.ppf((1 + CONFIDENCE) / 2, s - 1) * error)
        return Estimate(float(values.mean()), reach, tuple(values.tolist()))

    @property
    def sign(self) -> int:
        """+1 or −1 where the whole interval lies on that side of 0, else 0."""
        if self.reach is None or abs(self.mean) <= self.reach:
            return 0
        return 1 if self.mean > 0 else -1

    def __str__(self) -> str:
        reach = "" if self.reach is None else f" ± {100 * self.reach:.1f}"
        return f"{100 * self.mean:+.1f}{reach}"

    def to_json(self) -> dict[str, Any]:
        """`mean`, `low`, `high`, `values`."""
        low, high = (None, None) if self.reach is None else (self.mean - self.reach, self.mean + self.reach)
        return {"mean": self.mean, "low": low, "high": high, "values": self.values}


Outcomes = dict[int, np.ndarray]  # by seed: what each val image contributes


class Curves:
    """Outcomes by kind, n and share of A."""

    def __init__(self, results: Sequence[RunResult]) -> None:
        self._hits: dict[tuple[str, int, float], Outcomes] = {}
        for run in results:
            self._hits.setdefault((run.kind, run.n, run.share), {})[run.seed] = run.hits.astype(float)
        self.depths = sorted({n for _, n, _ in self._hits if n})
        self.shares = sorted({share for *_, share in self._hits})

    def hits(self, kind: str, n: int, share: float = 1.0) -> Outcomes:
        """1 for every val image that is right, else 0."""
        return self._hits.get((kind, 0 if kind in BASES else n, share), {})

    def accuracies(self, kind: str, n: int) -> list[float]:
        """One a seed."""
        return [float(each.mean()) for _, each in sorted(self.hits(kind, n).items())]

    def difference(self, name: str, n: int, share: float = 1.0) -> Outcomes:
        """One of `DIFFERENCES` at n, of the seeds that have both. The share is of the minuend's source."""
        minuend, subtrahend = DIFFERENCES[name]
        return _minus(self.hits(minuend, n, share), self.hits(subtrahend, n))

    def estimate(self, name: str, n: int, share: float = 1.0) -> Estimate | None:
        """One of `DIFFERENCES` at n; None before any seed has it."""
        found = self.difference(name, n, share)
        return Estimate.of(list(found.values())) if found else None

    def to_json(self) -> dict[str, Any]:
        """`curves` and `differences`: for each a list over n."""
        curves: dict[str, list] = {kind: [] for kind in KINDS}
        for (kind, n, share), hits in sorted(self._hits.items()):
            if share == 1.0:
                curves[kind].append({"n": n, **Estimate.of(list(hits.values())).to_json()})
        differences = {
            name: [
                {"n": n, **found.to_json()}
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

    A base trains once, a copy's layers twice: AnB+ is held against BnB+ too, which trained as long, and BnB+
    against the base, which says what a second training brings without any transfer.
    """
    depths = curves.depths
    middle = [n for n in depths if depths[0] < n < depths[-1]] or depths
    top = depths[-1]
    upper = depths[len(depths) // 2 :]
    mean = partial(_mean_effect, curves)
    effects = [
        mean("base-BnB", middle, "co-adaptation", "Frozen selffer layers lose accuracy in the middle"),
        _recovery(curves, middle, top),
        mean("BnB+-BnB", middle, "fine-tuned selffer", "Fine-tuning brings the selffer back"),
        mean("BnB-AnB", upper, "specificity", "Transferred frozen layers lose more, the higher"),
        mean("AnB+-base", depths, "gain", "Transfer with fine-tuning beats training on B alone"),
        mean("BnB+-base", depths, "second training", "A second training on B alone beats one"),
        mean(
            "AnB+-BnB+",
            depths,
            "gain over selffer",
            "Transfer with fine-tuning beats as long a training on B",
        ),
        mean("AnB-random", depths, "learnt filters", "Transferred layers beat random ones"),
        _dependence_on_size(curves, top),
    ]
    return [effect for effect in effects if effect is not None]


def _mean_effect(curves: Curves, name: str, depths: Sequence[int], key: str, finding: str) -> Effect | None:
    """A difference as a mean over `depths`."""
    outcomes = _mean([curves.difference(name, n) for n in depths])
    if not outcomes:
        return None
    found = {n: curves.estimate(name, n) for n in curves.depths}
    where = tuple(n for n, each in found.items() if each is not None and each.sign > 0)
    return _effect(key, f"{finding} ({name}, mean over n = {_span(depths)})", outcomes, where)


def _recovery(curves: Curves, middle: Sequence[int], top: int) -> Effect | None:
    """The top frozen selffer against the mean of the middle ones."""
    below = _mean([curves.hits("BnB", n) for n in middle if n != top])
    outcomes = _minus(curves.hits("BnB", top), below)
    finding = f"The selffer recovers towards the top (BnB at {top} less its mean over n = {_span(middle)})"
    return _effect("recovery", finding, outcomes) if outcomes else None


def _dependence_on_size(curves: Curves, top: int) -> Effect | None:
    """AnB+ at the top from all of A less AnB+ from the smallest share of it."""
    share = curves.shares[0]
    outcomes = _minus(curves.hits("AnB+", top), curves.hits("AnB+", top, share))
    finding = f"More of A's images transfer more (AnB+ at {top}, all of A less {share:.0%} of it)"
    return _effect("size of A", finding, outcomes) if share < 1 and outcomes else None


def _effect(key: str, finding: str, outcomes: Outcomes, where: tuple[int, ...] = ()) -> Effect:
    estimate = Estimate.of(list(outcomes.values()))
    return Effect(key, finding, estimate, where, estimate.sign)


def _minus(ours: Outcomes, theirs: Outcomes) -> Outcomes:
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def _mean(parts: Sequence[Outcomes]) -> Outcomes:
    """Image by image over several outcomes, of the seeds that all of them have."""
    seeds = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {seed: np.mean([part[seed] for part in parts], axis=0) for seed in sorted(seeds)}


def _span(depths: Sequence[int]) -> str:
    return f"{depths[0]} … {depths[-1]}" if len(depths) > 1 else str(depths[0])


def sound(results: Sequence[RunResult]) -> list[RunResult]:
    """The runs that count."""
    lost = {each.seed for each in _unlearnt(results) if each.share == 1}
    lost_shares = {(each.seed, each.share) for each in _unlearnt(results)}
    return [
        each
        for each in results
        if not (each.diverged or each.seed in lost or (each.seed, each.share) in lost_shares)
    ]


def may_follow(run: Run, usable: Sequence[RunResult]) -> bool:
    """Whether `run` is a base, or its seed has base networks, that of its share included, in `usable`."""
    have = {(each.kind, each.share) for each in usable if each.seed == run.seed}
    return run.n == 0 or {("baseA", 1.0), ("baseB", 1.0), ("baseA", run.share)} <= have


def complaints(results: Sequence[RunResult]) -> list[str]:
    """A sentence on every run that is left out, and on those that guess."""
    named = []
    for base in _unlearnt(results):
        lost = f"Seed {base.seed}"
        if base.share < 1:
            lost = f"Transfer from {base.share:.0%} of A in seed {base.seed}"
        named.append(f"{lost} is left out: base network {base.kind[-1]} did not learn ({_accuracy(base)}).")
    diverged = [each for each in results if each.n and each.diverged]
    guessing = [each for each in sound(results) if each.n and each.kind != "random" and not each.learnt]
    for title, runs in (
        ("Diverged and left out", diverged),
        ("No better than guessing, but counted", guessing),
    ):
        if runs:
            named.append(f"{title}: {', '.join(_name(each) for each in runs)}.")
    return named


def require_sound(results: Sequence[RunResult], folder: Path) -> None:
    """Raise FitError where no seed is left."""
    if sound(results):
        return
    base = next(each for each in _unlearnt(results) if each.share == 1)
    raise FitError(
        f"In none of the seeds did both base networks learn; the first that failed is {_name(base)} "
        f"({_accuracy(base)}).",
        f"Try a lower --lr, more --epochs or more images in another folder than {folder} (-o).",
    )


def _unlearnt(results: Sequence[RunResult]) -> list[RunResult]:
    return [each for each in results if each.n == 0 and not each.learnt]


def _accuracy(base: RunResult) -> str:
    if base.diverged:
        return "its training diverged"
    return f"{base.accuracy:.3f} on {base.val_images} val images, where guessing gives {1 / base.classes:.3f}"


def _name(each: RunResult) -> str:
    return Run(each.seed, each.kind, each.n, each.share).name
