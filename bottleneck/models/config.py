"""Settings of functions on models, with their defaults. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bottleneck.errors import BottleneckError


@dataclass(frozen=True)
class ExplainConfig:
    """Settings of `explain`.

    class_names : classes or labels that are explained beside the predicted one.
    exact : explain at the map that the head reads, also for a fine-tuned network, and refuse what cannot be
        exact.
    flip : explain the mean of each image and of its mirror image.
    output : PNG file of the contact sheet; the overlays go into the folder of its name without the suffix.
        None draws nothing.
    """

    class_names: tuple[str, ...] = ()
    exact: bool = False
    flip: bool = False
    output: str | Path | None = "explained.png"

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.output is not None and Path(self.output).suffix.lower() != ".png":
            raise BottleneckError(f"The sheet {self.output} has another suffix than .png.")
