"""How an image becomes the network's input: decoded mode, resize, crop; and its views.

A `Preprocess` is part of every fingerprint. It imports no torch: uint8 pixels are resized and cropped here;
`mean` and `std` are only stored here, and applied inside the network's graph.

A view is the mirror image, or a random resized crop, flipped and with other colours. The random numbers of
the latter come from the recipe's seed, the image's digest and the view's number, so it depends neither on the
order of images nor on the thread that makes it.

Shapes: V views, H, W height and width, C channels; pixels are (H, W, C) uint8, views (V, H, W, C) uint8.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bottleneck.errors import ArtifactError, BottleneckError, counted
from bottleneck.names import DECODINGS, EXACT
from bottleneck.records import are_numbers, is_flag, is_integer, is_number, is_text, require_fields
from bottleneck.versions import package_version

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_SIZE = 8192  # pixels a side; the largest published ConvNet inputs are below 1,000
ELONGATED = 8  # long : short side from which the crop is resized alone


class Geometry(NamedTuple):
    """Resize to (height, width), then cut size × size at (top, left)."""

    height: int
    width: int
    top: int
    left: int


@dataclass(frozen=True)
class Preprocess:
    """Decode to `mode`, resize the shorter side to `resize`, cut the central `size` × `size`.

    The geometry is torchvision's `Resize` and `CenterCrop`, which timm uses too: the longer side is
    truncated to an integer, the crop's corner rounded half to even.

    Parameters
    ----------
    size : int
        The network's input is `size` × `size` pixels.
    resize : int
        Shorter side in pixels after resizing, at least `size`.
    interpolation : str
        One of `INTERPOLATIONS`, with antialiasing.
    mean, std : tuple of float
        One per channel, on the 0…1 scale.
    mode : {"RGB", "L", "RGBA"}
        What images are decoded to.
    squash : bool
        Resize to `size` × `size` at once, giving up the aspect ratio; nothing is cut off.
    decoding : {"exact", "scaled"}
        "scaled" lets libjpeg decode a JPEG at 1/2, 1/4 or 1/8 of its size where that leaves at least twice
        `resize`: other pixels, and less work. Other formats are decoded exactly.
    """

    size: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str = "RGB"
    squash: bool = False
    decoding: str = EXACT

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if self.mode not in CHANNELS:
            raise BottleneckError(
                f"Image mode {self.mode!r} is unknown; expected one of {', '.join(sorted(CHANNELS))}."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise BottleneckError(
                f"Interpolation {self.interpolation!r} is unknown; "
                f"expected one of {', '.join(sorted(INTERPOLATIONS))}."
            )
        if self.decoding not in DECODINGS:
            raise BottleneckError(
                f"Decoding {self.decoding!r} is unknown; expected {' or '.join(DECODINGS)}."
            )
        if not 1 <= self.size <= MAX_SIZE:
            raise BottleneckError(f"Image size {self.size} is out of range; expected 1 to {MAX_SIZE} pixels.")
        if not self.size <= self.resize <= 4 * MAX_SIZE:
            raise BottleneckError(
                f"Images would be resized to {self.resize} pixels and cut to {self.size}; "
                f"expected a shorter side of {self.size} to {4 * MAX_SIZE} pixels."
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise BottleneckError(
                f"Mode {self.mode} has {self.channels} channels, "
                f"but {len(self.mean)} means and {len(self.std)} standard deviations are given."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and min(self.std) > 0):
            raise BottleneckError("Means and standard deviations must be finite, the latter above 0.")

    @property
    def channels(self) -> int:
        """Channels of the decoded image: 1, 3 or 4."""
        return CHANNELS[self.mode]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, which the fingerprint covers.

        `decoding` is only there if it is not exact: caches of before there was a choice are exact.
        """
        record = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        if self.decoding == EXACT:
            del record["decoding"]
        return record

    @classmethod
    def from_json(cls, record: Any) -> Preprocess:
        """Rebuild from `to_json`.

        Raises
        ------
        ArtifactError
            A field is missing, unknown, of the wrong type or out of range.
        """
        optional = _OPTIONAL if isinstance(record, dict) and "decoding" in record else {}
        require_fields(record, _CHECKS | optional, "Preprocessing")
        try:
            return cls(**record)
        except BottleneckError as error:
            raise ArtifactError(error.message) from error

    @property
    def exact(self) -> Preprocess:
        """The same with exact decoding: what the network takes does not depend on the decoding."""
        return replace(self, decoding=EXACT)

    def override(
        self,
        image_size: int | None = None,
        crop: float | str | None = None,
        decoding: str | None = None,
    ) -> Preprocess:
        """Return the preprocessing for another input size, crop or decoding.

        Applying it twice changes nothing more.

        Parameters
        ----------
        image_size : int, optional
            Input side in pixels; `resize` keeps its ratio to it.
        crop : float or "squash", optional
            Fraction of the resized shorter side that is kept, in (0, 1], or "squash" to cut nothing and give
            up the aspect ratio.
        decoding : "exact" or "scaled", optional
        """
        new = self if decoding is None else replace(self, decoding=decoding)
        if image_size is not None:
            new = replace(
                new, size=image_size, resize=max(image_size, round(image_size * new.resize / new.size))
            )
        if crop == "squash":
            return replace(new, resize=new.size, squash=True)
        if crop is not None:
            if isinstance(crop, str | bool) or not 0 < crop <= 1:
                raise BottleneckError(f"Crop {crop!r} is invalid; expected a number in (0, 1] or 'squash'.")
            new = replace(new, resize=round(new.size / crop), squash=False)
        return new

    def geometry(self, height: int, width: int) -> Geometry:
        """Return to what size an image of `height` × `width` pixels is resized, and where it is cut."""
        if self.squash:
            return Geometry(self.size, self.size, 0, 0)
        short, long = sorted((height, width))
        stretched = self.resize * long // short
        height, width = (stretched, self.resize) if height >= width else (self.resize, stretched)
        return Geometry(height, width, round((height - self.size) / 2), round((width - self.size) / 2))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Resize and cut an image of mode `self.mode` to (size, size, C) uint8."""
        width, height = image.size
        to = self.geometry(height, width)
        method = INTERPOLATIONS[self.interpolation]
        if max(to.height, to.width) < ELONGATED * min(to.height, to.width):
            corners = (to.left, to.top, to.left + self.size, to.top + self.size)
            image = image.resize((to.width, to.height), method).crop(corners)
        else:  # the whole strip could take gigabytes, so only what is kept of it is computed
            x, y = width / to.width, height / to.height
            box = (to.left * x, to.top * y, (to.left + self.size) * x, (to.top + self.size) * y)
            image = image.resize((self.size, self.size), method, box=box)
        return np.asarray(image).reshape(self.size, self.size, self.channels)


_CHECKS = {
    "size": is_integer,
    "resize": is_integer,
    "interpolation": is_text,
    "mean": are_numbers,
    "std": are_numbers,
    "mode": is_text,
    "squash": is_flag,
}
_OPTIONAL = {"decoding": is_text}


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
        installed = self.torchvision or (package_version("torchvision") or "").partition("+")[0]
        object.__setattr__(self, "torchvision", installed)
        if not 1 <= self.count <= 1000:
            raise BottleneckError(
                f"{counted(self.count, 'view is', 'views are')} asked for; expected 1 to 1000."
            )
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
        require_fields(record, _VIEW_CHECKS, "A recipe of views")
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


@dataclass(frozen=True)
class Mirror:
    """One view: the image mirrored left to right, then resized and cut as the image itself is."""

    count: int = 1

    def to_json(self) -> dict[str, Any]:
        """What the fingerprint covers."""
        return {"count": self.count, "mirror": True}


MIRROR = Mirror()
Views = ViewRecipe | Mirror


def views_from_json(record: Any) -> Views:
    """Rebuild a recipe of views from its `to_json`. Raises ArtifactError as `ViewRecipe.from_json` does."""
    return MIRROR if record == MIRROR.to_json() else ViewRecipe.from_json(record)


_VIEW_CHECKS = {
    **dict.fromkeys(("count", "seed"), is_integer),
    **dict.fromkeys(("scale", "ratio"), are_numbers),
    **dict.fromkeys(("flip", "brightness", "contrast", "saturation", "hue"), is_number),
    "torchvision": is_text,
}
