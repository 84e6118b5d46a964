"""Sets of classes that contain the true one with a stated probability, calibrated on held-out samples.

    probabilities ──► score of each class: the mass of likelier classes, more for a rank beyond the fifth
    set = the classes whose score is at most the ⌈(m + 1) coverage⌉-th least score of a true class held out

These are adaptive sets (APS; Romano, Sesia and Candès 2020) with the penalty of Angelopoulos et al. (2021,
RAPS) in the form that is not randomised: the random number is 0 in calibration and in use alike. So the
likeliest class is always in the set, a set depends on its image alone, and no seed is needed. Where the head
is right more often than the coverage asked for, sets of one class cover that often, not less.

Which guarantee holds. If the scores came from the head that predicts, on samples that it has not seen, the
true class would be in the set with a probability from c to c + 1/(m + 1) (split conformal). Here each is of
the head without the sample's fold, at the temperature that all of them gave. CV+, which keeps those heads and
compares with each, covers 2c − 1 at least (Barber et al. 2021); a file has the final head alone, for which
nothing is proved without an assumption. Where the heads of the folds predict alike it is c; `evaluate`
measures it.

Shapes: n samples, K classes, m held-out samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bottleneck.errors import ArtifactError, counted
from bottleneck.records import is_integer, is_number, require_fields

RANK, PENALTY = 5, 0.01  # of Angelopoulos et al. on ImageNet
MOST_SCORES = 10_000  # kept; a random part of exchangeable scores is as valid as all
SEED = 0  # of that part
DIGITS = 6  # of scores: equal ones stay equal, in float32 and float64


@dataclass(frozen=True, eq=False)
class Conformal:
    """Scores of the true classes of held-out samples, (m,) float32, ascending.

    rank, penalty : what a score grows by for each rank beyond `rank`.
    """

    scores: np.ndarray = field(repr=False)
    rank: int = RANK
    penalty: float = PENALTY

    def __post_init__(self) -> None:
        s = self.scores
        if s.ndim != 1 or not len(s) or not np.isfinite(s).all() or (np.diff(s) < 0).any():
            raise ArtifactError(
                "A head's scores of prediction sets are not finite numbers in ascending order."
            )
        if not (self.rank >= 1 and 0 <= self.penalty <= 1):
            raise ArtifactError(
                f"A head's prediction sets have rank {self.rank} and penalty {self.penalty}; expected 1 or "
                "more, and a number from 0 to 1."
            )

    @classmethod
    def of(cls, probabilities: np.ndarray, codes: np.ndarray) -> Conformal | None:
        """Return the scores for held-out probabilities (n, K) and true codes (n,); None without samples."""
        if not len(codes):
            return None
        if len(codes) > MOST_SCORES:
            chosen = np.sort(np.random.default_rng(SEED).permutation(len(codes))[:MOST_SCORES])
            probabilities, codes = probabilities[chosen], codes[chosen]
        scores = class_scores(probabilities, RANK, PENALTY)[np.arange(len(codes)), codes]
        return cls(np.sort(scores))

    def threshold(self, coverage: float) -> float:
        """Return the greatest score of a class that is in a set.

        Raises ArtifactError if there are too few scores for so high a coverage.
        """
        m = len(self.scores)
        rank = math.ceil((m + 1) * coverage - 1e-9)
        if rank > m:
            least = math.ceil(coverage / (1 - coverage) - 1e-9)
            raise ArtifactError(
                f"--coverage {coverage:g} needs {counted(least, 'held-out sample')}; the head has {m:,}.",
                f"Give {math.floor(1e4 * m / (m + 1)) / 1e4:g} or less, or fit the head on more samples.",
            )
        return float(self.scores[rank - 1])

    def members(self, probabilities: np.ndarray, coverage: float) -> np.ndarray:
        """Return (n, K) bool, the classes of each set, for probabilities (n, K)."""
        limit = np.float32(self.threshold(coverage))
        return class_scores(probabilities, self.rank, self.penalty) <= limit

    def to_json(self) -> dict[str, Any]:
        """Return what the description of a head file holds beside the scores."""
        return {"rank": self.rank, "penalty": self.penalty}

    @classmethod
    def from_json(cls, record: Any, scores: np.ndarray) -> Conformal:
        """Rebuild from `to_json` and the scores. Raises ArtifactError where a field is invalid."""
        require_fields(
            record, {"rank": is_integer, "penalty": is_number}, "A head's record of prediction sets"
        )
        return cls(scores, record["rank"], record["penalty"])


def class_scores(probabilities: np.ndarray, rank: int, penalty: float) -> np.ndarray:
    """Return the score (n, K) float32 of each class; of equal ones the earlier class is first."""
    p = np.asarray(probabilities, np.float64)
    order = np.argsort(-p, axis=1, kind="stable")
    sorted_p = np.take_along_axis(p, order, axis=1)
    before = np.cumsum(sorted_p, axis=1) - sorted_p
    before[:, 0] = 0.0
    before += penalty * np.maximum(np.arange(1, p.shape[1] + 1) - rank, 0)
    scores = np.empty_like(before)
    np.put_along_axis(scores, order, before, axis=1)
    return np.round(scores, DIGITS).astype(np.float32)
