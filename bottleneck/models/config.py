"""Settings of functions on models, with their defaults. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bottleneck.errors import BottleneckError

REJECT = 0.05  # of known samples, where `evaluate --unknown` is given without a rate


@dataclass(frozen=True)
class TrustConfig:
    """When a model says that it does not know.

    reject : share of samples like those of training that may be called unknown; None calls none so.
    coverage : probability with which a set of classes contains the true one; None makes no sets.
    """

    reject: float | None = None
    coverage: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < 1:
                example = {"reject": 0.05, "coverage": 0.9}[name]
                raise BottleneckError(
                    f"--{name} is {value}; expected a share between 0 and 1, such as {example}."
                )


@dataclass(frozen=True)
class ExplainConfig:
    """Settings of `explain`.

    class_names : classes or labels that are explained beside the predicted one.
    exact : explain at the map that the head reads, also for a fine-tuned network, and refuse what cannot be
        exact.
    flip : explain the mean of each image and of its mirror image.
    reference : cache (its train split) or images whose mean map contributes nothing; by default the mean of
        the training features, which is the same at all places of a cell that is pooled.
    output : PNG file of the contact sheet; the overlays go into the folder of its name without the suffix.
        The default name gets a number where such a file or folder exists. None draws nothing.
    """

    class_names: tuple[str, ...] = ()
    exact: bool = False
    flip: bool = False
    reference: str | Path | None = None
    output: str | Path | None = "explained.png"

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.output is not None and Path(self.output).suffix.lower() != ".png":
            raise BottleneckError(f"The sheet {self.output} has another suffix than .png.")
