"""What the transfer study trains, run by run, in the terms of Yosinski et al. 2014.

The classes are split into halves A and B, and networks are trained on either half.

    base      all layers are trained on one half (baseA, baseB)
    BnB       selffer: the first n layers are copied from the base of B and frozen, the others are initialised
              anew and trained on B. It shows the loss from separating layers that were trained together.
    AnB       transfer: as BnB, but the first n layers come from the base of A. What it loses beyond BnB shows
              how specific the layers are to A.
    BnB+ AnB+ as above, but all layers are trained: the copied ones are fine-tuned
    random    the first n layers are frozen with their random weights

The published numbers are here too, to be drawn beside the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.errors import SourceError
from bottleneck.studies.study_config import StudyConfig

BASES = ("baseA", "baseB")
COPIES = ("BnB", "BnB+", "AnB", "AnB+", "random")
KINDS = (*BASES, *COPIES)
FEWEST_CLASSES = 4

Halves = tuple[Sequence[str], Sequence[str]]  # class names of A and of B

# Yosinski, Clune, Bengio & Lipson, "How transferable are features in deep neural networks?", NeurIPS 2014:
# ImageNet, halves of 500 classes, an eight-layer AlexNet. Top-1 validation accuracies in percent, the mean of
# the ten highest validation points in the authors' published logs; those logs mix targets.
PUBLISHED_BASE = 62.5
PUBLISHED = {  # n = 1 … 7
    "BnB": (62.7, 62.4, 62.1, 60.5, 59.4, 61.9, 62.3),
    "BnB+": (61.8, 62.2, 63.1, 62.9, 63.0, 62.8, 62.7),
    "AnB": (62.8, 62.4, 61.9, 60.0, 57.8, 58.1, 54.3),
    "AnB+": (63.7, 63.6, 64.3, 64.0, 64.5, 64.6, 64.7),
}
PUBLISHED_SOURCE = (
    "Yosinski et al. 2014, ImageNet: mean of the ten highest validation points in the authors' logs"
)


@dataclass(frozen=True)
class Run:
    """One training.

    kind : one of `KINDS`. n : number of copied layers, 0 for a base.
    share : of A's images that the base of A was trained on.
    """

    seed: int
    kind: str
    n: int = 0
    share: float = 1.0

    @property
    def name(self) -> str:
        """Stem of its files: `seed0-AnB+-3`, `seed0-AnB+-7-share0.25`."""
        layers = f"-{self.n}" if self.n else ""
        share = f"-share{self.share:g}" if self.share < 1 else ""
        return f"seed{self.seed}-{self.kind}{layers}{share}"

    @property
    def frozen(self) -> bool:
        """Whether the copied layers are frozen."""
        return self.n > 0 and not self.kind.endswith("+")

    @property
    def source(self) -> Run | None:
        """The base run from which layers are copied; None if none are."""
        if self.kind in BASES or self.kind == "random":
            return None
        return Run(self.seed, f"base{self.kind[0]}", share=self.share)

    @property
    def half(self) -> str:
        """The half, "A" or "B", that it is trained and measured on."""
        return "A" if self.kind == "baseA" else "B"


def plan_runs(config: StudyConfig, layers: int) -> list[Run]:
    """List all runs for a network with L `layers`, each after the run that it copies from."""
    runs = []
    for seed in range(config.seeds):
        runs += [Run(seed, kind) for kind in BASES]
        runs += [Run(seed, kind, n) for n in range(1, layers) for kind in COPIES]
        for share in config.shares:
            runs += [Run(seed, "baseA", share=share), Run(seed, "AnB+", layers - 1, share)]
    return runs


def class_halves(names: Sequence[str], seed: int, given: Halves | None = None) -> dict[str, np.ndarray]:
    """Return the class codes of A and of B, sorted: two halves drawn with `seed`, or the `given` names.

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
        return {"A": np.sort(order[: len(names) // 2]), "B": np.sort(order[len(names) // 2 :])}
    code = {name: i for i, name in enumerate(names)}
    unknown = [name for half in given for name in half if name not in code]
    if unknown:
        raise SourceError(
            f"The source has no class {unknown[0]!r}; its classes are {_listed(names)}.",
            "Write one class a line into the files of the halves.",
        )
    a, b = (np.array(sorted({code[name] for name in half}), dtype=np.int64) for half in given)
    shared = np.intersect1d(a, b)
    if len(shared):
        raise SourceError(f"Class {names[shared[0]]!r} is in both halves; expected it in one.")
    if min(len(a), len(b)) < 2:
        raise SourceError(f"The halves have {len(a)} and {len(b)} classes; expected 2 or more each.")
    return {"A": a, "B": b}


def _listed(names: Sequence[str], longest: int = 12) -> str:
    shown = ", ".join(names[:longest])
    return shown if len(names) <= longest else f"{shown} and {len(names) - longest} more"
