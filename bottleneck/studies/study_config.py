"""Settings of the studies, with their defaults. Without torch, so that the command line can read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bottleneck.errors import BottleneckError, counted
from bottleneck.names import BOTTLENECK, HEADS_FOLDER

LEAST_BUDGET = 40  # samples; fewer cannot show which strategy is better
MEASURES = ("logme", "h_score", "leep", "knn")  # of transferability; larger is better in each
RESULT_FORMATS = (".csv", ".jsonl")
FINETUNING = ("auto", "never", "always")  # whether `train` tries to fine-tune
ALEXNET = "alexnet8"  # the transfer study's default network, which is no backbone


@dataclass(frozen=True)
class AdviseConfig:
    """Settings of `advise`."""

    target: str | None = None  # the first one with classes by default
    budget: int = 2000  # samples of train and val that strategies are tried on
    seed: int = 0  # of every draw of samples and images

    def __post_init__(self) -> None:
        if self.budget < LEAST_BUDGET:
            raise BottleneckError(
                f"The budget is {counted(self.budget, 'sample')}; expected {LEAST_BUDGET} or more."
            )


@dataclass(frozen=True)
class RankConfig:
    """Settings of `rank`."""

    node: str = BOTTLENECK  # whose features are scored
    target: str | None = None  # the first one with classes by default
    by: str = "logme"  # one of MEASURES, by which caches are ordered
    check: bool = False  # also fit heads, and correlate the measures with their accuracy
    output: str | Path = HEADS_FOLDER  # folder of those heads
    seed: int = 0  # of the draw of queries for kNN, and of the heads' folds

    def __post_init__(self) -> None:
        if self.by not in MEASURES:
            raise BottleneckError(f"Cannot rank by {self.by!r}; expected one of {', '.join(MEASURES)}.")


@dataclass(frozen=True)
class SimilarConfig:
    """Settings of `similar`."""

    all_images: bool = False  # find the neighbours of every image of the cache
    node: str | None = None  # a vector node; `bottleneck` where the cache has it, else its first one
    count: int = 10  # neighbours of each image
    threshold: float | None = None  # also group images that are linked by cosines of this or more
    output: str | Path | None = None  # .csv or .jsonl file for the result
    raw: bool = False  # write texts to .csv as they are, also those that a spreadsheet would execute

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BottleneckError(f"count is {self.count}; expected 1 or more.")
        if self.output is not None and Path(self.output).suffix.lower() not in RESULT_FORMATS:
            expected = " or ".join(RESULT_FORMATS)
            raise BottleneckError(f"The output {self.output} has another suffix than {expected}.")


@dataclass(frozen=True)
class StudyConfig:
    """Settings of `transfer_study`. All networks are trained alike: SGD, momentum 0.9, warm-up, cosine."""

    seeds: int = 3  # repetitions, each with other weights and, unless they are given, other halves
    network: str = ALEXNET  # or a backbone by its registry name, which is cut between its blocks
    width: int = 8  # channels of the first layer of alexnet8
    image_size: int = 32  # pixels a side of the network's input
    in_channels: int = 3  # of the network's input; 1 reads grey
    epochs: int = 12  # of every training
    batch_size: int = 64  # images of a step
    lr: float = 0.05  # largest learning rate
    weight_decay: float = 5e-4
    shares: tuple[float, ...] = (0.25, 0.5)  # of A's images, for the gain's dependence on the size of A

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", tuple(self.shares))
        for name in ("seeds", "width", "image_size", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise BottleneckError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        if self.in_channels not in (1, 3, 4):
            raise BottleneckError(f"in_channels is {self.in_channels}; expected 1, 3 or 4.")
        for share in self.shares:
            if not 0 < share < 1:
                raise BottleneckError(f"A share of A's images is {share}; expected a number between 0 and 1.")

    def recipe(self) -> dict[str, Any]:
        """Return what must be equal for a stored run to be reused. More seeds and shares only add runs."""
        return {name: value for name, value in asdict(self).items() if name not in ("seeds", "shares")}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train`."""

    target: str | None = None  # the first one by default
    minutes: float | None = None  # that the run may take; as many as it needs by default
    finetune: str = "auto"  # one of FINETUNING
    cv: int = 5  # folds of cross-validation
    seed: int = 0  # of folds, of random weights and of splits that are set aside

    def __post_init__(self) -> None:
        if self.finetune not in FINETUNING:
            expected = ", ".join(FINETUNING)
            raise BottleneckError(f"finetune is {self.finetune!r}; expected one of {expected}.")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise BottleneckError(f"minutes is {self.minutes}; expected a positive number.")
        if self.cv < 2:
            raise BottleneckError(f"cv is {self.cv}; expected 2 folds or more.")


ODD = {  # kinds of odd images, and the scores below which an image is one (`audit.odd_images`)
    "dark": 0.32,
    "light": 0.05,
    "low_information": 0.3,
    "blurry": 0.01,
    "odd_aspect_ratio": 0.35,
    "odd_size": 0.2,
}


@dataclass(frozen=True)
class AuditConfig:
    """Settings of `audit`."""

    target: str | None = None  # the first one by default
    node: str = BOTTLENECK  # whose features are compared, and fitted where no head is given
    doubt: float = 0.2  # least probability with which a flagged label is wrong
    precision: float = 0.7  # least mean of these probabilities: the precision that is expected
    cosine: float = 0.8  # of features less their mean: the least of two images that are nearly the same
    ratio: float = 0.4  # of the distance to the tenth neighbour: the most of two such images
    fence: float = 3.0  # interquartile ranges above the third quartile from which an image is an outlier
    confusion: float = 0.2  # share of two classes' samples held for the other one, its interval's low end
    thin: int = 10  # samples in train that a class should have
    odd: Mapping[str, float] = field(default_factory=dict)  # thresholds in place of those of ODD, by kind
    cv: int = 5  # folds of the head that is fitted
    seed: int = 0  # of the folds

    def __post_init__(self) -> None:
        unknown = sorted(set(self.odd) - set(ODD))
        if unknown:
            raise BottleneckError(f"There is no odd image of kind {unknown[0]!r}; kinds: {', '.join(ODD)}.")
        object.__setattr__(self, "odd", ODD | dict(self.odd))
        for name, value in (("doubt", self.doubt), ("precision", self.precision), *self.odd.items()):
            if not 0 <= value <= 1:
                raise BottleneckError(f"{name} is {value}; expected a number from 0 to 1.")
        for name in ("cosine", "ratio", "confusion"):
            if not 0 < getattr(self, name) <= 1:
                raise BottleneckError(f"{name} is {getattr(self, name)}; expected a number in (0, 1].")
        for name, least in (("fence", 0), ("thin", 0), ("cv", 2)):
            if getattr(self, name) < least:
                raise BottleneckError(f"{name} is {getattr(self, name)}; expected {least} or more.")


@dataclass(frozen=True)
class SuggestConfig:
    """Settings of `suggest`."""

    target: str | None = None  # the only one by default
    node: str = BOTTLENECK  # whose features are used
    n: int = 50  # images to suggest
    cv: int = 5  # folds of the head that is fitted
    seed: int = 0  # of folds, of the backtest's draws and of the curve's
    output: str | Path | None = None  # .csv file for the images to label

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("cv", 2)):
            if getattr(self, name) < least:
                raise BottleneckError(f"{name} is {getattr(self, name)}; expected {least} or more.")
        if self.output is not None and Path(self.output).suffix.lower() != ".csv":
            raise BottleneckError(f"The output {self.output} has another suffix than .csv.")


@dataclass(frozen=True)
class DriftConfig:
    """Settings of `drift`."""

    target: str | None = None  # whose predicted shares are compared; the only one by default
    node: str = BOTTLENECK  # whose features are compared
    n: int = 20  # foreign images to list
    permutations: int = 200  # of old and new, for the null distribution
    seed: int = 0  # of folds, draws and permutations

    def __post_init__(self) -> None:
        for name, least in (("n", 0), ("permutations", 19)):
            if getattr(self, name) < least:
                raise BottleneckError(f"{name} is {getattr(self, name)}; expected {least} or more.")
