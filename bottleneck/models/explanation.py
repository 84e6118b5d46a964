"""The explanation of one logit of one sample: a contribution of each place of its images.

Shapes: M images per sample, maps of h × w places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)
class Explanation:
    """The terms of one logit of one sample: logit = intercept + Σ maps + Σ unplaced + remainder.

    sample : its name. images : keys of its M images, or their whole paths, of one of several sources.
    label : the class or label that is explained; of a regression the target.
    predicted : whether the model predicts it. confidence : its probability; None for a regression.
    logit : before the temperature; of a regression the value.
    intercept : where the map is exact the logit of the mean (see the module), else of the last layer.
    maps : for each image, by node, the contributions (h, w) of its places, float64.
    unplaced : contributions that have no place, by name: of covariates, and of a node's class token.
    exact : whether the logit is linear in the maps, so that the remainder is rounding.
    size : side of the network's input in pixels, which the places of every map share.
    """

    sample: str
    images: tuple[str, ...]
    label: str
    predicted: bool
    confidence: float | None
    logit: float
    intercept: float
    maps: tuple[dict[str, np.ndarray], ...]
    unplaced: dict[str, float]
    exact: bool
    size: int

    @property
    def sums(self) -> tuple[float, ...]:
        """Return for each image the contributions of all its places together."""
        return tuple(float(sum(values.sum() for values in maps.values())) for maps in self.maps)

    @property
    def remainder(self) -> float:
        """Return what of the logit no term accounts for."""
        return self.logit - self.intercept - sum(self.sums) - sum(self.unplaced.values())

    def smooth(self, image: int = 0) -> np.ndarray:
        """Return the contribution of each pixel of the network's input, (size, size) float32, of all nodes.

        They are interpolated, so that a picture has no steps from place to place.
        """
        total = np.zeros((self.size, self.size), np.float32)
        for values in self.maps[image].values():
            density = Image.fromarray((values * values.size / self.size**2).astype(np.float32))
            total += np.asarray(density.resize((self.size, self.size), Image.Resampling.BILINEAR))
        return total
