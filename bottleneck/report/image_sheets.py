"""Sheets of many small images: neighbours with their names, first kernels, patches that excite a channel.

Images are read again from their source and cut as the network sees them. One that cannot be read is an empty
frame with the reason.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from bottleneck.data.loader import load_images
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source, image_files
from bottleneck.errors import BottleneckError, counted, verb
from bottleneck.extraction.cached_source import source_of
from bottleneck.files import whole_file
from bottleneck.report.figures import BLUE, drawable, drawing
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.similar.similar import Similar
from bottleneck.threads import available_cores

if TYPE_CHECKING:
    from bottleneck.backbones.patches import Patches


MOST_LINES, MOST_TILES = 10, 12  # of tiles on a sheet, of tiles after the first of a strip
ACROSS = 4  # tiles in a line, so that a sheet is read at a width of 800 pixels
SIDE, GAP, TITLE, CAPTION = 180, 12, 24, 52  # pixels
DPI = 100
COLUMNS, BOLD_COLUMNS = 26, 21  # characters that are as wide as a tile, of names and of titles
CELL, CELL_GAP = 64, 4  # pixels a side of a kernel or patch, and between two
CELL_PITCH = CELL + CELL_GAP
LABEL, ROW_NAME = 18, 100  # pixels: height of a kernel's number, width of a row's name
MOST_KERNELS_ACROSS = 8  # so that a sheet is read at a width of 800 pixels
LEAST_WIDTH = 520  # pixels, for the title
LINE = 22  # pixels, height of a line of text
EMPTY, FRAME, REASON = "#f2f2f2", "#999999", "#a02020"


@dataclass(frozen=True)
class Tile:
    """An image by its key, with a note below its name. marked : the others are compared with it.

    caption : lines below the picture, in place of name and note.
    """

    image: str
    note: str = ""
    marked: bool = False
    caption: Sequence[str] = ()

    @property
    def lines(self) -> list[str]:
        """Return the lines below the picture."""
        folder, _, name = self.image.rpartition("/")
        return list(self.caption) or [line for line in (folder, name, self.note) if line]


@dataclass(frozen=True)
class Strip:
    """Tiles with a title, a few in a line."""

    title: str
    tiles: Sequence[Tile]

    @property
    def lines(self) -> int:
        """Return how many lines the tiles take."""
        return max(1, -(-len(self.tiles) // ACROSS))


def similar_sheet(result: Similar, path: str | Path) -> dict[str, str]:
    """Draw the result of `similar` to a PNG: a strip for each image with its neighbours, and for each group.

    At most 10 lines of 4 tiles are drawn, fewer neighbours of each image where there are many; a last line
    says what was left out.

    Returns
    -------
    dict
        The reason, by name, why an image could not be read.
    """
    groups = result.groups()
    total = len(result.images) + len(groups)
    lines = max(1, MOST_LINES // max(1, total))  # of each strip
    most = min(MOST_TILES + 1, lines * ACROSS)
    strips = [
        Strip(image, [Tile(image, marked=True), *(Tile(key, f"cosine {cosine:.4f}") for key, cosine in near)])
        for (image, near), _ in zip(result.neighbours(), range(MOST_LINES), strict=False)
    ]
    strips += [
        Strip(
            f"Group {number} of {len(groups)}: {counted(len(group), 'image')}", [Tile(key) for key in group]
        )
        for number, group in enumerate(groups[:MOST_LINES], 1)
    ]
    shown = [Strip(strip.title, strip.tiles[:most]) for strip in strips[: MOST_LINES // lines]]
    wanted = {tile.image for strip in shown for tile in strip.tiles}
    pictures = _pictures(result, sorted(wanted))
    more = (
        [f"{len(shown)} of {counted(total, 'row')} {verb(len(shown))} drawn."] if total > len(shown) else []
    )
    cut = max((len(strip.tiles) for strip in strips), default=0)
    more += [f"Of {cut} images in a row the first {most} are drawn."] if cut > most else []
    contact_sheet(shown, pictures, path, footer=" ".join(more))
    return {key: picture for key, picture in pictures.items() if isinstance(picture, str)}


def contact_sheet(
    strips: Sequence[Strip], pictures: dict[str, np.ndarray | str], path: str | Path, footer: str = ""
) -> Path:
    """Draw strips of tiles to a PNG.

    pictures : by key, an image (H, W, 3) uint8 or the reason why it could not be read.
    """
    columns = min(ACROSS, max((len(strip.tiles) for strip in strips), default=1))
    lines = sum(strip.lines for strip in strips)
    below = wrap(footer, COLUMNS * columns)
    height = TITLE * max(1, len(strips)) + (SIDE + CAPTION + GAP) * max(1, lines) + TITLE * len(below)
    size = (GAP + columns * (SIDE + GAP), GAP + height)
    with drawing(path, size[0] / DPI, size[1] / DPI, dpi=DPI, font_size=8) as figure:
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))
        axes.set_axis_off()
        top = GAP
        for strip in strips:
            axes.text(
                GAP, top, _cut(strip.title, BOLD_COLUMNS * columns), va="top", fontsize=9, weight="bold"
            )
            for number, tile in enumerate(strip.tiles):
                line, column = divmod(number, ACROSS)
                at = GAP + column * (SIDE + GAP), top + TITLE + line * (SIDE + CAPTION + GAP)
                _draw(axes, tile, pictures[tile.image], *at)
            top += TITLE + strip.lines * (SIDE + CAPTION + GAP)
        if not strips:
            axes.text(GAP, GAP, "No look-alikes.", va="top", fontsize=9)
        axes.text(GAP, size[1] - GAP, "\n".join(below), va="bottom", fontsize=9)
    return Path(path)


def thumbnails(source: Source, keys: Sequence[str], preprocess: Preprocess) -> dict[str, np.ndarray | str]:
    """Return by key each image (H, W, 3) uint8, cut by `preprocess`, or the reason why it cannot be read."""
    pictures: dict[str, np.ndarray | str] = {}
    of_digest: dict[bytes | None, np.ndarray] = {}
    for image in load_images(source, keys, preprocess, workers=available_cores()):
        if image.error is not None:
            pictures[image.key] = image.error
            continue
        if image.pixels is not None:  # the loader gives a copy's pixels only once
            pixels = image.pixels[..., 0] if preprocess.channels == 1 else image.pixels
            of_digest[image.digest] = np.asarray(Image.fromarray(pixels).convert("RGB"))
        pictures[image.key] = of_digest[image.digest]
    return pictures


def _pictures(result: Similar, names: Iterable[str]) -> dict[str, np.ndarray | str]:
    """Read images of the cache from its source, others from their files."""
    keys = set(result.keys)
    cached, others = ([name for name in names if (name in keys) == inside] for inside in (True, False))
    with FeatureCache(result.cache) as cache:
        pictures = cached_thumbnails(cache, cached)
        preprocess = _tile_preprocess(cache)
    return pictures | (thumbnails(image_files(others), others, preprocess) if others else {})


def _tile_preprocess(cache: FeatureCache) -> Preprocess:
    return Preprocess.from_json(cache.spec.preprocess).override(image_size=SIDE)


def cached_thumbnails(cache: FeatureCache, keys: Sequence[str]) -> dict[str, np.ndarray | str]:
    """Return `thumbnails` of images of a cache for tiles; the reason for all where the source is gone."""
    try:
        return thumbnails(source_of(cache), keys, _tile_preprocess(cache)) if keys else {}
    except BottleneckError as error:
        return dict.fromkeys(keys, str(error).rstrip("."))


def _draw(axes: Axes, tile: Tile, picture: np.ndarray | str, left: int, top: int) -> None:
    """Draw one tile: picture or reason, frame, name and note."""
    edge, width = (BLUE, 3.0) if tile.marked else (FRAME, 0.6)
    face = EMPTY if isinstance(picture, str) else "none"
    if isinstance(picture, str):
        reason = "\n".join(wrap(drawable(picture, 130), COLUMNS))
        axes.text(left + SIDE / 2, top + SIDE / 2, reason, ha="center", va="center", color=REASON)
    else:
        box = (left, left + SIDE, top + SIDE, top)
        axes.imshow(picture, extent=box, aspect="auto", interpolation="nearest", zorder=1)
    axes.add_patch(
        Rectangle((left, top), SIDE, SIDE, facecolor=face, edgecolor=edge, linewidth=width, zorder=0.5)
    )
    lines = [_cut(line, COLUMNS) for line in tile.lines]
    axes.text(left, top + SIDE + 4, "\n".join(lines), va="top", linespacing=1.25)


def _cut(text: str, columns: int) -> str:
    """Return the end of `text`, where names differ, as it can be drawn in `columns` characters."""
    shown_last: list[str] = []
    free = columns
    for character in reversed(unicodedata.normalize("NFC", text)):
        shown = drawable(character)
        free -= sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in shown.lstrip("\\"))
        if free < 1 and len(shown_last) + 1 < len(text):
            return "…" + "".join(reversed(shown_last))
        shown_last.append(shown)
    return "".join(reversed(shown_last))


def draw_filters(kernels: np.ndarray, path: str | Path) -> Path:
    """Draw the kernels of a convolution as a grid of pictures, with a title, each with its channel's number.

    kernels : float (filters, channels, k, k). Three channels are drawn as colours, any other number as their
    mean. Each kernel is scaled to the full range, with 0 as the middle grey.
    """
    kernels = np.asarray(kernels, dtype=np.float64)
    count, channels, height, width = kernels.shape
    if channels != 3:
        kernels = kernels.mean(axis=1, keepdims=True).repeat(3, axis=1)
    reach = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    pictures = (127.5 + 127.5 * kernels / np.where(reach == 0, 1, reach)).round().astype(np.uint8)
    title = [f"First convolution: {count} kernels of {height} × {width}, by their channel."]
    title += ["Middle grey is 0; each kernel has its own scale."]
    title += ["" if channels == 3 else f"Mean of {channels} input channels."]
    columns = min(MOST_KERNELS_ACROSS, count)
    lines = [part for text in title for part in wrap(text, _characters_in(columns * CELL_PITCH))]
    top, pitch = LINE * len(lines), CELL_PITCH + LABEL
    sheet, draw = _sheet(columns * CELL_PITCH, top + -(-count // columns) * pitch)
    _write(draw, (CELL_GAP, 2), "\n".join(lines))
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        left, upper = CELL_GAP + column * CELL_PITCH, top + CELL_GAP + row * pitch
        _paste(sheet, picture.transpose(1, 2, 0), (left, upper), smooth=False)
        _write(draw, (left, upper + CELL), str(i))
    return _save(sheet, path)


def draw_patches(nodes: Sequence[Patches], path: str | Path) -> Path:
    """Draw a band for each node, with a row for each channel: its number, then its strongest patches."""
    columns = max(patches.crops.shape[1] for patches in nodes)
    rows = sum(len(patches.crops) for patches in nodes)
    sheet, draw = _sheet(ROW_NAME + columns * CELL_PITCH, LINE * (2 * len(nodes) + 1) + rows * CELL_PITCH)
    _write(draw, (CELL_GAP, 2), "A row for each channel: the patches that excite it most, strongest first.")
    top = LINE
    for patches in nodes:
        side = patches.crops.shape[2]
        _write(draw, (CELL_GAP, top), f"Node {patches.node}")
        text = f"Patches of {side} × {side} pixels of the network's input"
        _write(draw, (CELL_GAP, top + LINE - 2), text)
        top += 2 * LINE
        for channel, crops in zip(patches.channels, patches.crops, strict=True):
            _write(draw, (CELL_GAP, top + CELL // 2 - 8), f"channel {channel}")
            for column, crop in enumerate(crops):
                _paste(sheet, crop, (ROW_NAME + CELL_GAP + column * CELL_PITCH, top + CELL_GAP), smooth=True)
            top += CELL_PITCH
    return _save(sheet, path)


def _sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (max(width, LEAST_WIDTH) + CELL_GAP, height + CELL_GAP), "white")
    return sheet, ImageDraw.Draw(sheet)


def _characters_in(width: int) -> int:
    """Return how many characters of a line are as wide as `width` pixels."""
    return max(width, LEAST_WIDTH) // 8


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str) -> None:
    font = ImageFont.truetype(findfont("DejaVu Sans"), 13)  # Pillow's own lacks ×
    draw.text(at, text, "black", font, spacing=LINE - 16)


def _paste(sheet: Image.Image, picture: np.ndarray, at: tuple[int, int], *, smooth: bool) -> None:
    """Paste a picture (H, W, 1 | 3 | 4) into a cell whose corner is `at`."""
    tile = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).convert("RGB")
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    sheet.paste(tile.resize((CELL, CELL), method), at)


def _save(sheet: Image.Image, path: str | Path) -> Path:
    with whole_file(Path(path)) as file:
        sheet.save(file, format="PNG")
    return Path(path)
