"""What advice consists of: size, similarity, attempts, published rules beside them, the recommendation.

The four scenarios of transfer learning, and two published rules for them, side by side: they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import Note, counted
from bottleneck.studies.advise.image_similarity import Similarity
from bottleneck.studies.rank.scores import Scores
from bottleneck.studies.shot_curve import ShotCurve
from bottleneck.trials.evidence import Contender, Evidence, choose

SIZES = ("small", "large")
NEARNESS = ("similar", "different")
SCENARIOS = tuple(f"{size}-{near}" for size in SIZES for near in NEARNESS)
LARGE = 500  # train images per class from which data count as large: that of CIFAR-100, a usual example

HEAD, EARLY, FINETUNE, SCRATCH = "head", "early head", "finetune", "scratch"
STRATEGIES = (HEAD, EARLY, FINETUNE, SCRATCH)  # the cheapest first

CONTRADICTION = 0.01  # of val accuracy: the least loss for which a rule is called contradicted
UNKNOWN = "Similarity is unknown: the network has random weights, so there are no images that it learnt from."
NOTHING = (
    "But nothing that was tried is surely better than always naming the commonest class ({:.3f}): "
    "look at the labels, or bring more images, before you train anything."
)


@dataclass(frozen=True)
class Rule:
    """What a text says on one scenario. strategy : the one of ours that it amounts to."""

    says: str
    strategy: str


CS231N, UDACITY = "CS231n notes", "Udacity, four main cases"
RULES: dict[str, dict[str, Rule]] = {
    CS231N: {
        "small-similar": Rule("linear classifier on top features", HEAD),
        "small-different": Rule("linear classifier on earlier activations", EARLY),
        "large-similar": Rule("fine-tune with confidence", FINETUNE),
        "large-different": Rule(
            "fine-tune through the whole network, initialised from pre-trained weights", FINETUNE
        ),
    },
    UDACITY: {
        "small-similar": Rule("freeze all layers, train a new last layer", HEAD),
        "small-different": Rule("keep only the first layers, frozen, and train a new layer on them", EARLY),
        "large-similar": Rule("re-train the whole network from its pre-trained weights", FINETUNE),
        "large-different": Rule(
            "re-train the network from randomly initialised weights, or else as for similar data", SCRATCH
        ),
    },
}
SOURCES = {  # where a reader finds them; of the second, a lesson of a Nanodegree, a student's notes
    CS231N: "https://cs231n.github.io/transfer-learning/",
    UDACITY: "https://github.com/songshan0321/SDCND/blob/master/notes/TransferLearning.md",
}


def scenario(samples_per_class: float, similar: bool) -> str:
    """Return one of `SCENARIOS`."""
    return f"{SIZES[samples_per_class >= LARGE]}-{NEARNESS[not similar]}"


@dataclass(frozen=True)
class Size:
    """How much there is to learn from: train samples in all, and per class (median and smallest)."""

    samples: int
    classes: int
    per_class: float
    smallest: int
    curve: ShotCurve

    @staticmethod
    def of(codes: np.ndarray, curve: ShotCurve) -> Size:
        """Count train samples with class `codes`."""
        counts = np.unique(codes, return_counts=True)[1]
        return Size(len(codes), len(counts), float(np.median(counts)), int(counts.min()), curve)

    @property
    def text(self) -> str:
        """One sentence."""
        word = SIZES[self.per_class >= LARGE]
        return (
            f"{word}: {counted(self.samples, 'train sample')}, {self.per_class:g} per class (large from "
            f"{LARGE}); "
            f"{self.curve.text}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return counts, curve and sentence."""
        return {**asdict(self), "curve": self.curve.to_json(), "text": self.text}


@dataclass(frozen=True)
class Attempt:
    """One strategy as it was tried.

    strategy : one of HEAD, EARLY, FINETUNE, SCRATCH. what : in words. accuracy, ci95 : by split.
    command : does the same with all data.
    evidence : sample by sample, on val, and for a head also on the train samples that folds held out.
    notes : what was decided in the trial.
    """

    strategy: str
    what: str
    accuracy: dict[str, float]
    ci95: dict[str, tuple[float, float]]
    seconds: float
    command: str
    evidence: Evidence
    cv_accuracy: float | None = None
    notes: tuple[Note, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return all but the notes, which are those of the advice; `pooled` is the mean of the evidence."""
        values = {name: value for name, value in vars(self).items() if name not in ("notes", "evidence")}
        return {**values, "pooled": self.evidence.mean}


def best_attempt(attempts: Sequence[Attempt]) -> Attempt:
    """Return the attempt that the rule of `trials.evidence` chooses; the strategies are its tiers."""
    contenders = [
        Contender(attempt.what, STRATEGIES.index(attempt.strategy), attempt.evidence) for attempt in attempts
    ]
    return attempts[choose(contenders)[0]]


@dataclass(frozen=True)
class Judgement(Rule):
    """A rule beside the evidence.

    accuracy : on val, of the best attempt that follows the rule; None if there was none.
    lost : how much the recommendation is better. contradicted : whether that is more than chance.
    """

    accuracy: float | None = None
    lost: float | None = None
    contradicted: bool | None = None

    @property
    def text(self) -> str:
        """Half a sentence."""
        if self.accuracy is None or self.lost is None:
            return "not tried here"
        if not self.contradicted:
            agrees = "agrees" if self.lost <= CONTRADICTION else "contradicts it not beyond chance"
            return f"the evidence {agrees}: {self.accuracy:.3f} on val"
        return (
            f"the evidence contradicts it: {self.accuracy:.3f} on val, {100 * self.lost:.1f} points less "
            "than what is recommended"
        )


def judge(rule: Rule, attempts: Sequence[Attempt], val: int) -> Judgement:
    """Compare `rule` with what was tried and measured on `val` samples."""
    followed = [attempt.accuracy["val"] for attempt in attempts if attempt.strategy == rule.strategy]
    if not followed:
        return Judgement(rule.says, rule.strategy)
    accuracy = max(followed)
    lost = best_attempt(attempts).accuracy["val"] - accuracy
    best = accuracy + lost
    # As for two separate sets of samples: wider than for paired ones, as the best was picked among several.
    chance = 1.96 * np.sqrt((accuracy * (1 - accuracy) + best * (1 - best)) / val)
    return Judgement(rule.says, rule.strategy, accuracy, lost, bool(lost > max(CONTRADICTION, chance)))


@dataclass(frozen=True)
class Advice:
    """Result of `advise`.

    heads : linear heads along the network (the probe curve). scores : by node.
    tried : samples of the trial by split.
    guess : val accuracy of always predicting the class that is most frequent in train. seconds : wall time.
    notes : what was decided on the samples and in the trials.
    """

    cache: str
    target: str
    size: Size
    similarity: Similarity | None
    attempts: list[Attempt]
    heads: list[dict[str, Any]]
    scores: dict[str, Scores]
    tried: dict[str, int]
    guess: float
    folder: Path
    seconds: float
    notes: list[Note] = field(default_factory=list)

    @property
    def scenario(self) -> str:
        """One of `SCENARIOS`; images of unknown similarity count as different."""
        return scenario(self.size.per_class, self.similarity is not None and self.similarity.similar)

    @property
    def chosen(self) -> Attempt:
        """The recommended strategy."""
        return best_attempt(self.attempts)

    @property
    def beats_guessing(self) -> bool:
        """Whether the recommended strategy's 95 % interval lies above `guess`."""
        return self.chosen.ci95["val"][0] > self.guess

    @property
    def rules(self) -> dict[str, Judgement]:
        """What each text says on this scenario, beside the evidence."""
        val = self.tried["val"]
        return {text: judge(rules[self.scenario], self.attempts, val) for text, rules in RULES.items()}

    @property
    def text(self) -> list[str]:
        """The advice in sentences."""
        near = f"The images are {self.similarity.text}." if self.similarity else UNKNOWN
        accuracy, val = self.chosen.accuracy["val"], self.tried["val"]
        return [
            f"Size is {self.size.text}.",
            near,
            f"Scenario: {self.scenario}.",
            *(f"{text}: {rule.says} ({rule.text}). {SOURCES[text]}" for text, rule in self.rules.items()),
            f"Recommended: {self.chosen.what}, {accuracy:.3f} on {counted(val, 'val sample')}, which "
            "chose it together "
            "with cross-validation on train: a costlier strategy must be better beyond the noise of paired "
            "samples.",
            *([] if self.beats_guessing else [NOTHING.format(self.guess)]),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bottleneck advise --json` without the figure."""
        probe_keys = ("node", "C", "cv_accuracy", "accuracy")
        evidence = {
            "attempts": [attempt.to_json() for attempt in self.attempts],
            "probe_curve": [{key: head[key] for key in probe_keys} for head in self.heads],
            "scores": {node: asdict(scores) for node, scores in self.scores.items()},
            "samples": self.tried,
            "guess": self.guess,
        }
        return {
            "scenario": self.scenario,
            "size": self.size.to_json(),
            "similarity": self.similarity and self.similarity.to_json(),
            "recommendation": self.chosen.to_json(),
            "rules": {
                text: {**asdict(rule), "text": rule.text, "source": SOURCES[text]}
                for text, rule in self.rules.items()
            },
            "evidence": evidence,
            "text": self.text,
            "cache": self.cache,
            "target": self.target,
            "folder": str(self.folder),
            "seconds": self.seconds,
            "notes": [note.to_json() for note in self.notes],
        }
