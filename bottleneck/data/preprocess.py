"""How an image becomes the network's input: decoded mode, resize, crop.

A `Preprocess` is part of every fingerprint. It imports no torch: uint8 pixels are resized and cropped here;
`mean` and `std` are only stored here, and applied inside the network's graph.

Shapes: H, W height and width, C channels; pixels are (H, W, C) uint8.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bottleneck.errors import ArtifactError, BottleneckError
from bottleneck.records import are_numbers, is_flag, is_integer, is_text, require_fields

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
    """

    size: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str = "RGB"
    squash: bool = False

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
        """Return the fields as JSON values, which the fingerprint covers."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, record: Any) -> Preprocess:
        """Rebuild from `to_json`.

        Raises
        ------
        ArtifactError
            A field is missing, unknown, of the wrong type or out of range.
        """
        require_fields(record, _CHECKS, "Preprocessing")
        try:
            return cls(**record)
        except BottleneckError as error:
            raise ArtifactError(error.message) from error

    def override(self, image_size: int | None = None, crop: float | str | None = None) -> Preprocess:
        """Return the preprocessing for another input size or crop. Applying it twice changes nothing more.

        Parameters
        ----------
        image_size : int, optional
            Input side in pixels; `resize` keeps its ratio to it.
        crop : float or "squash", optional
            Fraction of the resized shorter side that is kept, in (0, 1], or "squash" to cut nothing and give
            up the aspect ratio.
        """
        new = self
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
