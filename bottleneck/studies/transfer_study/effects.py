"""Results of a transfer study: which runs count, paired differences, and which of the paper's effects show.

Every run is paired with runs of its own seed: the same halves, target images and base networks. Intervals are
95 % intervals of the mean over s seeds (Student's t). They cover the draw of halves, weights and images.

Copies of a network that learnt nothing show nothing. If a base network of A or B is no better than guessing,
its seed is left out. So is a run that diverged. A copy that is no better than guessing counts, because its
layers may be worth that little, but it is reported, because its training may have failed instead.

The kinds of runs (base, BnB, AnB …) are explained in `protocol`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from bottleneck.errors import FitError, counted
from bottleneck.studies.transfer_study.protocol import BASES, KINDS, Run
from bottleneck.studies.transfer_study.runs import RunResult

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
VERDICTS = {1: "shows", -1: "does not show; the opposite does", 0: "does not show beyond the noise"}

Outcomes = dict[int, np.ndarray]  # by seed: the contribution of each val image to the mean


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds. values : one per seed. margin : half the 95 % interval, None for a single seed."""

    mean: float
    margin: float | None
    values: tuple[float, ...]

    @staticmethod
    def of(outcomes: Outcomes) -> Estimate:
        """Compute mean and interval.

        Seeds differ by halves, weights and images. The interval is never narrower than the val images alone
        would make it: a few seeds that agree by chance prove nothing.
        """
        values = np.array([each.mean() for each in outcomes.values()])
        s, mean = len(values), float(values.mean())
        if s < 2:
            return Estimate(mean, None, tuple(values.tolist()))
        between_seeds = values.var(ddof=1)
        by_images = np.mean([each.var() / len(each) for each in outcomes.values()])
        error = np.sqrt(max(between_seeds, by_images) / s)
        margin = float(student.ppf((1 + CONFIDENCE) / 2, s - 1) * error)
        return Estimate(mean, margin, tuple(values.tolist()))

    @property
    def sign(self) -> int:
        """+1 or −1 if the whole interval lies on that side of 0, else 0."""
        if self.margin is None or abs(self.mean) <= self.margin:
            return 0
        return 1 if self.mean > 0 else -1

    def __str__(self) -> str:
        margin = "" if self.margin is None else f" ± {100 * self.margin:.1f}"
        return f"{100 * self.mean:+.1f}{margin}"

    def to_json(self) -> dict[str, Any]:
        """Return `mean`, `low`, `high`, `values`."""
        low, high = (None, None)
        if self.margin is not None:
            low, high = self.mean - self.margin, self.mean + self.margin
        return {"mean": self.mean, "low": low, "high": high, "values": self.values}


class Curves:
    """Which val images the runs got right, by kind, n and share of A."""

    def __init__(self, results: Sequence[RunResult]) -> None:
        self._hits: dict[tuple[str, int, float], Outcomes] = {}
        for run in results:
            self._hits.setdefault((run.kind, run.n, run.share), {})[run.seed] = run.hits.astype(float)
        self.depths = sorted({n for _, n, _ in self._hits if n})
        self.shares = sorted({share for *_, share in self._hits})

    def hits(self, kind: str, n: int, share: float = 1.0) -> Outcomes:
        """Return 1 for every val image that is right, else 0."""
        return self._hits.get((kind, 0 if kind in BASES else n, share), {})

    def accuracies(self, kind: str, n: int) -> list[float]:
        """Return one accuracy per seed."""
        return [float(each.mean()) for _, each in sorted(self.hits(kind, n).items())]

    def difference(self, name: str, n: int, share: float = 1.0) -> Outcomes:
        """Return one of `DIFFERENCES` at n, for the seeds that have both runs. share : of the minuend."""
        minuend, subtrahend = DIFFERENCES[name]
        return _minus(self.hits(minuend, n, share), self.hits(subtrahend, n))

    def estimate(self, name: str, n: int, share: float = 1.0) -> Estimate | None:
        """Estimate one of `DIFFERENCES` at n; None if no seed has it."""
        outcomes = self.difference(name, n, share)
        return Estimate.of(outcomes) if outcomes else None

    def estimates(self, name: str) -> dict[int, Estimate]:
        """Estimate one of `DIFFERENCES` at each n that has it."""
        return {n: each for n in self.depths if (each := self.estimate(name, n)) is not None}

    def to_json(self) -> dict[str, Any]:
        """Return `curves` and `differences`: for each a list over n."""
        curves: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for (kind, n, share), hits in sorted(self._hits.items()):
            if share == 1.0:
                curves[kind].append({"n": n, **Estimate.of(hits).to_json()})
        differences = {
            name: [{"n": n, **each.to_json()} for n, each in self.estimates(name).items()]
            for name in DIFFERENCES
        }
        return {"curves": curves, "differences": differences}


@dataclass(frozen=True)
class Effect:
    """One of the paper's findings, tested here.

    key : short name. finding : what the paper found. estimate : in accuracy.
    where : n at which it shows alone, by intervals that are not corrected for their number.
    """

    key: str
    finding: str
    estimate: Estimate
    where: tuple[int, ...] = ()

    @property
    def shown(self) -> int:
        """+1 it shows, −1 the opposite shows, 0 neither exceeds the noise."""
        return self.estimate.sign

    @property
    def verdict(self) -> str:
        """A sentence with the estimate."""
        where = f"; by itself at n = {', '.join(map(str, self.where))}" if self.where else ""
        return f"{self.finding}: {VERDICTS[self.shown]} ({self.estimate} points{where})."


def find_effects(curves: Curves) -> list[Effect]:
    """Test the paper's findings, each by one number fixed beforehand: a mean over layers, paired by seed.

    A base is trained once, the layers of a copy twice. AnB+ is therefore also compared with BnB+, which was
    trained as long; and BnB+ with the base, which is the gain from a second training without any transfer.
    """
    depths = curves.depths
    top, upper = depths[-1], depths[len(depths) // 2 :]
    middle = [n for n in depths if depths[0] < n < top] or depths
    means = [
        (
            "base-BnB",
            middle,
            "co-adaptation",
            "Frozen selffer layers lose accuracy in the middle",
        ),
        ("BnB+-BnB", middle, "fine-tuned selffer", "Fine-tuning brings the selffer back"),
        ("BnB-AnB", upper, "specificity", "Transferred frozen layers lose more, the higher"),
        ("AnB+-base", depths, "gain", "Transfer with fine-tuning beats training on B alone"),
        ("BnB+-base", depths, "second training", "A second training on B alone beats one"),
        ("AnB+-BnB+", depths, "gain over selffer", "Transfer with fine-tuning beats as long a training on B"),
        ("AnB-random", depths, "learnt filters", "Transferred layers beat random ones"),
    ]
    effects = [_mean_effect(curves, *each) for each in means]
    effects.insert(1, _recovery(curves, middle, top))
    effects.append(_dependence_on_size(curves, top))
    return [effect for effect in effects if effect is not None]


def _mean_effect(curves: Curves, name: str, depths: Sequence[int], key: str, finding: str) -> Effect | None:
    """A difference as a mean over `depths`."""
    outcomes = _mean([curves.difference(name, n) for n in depths])
    if not outcomes:
        return None
    where = tuple(n for n, each in curves.estimates(name).items() if each.sign > 0)
    return Effect(key, f"{finding} ({name}, mean over n = {_span(depths)})", Estimate.of(outcomes), where)


def _recovery(curves: Curves, middle: Sequence[int], top: int) -> Effect | None:
    """The top frozen selffer against the mean of the middle ones."""
    below = _mean([curves.hits("BnB", n) for n in middle if n != top])
    outcomes = _minus(curves.hits("BnB", top), below)
    finding = f"The selffer recovers towards the top (BnB at {top} less its mean over n = {_span(middle)})"
    return Effect("recovery", finding, Estimate.of(outcomes)) if outcomes else None


def _dependence_on_size(curves: Curves, top: int) -> Effect | None:
    """AnB+ at the top from all of A less AnB+ from the smallest share of it."""
    share = curves.shares[0]
    outcomes = _minus(curves.hits("AnB+", top), curves.hits("AnB+", top, share))
    finding = f"More of A's images transfer more (AnB+ at {top}, all of A less {share:.0%} of it)"
    return Effect("size of A", finding, Estimate.of(outcomes)) if share < 1 and outcomes else None


def _minus(minuend: Outcomes, subtrahend: Outcomes) -> Outcomes:
    seeds = sorted(minuend.keys() & subtrahend.keys())
    return {seed: minuend[seed] - subtrahend[seed] for seed in seeds}


def _mean(parts: Sequence[Outcomes]) -> Outcomes:
    """Image by image over several outcomes, for the seeds that all of them have."""
    seeds = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {seed: np.mean([part[seed] for part in parts], axis=0) for seed in sorted(seeds)}


def _span(depths: Sequence[int]) -> str:
    return f"{depths[0]} … {depths[-1]}" if len(depths) > 1 else str(depths[0])


def valid_runs(results: Sequence[RunResult]) -> list[RunResult]:
    """Return the runs that count."""
    lost = {(base.seed, base.share) for base in _failed_bases(results)}
    return [run for run in results if not (run.diverged or lost & {(run.seed, 1.0), (run.seed, run.share)})]


def can_train(run: Run, valid: Sequence[RunResult]) -> bool:
    """Whether `run` is a base, or the base networks of its seed and share are in `valid`."""
    present = {(each.kind, each.share) for each in valid if each.seed == run.seed}
    return run.n == 0 or {("baseA", 1.0), ("baseB", 1.0), ("baseA", run.share)} <= present


def complaints(results: Sequence[RunResult]) -> list[str]:
    """Return a sentence on every run that is left out, and on those that are no better than guessing."""
    sentences = []
    for base in _failed_bases(results):
        lost = f"Seed {base.seed}"
        if base.share < 1:
            lost = f"Transfer from {base.share:.0%} of A in seed {base.seed}"
        sentences.append(
            f"{lost} is left out: base network {base.kind[-1]} did not learn ({_accuracy(base)})."
        )
    diverged = [run for run in results if run.n and run.diverged]
    guessing = [run for run in valid_runs(results) if run.n and run.kind != "random" and not run.learnt]
    for title, runs in (
        ("Diverged and left out", diverged),
        ("No better than guessing, but counted", guessing),
    ):
        if runs:
            sentences.append(f"{title}: {', '.join(run.name for run in runs)}.")
    return sentences


def require_valid(results: Sequence[RunResult], folder: Path) -> None:
    """Raise FitError if no seed is left."""
    if valid_runs(results):
        return
    base = next(each for each in _failed_bases(results) if each.share == 1)
    raise FitError(
        f"In none of the seeds did both base networks learn; the first that failed is {base.name} "
        f"({_accuracy(base)}).",
        f"Try a lower --lr, more --epochs or more images in another folder than {folder} (-o).",
    )


def _failed_bases(results: Sequence[RunResult]) -> list[RunResult]:
    return [run for run in results if run.n == 0 and not run.learnt]


def _accuracy(base: RunResult) -> str:
    if base.diverged:
        return "its training diverged"
    return (
        f"{base.accuracy:.3f} on {counted(base.val_images, 'val image')}, where guessing gives "
        f"{1 / base.classes:.3f}"
    )
