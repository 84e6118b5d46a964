"""Settings of `fit_heads`. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bottleneck.errors import FitError
from bottleneck.heads.config import DEFAULT_MEMORY, grid_of
from bottleneck.names import HEAD_KINDS, MULTI_CLASS, SCALES

MIN_MEMORY = 32 << 20


@dataclass(frozen=True)
class FitConfig:
    """How heads are fitted.

    head : one or several of `names.HEAD_KINDS`.
    C : inverse strength of the penalty: "auto" (`heads.config.AUTO_C`), a number, or several.
    cv : folds of cross-validation.
    scales : how blocks of inputs (nodes, images of a sample, covariates) are scaled, one of `names.SCALES`.
    class_weight : None, "balanced", or weights by class code.
    multi_class : one of `names.MULTI_CLASS`.
    one_standard_error : take the simplest head within one standard error of the best.
    shots : numbers of images per class in the k-shot curve. repeats : draws for each of them.
    views : fit logistic and ridge heads on the cached views; plain features are scored.
    memory : bytes for rows and work; rows that do not fit are read in blocks.
    device : "cpu", "cuda", "cuda:1" … or "auto".
    seed : of folds, draws and networks.
    """

    head: tuple[str, ...] = ("logistic",)
    C: str | float | tuple[float, ...] = "auto"
    cv: int = 5
    scales: str = SCALES[0]
    class_weight: str | Mapping[int, float] | None = None
    multi_class: str = MULTI_CLASS[0]
    one_standard_error: bool = False
    shots: tuple[int, ...] = ()
    repeats: int = 20
    views: bool = False
    memory: int = DEFAULT_MEMORY
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for kind in self.head:
            if kind not in HEAD_KINDS:
                raise FitError(f"There is no head {kind!r}; choose from {', '.join(HEAD_KINDS)}.")
        if self.multi_class not in MULTI_CLASS:
            raise FitError(f"multi_class is {self.multi_class!r}; expected {' or '.join(MULTI_CLASS)}.")
        if self.scales not in SCALES:
            raise FitError(f"scales is {self.scales!r}; expected {' or '.join(SCALES)}.")
        if self.cv < 2:
            raise FitError(f"cv is {self.cv}; expected 2 folds or more.")
        if any(k < 1 for k in self.shots) or self.repeats < 1:
            raise FitError(f"shots are {list(self.shots)}, drawn {self.repeats} times; expected 1 or more.")
        if self.memory < MIN_MEMORY:
            raise FitError(f"memory is {self.memory / 2**20:.0f} MiB; expected at least 32 MiB.")
        grid_of(self.C)
