"""What speaks for a candidate, sample by sample, and the rule by which one candidate is chosen.

Evidence pools the samples that a candidate was not fitted on: those of train, each judged by the model of the
fold that held it out, and those of val. Two candidates are compared on the samples that both have, in pairs:
d is the mean difference of their scores, s the standard error of d.

The rule. Candidates are ordered by tier, the simplest first. In each tier the best on its pooled evidence is
compared with the one that is chosen so far, and replaces it if d > NOISE · s and d > 1 / n, that is, if it is
better by more than the noise of n paired samples, and by more than one of them. (The rule of one standard
error, Breiman et al. 1984, section 3.4.3, on paired differences, with half of it: see `docs/DECISIONS.md`.)

Shapes: n samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NOISE = 0.5  # standard errors of the paired difference
ROUNDING = 1e-9  # one sample more has a gain and an error of 1 / n


@dataclass(frozen=True)
class Evidence:
    """How each of n samples was judged by a model that was not fitted on it.

    keys : (n,) object array of str, the samples, each once.
    score : (n,) float64; 1 or 0 for a class, the share of right labels, or 1 − d²/variance of a regression.
    loss : (n,) float64, log loss or squared error.
    """

    keys: np.ndarray
    score: np.ndarray
    loss: np.ndarray

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(self.score.mean())

    def among(self, other: Evidence) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the samples that both have, in `self` and in `other`."""
        if np.array_equal(self.keys, other.keys):
            both = np.arange(len(self.keys))
            return both, both
        _, ours, theirs = np.intersect1d(
            self.keys.astype(str), other.keys.astype(str), assume_unique=True, return_indices=True
        )
        return ours, theirs


def mean_evidence(parts: Sequence[Evidence]) -> Evidence:
    """Return the mean over `parts` of each sample that all of them have, in the order of the first."""
    keys = [part.keys.astype(str) for part in parts]
    shared = keys[0][np.all([np.isin(keys[0], each) for each in keys], axis=0)]
    orders = [np.argsort(each) for each in keys]
    rows = [
        order[np.searchsorted(each, shared, sorter=order)] for each, order in zip(keys, orders, strict=True)
    ]
    score, loss = (
        np.mean([getattr(part, name)[at] for part, at in zip(parts, rows, strict=True)], axis=0)
        for name in ("score", "loss")
    )
    return Evidence(parts[0].keys[rows[0]], score, loss)


@dataclass(frozen=True)
class Difference:
    """Mean paired difference of scores over n samples, and its standard error."""

    gain: float
    error: float
    n: int

    @property
    def beyond_noise(self) -> bool:
        """Whether the gain is above `NOISE` standard errors, and above what one sample more gives."""
        return self.n > 0 and self.gain > max(NOISE * self.error, 1 / self.n) * (1 + ROUNDING)


def difference(new: Evidence, old: Evidence) -> Difference:
    """Compare two candidates on the samples that both have; the error is infinite for fewer than two."""
    ours, theirs = new.among(old)
    if len(ours) < 2:
        return Difference(0.0, float("inf"), len(ours))
    d = new.score[ours] - old.score[theirs]
    return Difference(float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d))), len(d))


@dataclass(frozen=True)
class Contender:
    """A candidate as the choice sees it. tier : a smaller one is simpler."""

    what: str
    tier: int
    evidence: Evidence


@dataclass(frozen=True)
class Step:
    """One comparison of the choice: the best of a tier against the one chosen before."""

    what: str
    against: str
    difference: Difference

    @property
    def replaces(self) -> bool:
        """Whether the new one is chosen from here on."""
        return self.difference.beyond_noise

    def __str__(self) -> str:
        d, verb = self.difference, "replaces" if self.replaces else "does not replace"
        return (
            f"{self.what} {verb} {self.against}: {100 * d.gain:+.2f} points "
            f"± {100 * d.error:.2f} on {d.n:,} paired samples."
        )


def choose(contenders: Sequence[Contender]) -> tuple[int, list[Step]]:
    """Return the index of the chosen one by the rule of this module, and the comparisons that led to it.

    Among equals of a tier the one with the lower mean loss is the best, and then the first.
    """
    tiers = sorted({contender.tier for contender in contenders})
    best = [
        max(
            (i for i, contender in enumerate(contenders) if contender.tier == tier),
            key=lambda i: (contenders[i].evidence.mean, -contenders[i].evidence.loss.mean(), -i),
        )
        for tier in tiers
    ]
    chosen, steps = best[0], []
    for i in best[1:]:
        new, old = contenders[i], contenders[chosen]
        steps.append(Step(new.what, old.what, difference(new.evidence, old.evidence)))
        if steps[-1].replaces:
            chosen = i
    return chosen, steps
