"""When a head says that it does not know: unknown samples by their novelty, and sets of classes.

Shapes: n samples, V views of a sample, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bottleneck.errors import ArtifactError, Note
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.metrics import wilson_interval
from bottleneck.models.config import TrustConfig

UNKNOWN = "unknown"  # the label of a rejected sample
AGAIN = "Fit it again: bottleneck fit-head CACHE."
# Message and hint where a file lacks the data, by whether the network was trained.
NO_NOVELTY = {
    True: (
        "The network of this model was trained on its images, whose features tell nothing of new ones: "
        "its file has no data for --reject.",
        "Use a head on the network as it was: bottleneck fit-head CACHE.",
    ),
    False: (
        "The head's file has no data for --reject: an earlier version wrote it, its training samples are "
        "of one group, or it was not made by fit-head or train.",
        AGAIN,
    ),
}
NO_CONFORMAL = {
    True: (
        "No sample was held out from the training of this model but val, which chose it; its file has no "
        "data for --coverage.",
        "Use a model of bottleneck train, or a head: bottleneck fit-head CACHE.",
    ),
    False: (
        "The head's file has no data for --coverage: an earlier version wrote it, or it was fitted without "
        "cross-validation.",
        AGAIN,
    ),
}


@dataclass(frozen=True)
class Trust:
    """What `--reject` and `--coverage` ask of a head that can do it.

    limit : the novelty above which a sample is unknown; None where none is rejected.
    """

    head: HeadArtifact
    config: TrustConfig
    limit: float | None

    @classmethod
    def of(cls, head: HeadArtifact, config: TrustConfig) -> Trust:
        """Raise ArtifactError if the head lacks the data, or has too few scores for the share asked for."""
        limit = None
        if config.reject is not None:
            if head.novelty is None:
                raise ArtifactError(*NO_NOVELTY[_is_trained(head)])
            limit = head.novelty.threshold(config.reject)
        if config.coverage is not None:
            if head.target_kind != "class":
                raise ArtifactError(
                    f"--coverage makes sets of classes; the head predicts a {head.target_kind} target.",
                    "Leave --coverage out.",
                )
            if head.conformal is None:
                raise ArtifactError(*NO_CONFORMAL[_is_trained(head)])
            head.conformal.threshold(config.coverage)
        return cls(head, config, limit)

    def novelty(self, inputs: np.ndarray) -> np.ndarray | None:
        """Return the novelty (n,) of inputs (n, V, D), of their first view; None where it is not wanted."""
        if self.limit is None:
            return None
        assert self.head.novelty is not None
        return self.head.novelty.of(inputs[:, 0])

    def rejected(self, novelty: np.ndarray) -> np.ndarray:
        """Return (n,) bool, whether samples of this novelty (n,) are unknown."""
        return np.asarray(novelty > self.limit)

    def members(self, scores: np.ndarray) -> np.ndarray:
        """Return (n, K) bool, the classes in the set of each sample, for probabilities (n, K)."""
        assert self.head.conformal is not None
        assert self.config.coverage is not None
        return self.head.conformal.members(scores, self.config.coverage)

    def add_to(self, records: list[dict[str, Any]], scores: np.ndarray, novelty: np.ndarray | None) -> None:
        """Add novelty, known, predicted and set to the records of n predictions; see `predict`."""
        if self.limit is not None and novelty is not None:
            several = self.head.target_kind == "multilabel"
            for record, value, out in zip(records, novelty, self.rejected(novelty), strict=True):
                record |= {"novelty": float(value), "known": not out, "predicted": record["label"]}
                if out:
                    record["label"] = [UNKNOWN] if several else UNKNOWN
        if self.config.coverage is not None and records:
            order = np.argsort(-scores, axis=1, kind="stable")
            for record, row, inside in zip(records, order, self.members(scores), strict=True):
                record["set"] = [self.head.class_names[code] for code in row if inside[code]]

    def to_json(self) -> dict[str, Any]:
        """Return what was asked for, as `predict --json` prints it."""
        asked: dict[str, Any] = {}
        if self.limit is not None:
            asked |= {"reject": self.config.reject, "novelty_threshold": self.limit}
        return asked | ({} if self.config.coverage is None else {"coverage": self.config.coverage})

    def notes(self, flip: bool) -> list[Note]:
        """Return notes on what the user should know. flip : the user asked for mirror images."""
        notes = []
        if self.limit is not None and UNKNOWN in self.head.class_names:
            text = f"A class is named {UNKNOWN!r}: the key `known` tells it from samples that are unknown."
            notes.append(Note("class-named-unknown", text))
        if self.config.coverage is not None and flip and not self.head.settings.get("flip", False):
            text = (
                "The sets were calibrated without mirror images: `evaluate --coverage --flip` measures them."
            )
            notes.append(Note("coverage-without-flip", text))
        return notes

    # ---------------------------------------------------------------- measured

    def measured(
        self, scores: np.ndarray, answers: np.ndarray, novelty: np.ndarray | None, known: str
    ) -> tuple[dict[str, Any], list[Note]]:
        """Return what `evaluate` adds for samples of known classes, and notes where a rate is missed.

        scores : probabilities (n, K), or values (n,). answers : of the samples. known : names them.
        """
        found = self.to_json()
        notes: list[Note] = []
        if self.limit is not None and novelty is not None:
            out = self.rejected(novelty)
            low, high = wilson_interval(int(out.sum()), len(out))
            found |= {"rejected": float(out.mean()), "rejected_ci95": [low, high]}
            assert self.head.novelty is not None
            assert self.config.reject is not None
            if _is_off(out, self.config.reject, len(self.head.novelty.scores)):
                text = (
                    f"{out.mean():.1%} of {known} are rejected, 95 % interval {low:.1%} to {high:.1%}; "
                    f"{self.config.reject:.1%} was asked for: these samples differ from those of training."
                )
                notes.append(Note("reject-rate-off", text, details={"measured": float(out.mean())}))
        if self.config.coverage is not None:
            members = self.members(scores)
            inside = members[np.arange(len(answers)), answers]
            sizes = members.sum(axis=1)
            low, high = wilson_interval(int(inside.sum()), len(inside))
            found |= {
                "measured_coverage": float(inside.mean()),
                "measured_coverage_ci95": [low, high],
                "mean_set_size": float(sizes.mean()),
                "set_sizes": {
                    str(size): int(count) for size, count in enumerate(np.bincount(sizes)) if count
                },
            }
            assert self.head.conformal is not None
            if _is_off(inside, self.config.coverage, len(self.head.conformal.scores)):
                why = "these samples differ from those of training"
                if inside.mean() > self.config.coverage:
                    why = "the head is better than those of the folds that the sets were calibrated by"
                    if (sizes == 1).all():
                        why = "all sets are of one class, and the head is right that often"
                text = (
                    f"{inside.mean():.1%} of the sets of {known} contain the true class, 95 % interval "
                    f"{low:.1%} to {high:.1%}; {self.config.coverage:.1%} was asked for: {why}."
                )
                notes.append(Note("coverage-off", text, details={"measured": float(inside.mean())}))
        return found, notes


def _is_off(hits: np.ndarray, asked: float, m: int) -> bool:
    """Return whether a share differs from the one asked for by more than chance, at a level of 5 %.

    Chance is that of the measured samples and of the m scores that the threshold came from.
    """
    error = np.sqrt(asked * (1 - asked) * (1 / len(hits) + 1 / m))
    return bool(abs(hits.mean() - asked) > 1.96 * error)


def _is_trained(head: HeadArtifact) -> bool:
    """Return whether the network of a model was trained."""
    return not head.node_fingerprint and bool({"finetuned", "scratch"} & set(head.settings))
