"""How similar the user's images are to those that a network was trained on, without having those images.

A network carries statistics of its training images in its BatchNorm buffers: mean and variance of every
channel. Their distance from the statistics of the user's images is one measure. The other, and the only one
without BatchNorm, is how the source classifier behaves on the images: how unsure it is, and how many of its
classes it uses. The scale of such distances differs between networks. It is calibrated by anchors: images
whose similarity to ImageNet's photographs is known. They are made from what scikit-learn ships: two
photographs, and digits of 8 × 8 pixels.

Shapes: N images, H × W pixels, Z classes of the source classifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle
from torchvision.ops import FrozenBatchNorm2d

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.extractor import Normalise
from bottleneck.data.preprocess import Preprocess
from bottleneck.progress import SILENT, Reporter

SIMILAR = ("photographs", "inverted photographs", "grey photographs")
BETWEEN = ("texture of photographs",)
DIFFERENT = ("photographs of 32 pixels", "digits", "noise")
ANCHORS = len(SIMILAR + BETWEEN + DIFFERENT)
PER_ANCHOR = 16  # images
SIDE = 224  # pixels a side of an anchor's images
TILES = 8  # a side, of the texture-only version
SMALL = 32  # pixels a side of the small photographs

BATCH = 16  # images that pass the network at once
QUARTERS = 4  # parts of the network whose distances are averaged separately
GRID = 28  # positions a side of a feature map that are used, at least
SURE, UNSURE = 0.9, 0.7  # probabilities from which a verdict is called clear, or probable
EDGE = 0.9  # probability that is given to the anchor of either kind that is nearest to the boundary


def anchors() -> Iterator[tuple[str, list[Image.Image]]]:
    """Yield the name and the RGB images of every anchor; always the same images."""
    photographs = _photographs()
    yield "photographs", photographs
    yield "inverted photographs", [ImageOps.invert(image) for image in photographs]
    yield "grey photographs", [image.convert("L").convert("RGB") for image in photographs]
    rng = np.random.default_rng(1)
    yield "texture of photographs", [_shuffled(image, rng) for image in photographs]
    yield "photographs of 32 pixels", [image.resize((SMALL, SMALL)) for image in photographs]
    yield "digits", _digits()
    noise = rng.integers(0, 256, (PER_ANCHOR, SIDE, SIDE, 3), dtype=np.uint8)
    yield "noise", [Image.fromarray(pixels) for pixels in noise]


@cache
def _photographs() -> list[Image.Image]:
    """Squares cut at random from both photographs, with 40 to 100 % of their shorter side."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    whole = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    cuts = []
    for number in range(PER_ANCHOR):
        image = whole[number % len(whole)]
        side = int(rng.uniform(0.4, 1.0) * min(image.size))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        cuts.append(image.crop((left, top, left + side, top + side)))
    return cuts


def _shuffled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image's tiles in random order: its texture without its shapes."""
    step = SIDE // TILES
    pixels = np.asarray(image.resize((SIDE, SIDE)))
    tiles = pixels.reshape(TILES, step, TILES, step, 3).swapaxes(1, 2).reshape(-1, step, step, 3)
    tiles = tiles[rng.permutation(len(tiles))]
    return Image.fromarray(tiles.reshape(TILES, TILES, step, step, 3).swapaxes(1, 2).reshape(SIDE, SIDE, 3))


def _digits() -> list[Image.Image]:
    from sklearn.datasets import load_digits

    digits = load_digits().images[:PER_ANCHOR]
    return [
        Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).convert("RGB") for pixels in digits
    ]


@dataclass(frozen=True)
class Reading:
    """How a network responds to n images.

    quarters : distance of the BatchNorm statistics in nats, mean over the layers of each quarter of the
        network; None without BatchNorm.
    entropy : mean entropy of the classifier's outputs divided by log Z, 0 (sure) … 1 (uniform).
    classes : effective number of classes in use, the exp of the entropy of the mean output.
    """

    quarters: tuple[float, ...] | None
    entropy: float
    classes: float
    n: int

    @property
    def distance(self) -> float:
        """Geometric mean of the quarters; the entropy if there are none."""
        if self.quarters is None:
            return self.entropy
        return float(np.exp(np.log(np.maximum(self.quarters, 1e-9)).mean()))


@dataclass(frozen=True)
class Similarity:
    """Similarity of some images to a network's training images.

    reading : of the images. anchors : readings by name of an anchor.
    probability : that the images are like the anchors in SIMILAR rather than like those in DIFFERENT.
    measure : "BatchNorm statistics" or "classifier behaviour".
    """

    reading: Reading
    anchors: dict[str, Reading]
    probability: float
    measure: str

    @property
    def similar(self) -> bool:
        """Whether the images are more likely similar to the training images than not."""
        return self.probability >= 0.5

    @property
    def nearest(self) -> str:
        """Name of the anchor with the nearest distance, by ratio."""
        return min(
            self.anchors, key=lambda name: abs(np.log(self.anchors[name].distance / self.reading.distance))
        )

    @property
    def text(self) -> str:
        """The verdict and how sure it is, as a clause."""
        sure = max(self.probability, 1 - self.probability)
        word = "clearly" if sure >= SURE else "probably" if sure >= UNSURE else "perhaps"
        kind = "similar to" if self.similar else "different from"
        lacks = "" if self.reading.quarters else ", as the network has no BatchNorm statistics"
        return (
            f"{word} {kind} the images that the network was trained on (probability {sure:.2f} "
            f"by {self.measure}{lacks}: distance {self.reading.distance:.3g}, like {self.nearest})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return verdict, readings and anchors."""
        return {
            "verdict": "similar" if self.similar else "different",
            "probability_similar": self.probability,
            "measure": self.measure,
            "distance": self.reading.distance,
            "nearest_anchor": self.nearest,
            **asdict(self.reading),
            "anchors": {name: {"distance": r.distance, **asdict(r)} for name, r in self.anchors.items()},
            "text": self.text,
        }


def similarity(
    backbone: Backbone,
    pixels: np.ndarray,
    preprocess: Preprocess | None = None,
    *,
    reporter: Reporter = SILENT,
) -> Similarity:
    """Compare images with those that `backbone` was trained on.

    pixels : (N, H, W, channels) uint8, made by `preprocess` (by default the backbone's). It takes a few dozen
        images; with fewer, the distance of the upper layers is overestimated.
    """
    preprocess = preprocess or backbone.preprocess
    known = {}
    with reporter.step("Comparing", total=len(pixels) + PER_ANCHOR * ANCHORS, unit="images") as advance:
        reading = read(backbone.module, preprocess, pixels)
        advance(len(pixels))
        for name, images in anchors():
            shown = np.stack([preprocess(image.convert(preprocess.mode)) for image in images])
            known[name] = read(backbone.module, preprocess, shown)
            advance(len(images))
    measure = "classifier behaviour" if reading.quarters is None else "BatchNorm statistics"
    return Similarity(reading, known, probability_similar(reading, known), measure)


def probability_similar(reading: Reading, known: dict[str, Reading]) -> float:
    """Return a logistic function of the log distance: 1/2 midway between the two kinds of anchors.

    It is EDGE at the largest distance of SIMILAR and 1 − EDGE at the smallest of DIFFERENT. If these are in
    the wrong order, the network cannot tell the kinds apart, and the result is always 1/2.
    """
    near = np.log(max(known[name].distance for name in SIMILAR))
    far = np.log(min(known[name].distance for name in DIFFERENT))
    if far <= near:
        return 0.5
    slope = 2 * np.log(EDGE / (1 - EDGE)) / (far - near)
    return float(1 / (1 + np.exp(slope * (np.log(reading.distance) - (near + far) / 2))))


@torch.inference_mode()
def read(module: nn.Module, preprocess: Preprocess, pixels: np.ndarray) -> Reading:
    """Run the whole network, in evaluation mode, over `pixels` (N, H, W, channels)."""
    normalise = Normalise(preprocess)
    batches = (normalise(part) for part in torch.from_numpy(pixels).split(BATCH))
    with _watched(module) as sums:
        logits = torch.cat([module(batch) for batch in batches]).double()
    outputs = torch.softmax(logits, dim=1)
    Z = outputs.shape[1]
    divergences = np.array([np.median(each.divergence()) for each in sums.values()])
    parts = np.array_split(divergences, min(QUARTERS, len(divergences))) if len(divergences) else None
    return Reading(
        quarters=None if parts is None else tuple(float(part.mean()) for part in parts),
        entropy=float(_entropy(outputs).mean() / np.log(Z)),
        classes=float(_entropy(outputs.mean(dim=0)).exp()),
        n=len(pixels),
    )


def _entropy(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities).sum(dim=-1)


class _Sums:
    """Running sums over the inputs of one BatchNorm layer, per channel."""

    def __init__(self, norm: _BatchNorm | FrozenBatchNorm2d) -> None:
        self.mean, self.variance = (norm.get_buffer(f"running_{name}").double() for name in ("mean", "var"))
        self.eps = float(norm.eps)
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Add a batch (B, channels, …). Deviations from the layer's mean are summed, to lose no digits.

        Of large maps a grid of positions is taken, since neighbouring positions are nearly equal.
        """
        if values.ndim == 4:
            step = max(1, min(values.shape[2:]) // GRID)
            values = values[:, :, ::step, ::step]
        axes = [axis for axis in range(values.ndim) if axis != 1]
        variance, mean = torch.var_mean(values, axes, correction=0)
        shift, n = mean.double() - self.mean, values.numel() // values.shape[1]
        self.count += n
        self.total = self.total + n * shift
        self.squares = self.squares + n * (variance.double() + shift**2)

    def divergence(self) -> np.ndarray:
        """Return (channels,) Jeffreys divergences KL(p‖q) + KL(q‖p) of two Gaussians, in nats.

        p has the mean and variance of the values added, q those of the layer's buffers.
        """
        shift = self.total / self.count
        p = (self.squares / self.count - shift**2).clamp_min(0) + self.eps
        q = self.variance + self.eps
        return (0.5 * (p / q + q / p - 2 + shift**2 * (1 / p + 1 / q))).numpy()


@contextmanager
def _watched(module: nn.Module) -> Iterator[dict[str, _Sums]]:
    """Yield a dict that collects, in the order of use, the sums of every BatchNorm layer with statistics."""
    sums: dict[str, _Sums] = {}

    def watch(name: str, norm: _BatchNorm | FrozenBatchNorm2d) -> RemovableHandle:
        return norm.register_forward_pre_hook(
            lambda _, inputs: sums.setdefault(name, _Sums(norm)).add(inputs[0])
        )

    hooks = [
        watch(name, child)
        for name, child in module.named_modules()
        if isinstance(child, FrozenBatchNorm2d)
        or (isinstance(child, _BatchNorm) and child.track_running_stats)
    ]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
