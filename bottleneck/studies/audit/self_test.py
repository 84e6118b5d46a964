"""Change labels at random and judge them again: how many a head's probabilities find.

The probabilities stay those of the given labels: the test tells what the judge finds, not what a head would
learn from the changed ones.

Shapes: n judged samples, K classes, L labels of a multi-label target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bottleneck.errors import Note, counted
from bottleneck.studies.audit.label_errors import label_quality

CHANGED = 0.05  # of the labels, in each round
ENOUGH, ROUNDS = 100, 10  # changed labels in all rounds, and the most rounds
MOST_SAMPLES, MOST_LABELS = 5_000, 8  # that are judged again, of a multi-label target
LEAST_FOUND = 0.5  # share of the changed labels, with less of which a head is too weak


@dataclass(frozen=True)
class SelfTest:
    """changed : labels that were changed. found : how many of them were flagged."""

    changed: int
    found: int

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `label_issues`."""
        return {"changed": self.changed, "found": self.found}

    def notes(self, accuracy: float) -> tuple[Note, ...]:
        """Return a note where too few were found. accuracy : of the held-out predictions."""
        if self.found >= LEAST_FOUND * self.changed:
            return ()
        text = (
            f"The head is right in {accuracy:.0%} of held-out labels, too seldom to judge them: of "
            f"{counted(self.changed, 'label')} changed at random as a test, it found {self.found:,}. "
            "Others that are "
            "wrong stay unseen; bring more samples, or take another node or backbone."
        )
        return (Note("labels-hard-to-judge", text, details={**self.to_json(), "accuracy": accuracy}),)


def self_test(
    labels: np.ndarray,
    probabilities: np.ndarray,
    doubt: float,
    precision: float,
    seed: int,
    unjudged: Sequence[int] = (),
) -> SelfTest:
    """Change labels (n,), or bits (n, L), at random, and count those that `label_quality` flags.

    probabilities : (n, K), or (n, L). doubt, precision : as of `label_quality`. unjudged : of the L labels,
    those that the audit does not judge.
    """
    draw = np.random.default_rng([seed, len(labels)])
    rows = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), MOST_SAMPLES)).astype(int))
    labels, probabilities = labels[rows], probabilities[rows]
    if labels.ndim == 1:
        return _rounds(labels, probabilities, doubt, precision, draw)
    judged = np.setdiff1d(np.arange(labels.shape[1]), unjudged)
    columns = judged[np.unique(np.linspace(0, len(judged) - 1, min(len(judged), MOST_LABELS)).astype(int))]
    parts = [
        _rounds(labels[:, k].astype(np.int64), np.stack([1 - p, p], axis=1), doubt, precision, draw)
        for k, p in zip(columns, probabilities.T[columns], strict=True)
    ]
    return SelfTest(sum(part.changed for part in parts), sum(part.found for part in parts))


def _rounds(
    labels: np.ndarray, probabilities: np.ndarray, doubt: float, precision: float, draw: np.random.Generator
) -> SelfTest:
    """Return the test of labels (n,) of K classes."""
    n, classes = probabilities.shape
    each = max(1, round(CHANGED * n))
    rounds = min(ROUNDS, -(-ENOUGH // each))
    found = 0
    for _ in range(rounds):
        rows = draw.choice(n, each, replace=False)
        changed = labels.copy()
        changed[rows] = (changed[rows] + draw.integers(1, classes, each)) % classes
        found += int(label_quality(changed, probabilities, doubt, precision).flag[rows].sum())
    return SelfTest(rounds * each, found)
