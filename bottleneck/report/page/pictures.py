"""The images of a page, and overlays of where the model looked, as one sprite of WebP thumbnails.

Each use of an image gives it a weight. Where the budget is short, images of the least weight are left out,
and the page shows their names alone. Images are read only where `extraction.cached_source` trusts the cache.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BottleneckError, Note, counted, verb
from bottleneck.extraction.cached_source import source_of
from bottleneck.extraction.config import EngineConfig
from bottleneck.models.attribution import Explainer
from bottleneck.models.classifier import open_model
from bottleneck.models.config import ExplainConfig
from bottleneck.progress import SILENT, Reporter
from bottleneck.report.explain import training_images
from bottleneck.report.image_sheets import thumbnails
from bottleneck.report.overlays import overlay
from bottleneck.store.reader import FeatureCache

SIDE = 72  # pixels of a thumbnail
QUALITY = 60
TYPICAL_BYTES = 1500  # of a thumbnail, before any is encoded
WIDEST = 160  # thumbnails of a row of the sprite; WebP allows 16,383 pixels
MOST = WIDEST * WIDEST
LEGEND = "A second picture is where it looked: yellow speaks for the predicted class, blue against it."
PAIR, MISTAKE, CELL, POINT, HIT = 5, 4, 3, 2, 1  # weights


@dataclass(frozen=True)
class Sprite:
    """One picture of many thumbnails. place : of the images that have one, by their number."""

    data: bytes = b""
    columns: int = 1
    rows: int = 0
    place: dict[int, int] = field(default_factory=dict)


class Pictures:
    """The images that a page shows, by number."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._number: dict[str, int] = {}
        self._weight: list[float] = []
        self.made: dict[int, np.ndarray] = {}  # by number: pictures that are no image of the cache

    def want(self, name: str, weight: float) -> int:
        """Return the number of the image `name`, which is wanted at least with this weight."""
        number = self._number.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
            self._weight.append(weight)
        self._weight[number] = max(self._weight[number], weight)
        return number

    def add(self, name: str, pixels: np.ndarray, weight: float = MISTAKE) -> int:
        """Return the number of a picture that was made, pixels (H, W, 3) uint8."""
        number = self.want(name, weight)
        self.made[number] = np.asarray(Image.fromarray(pixels).convert("RGB").resize((SIDE, SIDE)))
        return number

    def read(
        self, cache: FeatureCache | None, budget: int, reporter: Reporter = SILENT
    ) -> tuple[dict[int, np.ndarray], list[Note]]:
        """Read the images of most weight that fit into `budget` bytes. Return pixels by number, and notes."""
        order = sorted(range(len(self.names)), key=lambda number: (-self._weight[number], number))
        order = order[: min(MOST, max(0, int(1.3 * budget / TYPICAL_BYTES)))]
        pixels = {number: self.made[number] for number in order if number in self.made}
        wanted = {self.names[number]: number for number in order if number not in self.made}
        if cache is None or not wanted:
            return pixels, []
        try:
            source = source_of(cache)
        except BottleneckError as error:
            text = f"No image is shown: {error.message} {error.hint}".strip()
            return pixels, [Note("images-not-shown", text, details={"images": len(wanted)})]
        preprocess = Preprocess.from_json(cache.spec.preprocess).override(image_size=SIDE)
        with reporter.step("Reading images", total=len(wanted), unit="") as advance:
            read = thumbnails(source, list(wanted), preprocess)
            advance(len(wanted))
        pixels |= {wanted[name]: picture for name, picture in read.items() if not isinstance(picture, str)}
        reasons = [(name, picture) for name, picture in read.items() if isinstance(picture, str)]
        if not reasons:
            return pixels, []
        text = f"{len(reasons):,} of {counted(len(wanted), 'image')} cannot be read and "
        text += f"{verb(len(reasons))} shown by name; {reasons[0][0]}: {reasons[0][1]}."
        return pixels, [Note("images-unreadable", text, details={"images": len(reasons)})]

    def left_out(self, shown: int) -> list[Note]:
        """Return a note where the budget left fewer thumbnails than there are images."""
        if shown >= len(self.names):
            return []
        text = (
            f"{shown:,} of {counted(len(self.names), 'thumbnail')} {verb(shown)} in the "
            "page, to keep to the size of the page; "
            "--max-size allows more."
        )
        return [Note("thumbnails-left-out", text, details={"shown": shown, "images": len(self.names)})]

    def sprite(self, pixels: dict[int, np.ndarray], budget: int) -> Sprite:
        """Encode the thumbnails of most weight that fit into `budget` bytes of base64."""
        order = sorted(pixels, key=lambda number: (-self._weight[number], number))
        while order:
            made = _encoded([pixels[number] for number in order])
            size = math.ceil(len(made[0]) / 3) * 4
            if size <= budget:
                data, columns, rows = made
                return Sprite(data, columns, rows, {number: at for at, number in enumerate(order)})
            order = order[: int(min(0.95, 0.97 * budget / size) * len(order))]
        return Sprite()


def _encoded(tiles: list[np.ndarray]) -> tuple[bytes, int, int]:
    """Return a WebP file of the tiles row by row, and its columns and rows of tiles."""
    columns = min(WIDEST, math.ceil(math.sqrt(len(tiles))))
    rows = math.ceil(len(tiles) / columns)
    sheet = np.full((rows * SIDE, columns * SIDE, 3), 255, np.uint8)
    for at, tile in enumerate(tiles):
        top, left = divmod(at, columns)
        sheet[top * SIDE : (top + 1) * SIDE, left * SIDE : (left + 1) * SIDE] = tile
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "WEBP", quality=QUALITY, method=2)
    return file.getvalue(), columns, rows


def overlays(
    path: Path, cache: FeatureCache, rows: np.ndarray, options: LoadOptions, pictures: Pictures
) -> tuple[dict[int, int], list[Note]]:
    """Return by sample of the cache the number of its overlay for the predicted class, and notes.

    Samples whose image cannot be read have none; where the head has no places, or the network cannot be
    loaded, there is none at all, which is noted.
    """
    found: dict[int, int] = {}
    try:
        source = source_of(cache).take(rows)
        classifier = open_model(path, options, EngineConfig())
        explainer = Explainer(classifier, ExplainConfig(output=None))
        if explainer.exact:
            explainer.compare_with(training_images(cache), cache.path.name)
        row_of = dict(zip(source.samples.key, rows.tolist(), strict=True))
        for one in explainer.explain(source):
            row = row_of[one.sample]
            if one.predicted and row not in found:
                drawn = overlay(one, source, classifier.trunk.preprocess, side=4 * SIDE)
                square = np.asarray(ImageOps.fit(drawn, (SIDE, SIDE)))
                found[row] = pictures.add(f"where it looked: {one.images[0]}", square)
        return found, list(explainer.notes)
    except (BottleneckError, OSError) as error:
        return found, [Note("mistakes-not-explained", f"Where the model looked is not shown: {error}")]
