"""Augmented views of an image: random resized crop, horizontal flip, colour jitter, the same on every run.

Each view's random numbers come from the recipe's seed, the image's digest and the view's number, so a view
depends neither on the order of images nor on the thread that makes it.

Shapes: V views, H, W height and width, C channels; views are (V, H, W, C) uint8.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image

from bottleneck.data.preprocess import INTERPOLATIONS, Preprocess
from bottleneck.errors import ArtifactError, BottleneckError
from bottleneck.records import are_numbers, is_integer, is_number, is_text, require_fields


@dataclass(frozen=True)
class ViewRecipe:
    """How augmented views are drawn. The defaults are those of torchvision's `RandomResizedCrop`, and
    the jitter of SimCLR at half strength.

    Parameters
    ----------
    count : int
        Views per image.
    seed : int
    scale : (float, float)
        Least and greatest fraction of the image's area that a crop covers.
    ratio : (float, float)
        Least and greatest width / height of a crop, drawn on a logarithmic scale.
    flip : float
        Probability of a horizontal flip.
    brightness, contrast, saturation : float
        Factors are drawn from 1 ± this.
    hue : float
        The hue is turned by up to ± this fraction of a whole turn, at most 0.5.
    torchvision : str
        Version of torchvision, whose functions do the jitter and may change; by default what is installed.
    """

    count: int
    seed: int = 0
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    torchvision: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(float(value) for value in self.scale))
        object.__setattr__(self, "ratio", tuple(float(value) for value in self.ratio))
        object.__setattr__(self, "torchvision", self.torchvision or version("torchvision").partition("+")[0])
        if not 1 <= self.count <= 1000:
            raise BottleneckError(f"{self.count} views are asked for; expected 1 to 1000.")
        if self.seed < 0:
            raise BottleneckError(f"The views' seed is {self.seed}; expected 0 or more.")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise BottleneckError(f"Crops have scale {self.scale}; expected (least, greatest) within 0 to 1.")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise BottleneckError(f"Crops have ratio {self.ratio}; expected (least, greatest) above 0.")
        if not (0 <= self.flip <= 1 and 0 <= self.hue <= 0.5):
            raise BottleneckError("Views need 0 <= flip <= 1 and 0 <= hue <= 0.5.")
        if not all(0 <= value <= 1 for value in (self.brightness, self.contrast, self.saturation)):
            raise BottleneckError("Views need brightness, contrast and saturation between 0 and 1.")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; what the fingerprint covers."""
        return asdict(self) | {"scale": list(self.scale), "ratio": list(self.ratio)}

    @classmethod
    def from_json(cls, record: Any) -> ViewRecipe:
        """Rebuild from `to_json`. Raises ArtifactError where a field is missing, unknown or out of range."""
        require_fields(record, _CHECKS, "A recipe of views")
        try:
            return cls(**record)
        except BottleneckError as error:
            raise ArtifactError(f"A recipe of views is invalid: {error}") from error

    def apply(self, image: Image.Image, preprocess: Preprocess, digest: bytes) -> np.ndarray:
        """Views of an image of mode `preprocess.mode`, (V, size, size, C) uint8.

        `digest` is the sha256 of the image's bytes.
        """
        entropy = int.from_bytes(digest, "big")
        views = [
            self._view(image, preprocess, np.random.default_rng([self.seed, entropy, number]))
            for number in range(self.count)
        ]
        return np.stack(views)

    def _view(self, image: Image.Image, preprocess: Preprocess, random: np.random.Generator) -> np.ndarray:
        box = self._crop(image.width, image.height, random)
        side = preprocess.size
        view = image.resize((side, side), INTERPOLATIONS[preprocess.interpolation], box=box)
        if random.random() < self.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(self._jitter(view, random)).reshape(side, side, preprocess.channels)

    def _crop(self, width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        """(left, upper, right, lower) of a crop within the image; of all of it where ten draws fail."""
        for _ in range(10):
            area = width * height * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = random.integers(0, [width - w + 1, height - h + 1]).tolist()
                return left, top, left + w, top + h
        return 0, 0, width, height

    def _jitter(self, view: Image.Image, random: np.random.Generator) -> Image.Image:
        """Brightness, contrast, saturation and hue, in random order."""
        from torchvision.transforms.v2 import functional

        changes = [
            (functional.adjust_brightness, 1, self.brightness),
            (functional.adjust_contrast, 1, self.contrast),
            (functional.adjust_saturation, 1, self.saturation),
            (functional.adjust_hue, 0, self.hue),
        ]
        for number in random.permutation(len(changes)):
            change, middle, reach = changes[number]
            if reach:
                view = change(view, middle + random.uniform(-reach, reach))
        return view


_CHECKS = {
    **dict.fromkeys(("count", "seed"), is_integer),
    **dict.fromkeys(("scale", "ratio"), are_numbers),
    **dict.fromkeys(("flip", "brightness", "contrast", "saturation", "hue"), is_number),
    "torchvision": is_text,
}
