"""What the transfer study trains: its settings and its runs, one by one.

Terms of Yosinski et al. 2014. The classes are split into halves A and B. *base* networks are trained on a
half. In *BnB* (selffer) and *AnB* (transfer) the first n layers are copied from a base network and frozen,
the others are re-initialised and trained on B; in *BnB+* and *AnB+* all layers are trained. *random*: the
first n layers are frozen as they were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bottleneck.errors import BottleneckError, SourceError
from bottleneck.studies.transfer_study.networks import ALEXNET

BASES = ("baseA", "baseB")
COPIES = ("BnB", "BnB+", "AnB", "AnB+", "random")
KINDS = (*BASES, *COPIES)
FEWEST_CLASSES = 4


@dataclass(frozen=True)
class StudyConfig:
    """Settings of a study.

    seeds : how often everything is repeated, each time with other halves (where they are drawn) and weights.
    network : "alexnet8", or a backbone by its blocks. width : channels of alexnet8's first layer.
    image_size, in_channels : of the network's input.
    epochs, batch_size, lr, weight_decay : of every training alike (SGD, momentum 0.9, warm-up, cosine).
    shares : of A's images per class, for the gain's dependence on the size of A.
    """

    seeds: int = 3
    network: str = ALEXNET
    width: int = 8
    image_size: int = 32
    in_channels: int = 3
    epochs: int = 12
    batch_size: int = 64
    lr: float = 0.05
    weight_decay: float = 5e-4
    shares: tuple[float, ...] = (0.25, 0.5)

    def __post_init__(self) -> None:
        for name in ("seeds", "width", "image_size", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise BottleneckError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        if self.in_channels not in (1, 3, 4):
            raise BottleneckError(f"in_channels is {self.in_channels}; expected 1, 3 or 4.")
        for share in self.shares:
            if not 0 < share < 1:
                raise BottleneckError(f"A share of A's images is {share}; expected a number between 0 and 1.")

    def recipe(self) -> dict[str, Any]:
        """What must be equal for a run's result to be used again. More seeds and shares only add runs."""
        return {name: value for name, value in asdict(self).items() if name not in ("seeds", "shares")}


@dataclass(frozen=True)
class Run:
    """One training.

    kind : of `KINDS`. n : layers copied, 0 for a base. share : of A's images that the base of A had.
    """

    seed: int
    kind: str
    n: int = 0
    share: float = 1.0

    @property
    def name(self) -> str:
        """Of its files: `seed0-AnB+-3`, `seed0-AnB+-7-share0.25`."""
        layers = f"-{self.n}" if self.n else ""
        share = f"-share{self.share:g}" if self.share < 1 else ""
        return f"seed{self.seed}-{self.kind}{layers}{share}"

    @property
    def frozen(self) -> bool:
        """Whether the copied layers stay as they are."""
        return self.n > 0 and not self.kind.endswith("+")

    @property
    def source(self) -> Run | None:
        """The base run whose layers are copied."""
        if self.kind in BASES or self.kind == "random":
            return None
        return Run(self.seed, f"base{self.kind[0]}", share=self.share)

    @property
    def half(self) -> str:
        """The half whose images it trains on and is measured on."""
        return "A" if self.kind == "baseA" else "B"


def plan_runs(config: StudyConfig, layers: int) -> list[Run]:
    """All runs of a study of a network with L `layers`, each after the one that it copies from."""
    runs = []
    for seed in range(config.seeds):
        runs += [Run(seed, kind) for kind in BASES]
        runs += [Run(seed, kind, n) for n in range(1, layers) for kind in COPIES]
        for share in config.shares:
            runs += [Run(seed, "baseA", share=share), Run(seed, "AnB+", layers - 1, share)]
    return runs


def class_halves(
    names: Sequence[str], seed: int, given: tuple[Sequence[str], Sequence[str]] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the classes of A and of B: two halves drawn with `seed`, or the `given` names.

    Raises
    ------
    SourceError
        Fewer than four classes, fewer than two in a half, or names that are unknown or in both halves.
    """
    if len(names) < FEWEST_CLASSES:
        raise SourceError(
            f"The study splits the classes into two halves of at least two; the source has {len(names)}.",
            "Name a source of four classes or more, better of dozens.",
        )
    if given is None:
        order = np.random.default_rng(seed).permutation(len(names))
        return np.sort(order[: len(names) // 2]), np.sort(order[len(names) // 2 :])
    code = {name: i for i, name in enumerate(names)}
    unknown = [name for half in given for name in half if name not in code]
    if unknown:
        raise SourceError(
            f"The source has no class {unknown[0]!r}; its classes are {_listed(names)}.",
            "Write one class a line into the files of the halves.",
        )
    halves = tuple(np.array(sorted({code[name] for name in half}), dtype=np.int64) for half in given)
    shared = np.intersect1d(*halves)
    if len(shared):
        raise SourceError(f"Class {names[shared[0]]!r} is in both halves; expected it in one.")
    if min(map(len, halves)) < 2:
        raise SourceError(
            f"The halves have {len(halves[0])} and {len(halves[1])} classes; expected 2 or more each."
        )
    return halves


def _listed(names: Sequence[str], longest: int = 12) -> str:
    shown = ", ".join(names[:longest])
    return shown if len(names) <= longest else f"{shown} and {len(names) - longest} more"
