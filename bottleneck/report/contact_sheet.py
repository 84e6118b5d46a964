"""Contact sheets: images side by side with their names, read again from where they came from.

Images are cut as the network sees them. One that cannot be read is an empty frame with the reason.

Pictures of what a network sees with: its first kernels, and the patches that excite its channels.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from bottleneck.data.loader import load_images
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source, image_files
from bottleneck.errors import BottleneckError
from bottleneck.extraction.cached_source import source_of
from bottleneck.report.figures import drawable, families
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.similar.similar import Similar
from bottleneck.threads import available_cores

if TYPE_CHECKING:
    from bottleneck.backbones.patches import Patches


_TILE = 64  # pixels of a kernel or patch in the picture
_GAP = 4
_TITLE = 22  # height of a line of text
_PAPER = (255, 255, 255)


def draw_filters(kernels: np.ndarray, path: str | Path) -> Path:
    """Draw the kernels of a convolution as a grid of pictures.

    kernels : float (F, C, k, k) with F filters. Three channels are drawn as colours, of other numbers the
    mean; each kernel is stretched to the full range by itself, with 0 as the middle grey.
    """
    kernels = np.asarray(kernels, dtype=np.float64)
    if kernels.shape[1] != 3:
        kernels = kernels.mean(axis=1, keepdims=True).repeat(3, axis=1)
    reach = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    pictures = (127.5 + 127.5 * kernels / np.where(reach == 0, 1, reach)).round().astype(np.uint8)
    columns = int(np.ceil(np.sqrt(len(kernels))))
    rows = -(-len(kernels) // columns)
    sheet = _sheet(columns, rows)
    for i, picture in enumerate(pictures):
        _paste(sheet, picture.transpose(1, 2, 0), i % columns, i // columns, smooth=False)
    return _save(sheet, path)


def draw_patches(nodes: Sequence[Patches], path: str | Path) -> Path:
    """Draw one band per node, a row per channel, its strongest patches from left to right."""
    columns = max(patches.crops.shape[1] for patches in nodes)
    rows = sum(len(patches.crops) for patches in nodes)
    sheet = _sheet(columns, rows, titles=len(nodes))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    row = 0
    for band, patches in enumerate(nodes):
        side = patches.crops.shape[2]
        listed = ", ".join(str(channel) for channel in patches.channels)
        top = _GAP + row * (_TILE + _GAP) + band * _TITLE
        draw.text((_GAP, top), f"{patches.node}: channels {listed} ({side} px)", (0, 0, 0), font)
        for crops in patches.crops:
            for column, crop in enumerate(crops):
                _paste(sheet, crop, column, row, titles=band + 1, smooth=True)
            row += 1
    return _save(sheet, path)


def _sheet(columns: int, rows: int, titles: int = 0) -> Image.Image:
    width, height = (_GAP + count * (_TILE + _GAP) for count in (columns, rows))
    return Image.new("RGB", (width, height + titles * _TITLE), _PAPER)


def _paste(
    sheet: Image.Image, picture: np.ndarray, column: int, row: int, titles: int = 0, *, smooth: bool
) -> None:
    """Put an (H, W, 1 | 3 | 4) picture into a cell below so many rows and lines of text."""
    tile = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).convert("RGB")
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    at = (_GAP + column * (_TILE + _GAP), _GAP + row * (_TILE + _GAP) + titles * _TITLE)
    sheet.paste(tile.resize((_TILE, _TILE), method), at)


def _save(sheet: Image.Image, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


MOST_STRIPS, MOST_TILES = 40, 12
SIDE, GAP, TITLE, CAPTION = 144, 12, 24, 44  # pixels
DPI = 100
COLUMNS = 22  # characters that are as wide as a tile
PAPER, EMPTY, MARK = "white", "#f2f2f2", "#1f3f99"


@dataclass(frozen=True)
class Tile:
    """An image by its key, a line below its name, and whether it is what the others are compared with."""

    image: str
    note: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Strip:
    """A row of tiles below a title."""

    title: str
    tiles: Sequence[Tile]


def similar_sheet(result: Similar, path: str | Path) -> dict[str, str]:
    """Draw what `similar` found to a PNG: a strip per image with its neighbours, a strip per group.

    Of many only the first 40 strips and 12 tiles of each are drawn; a last line says so.

    Returns
    -------
    dict
        The reasons why images could not be read, by name.
    """
    strips = [
        Strip(
            image, [Tile(image, marked=True), *(Tile(key, f"cosine {cosine:.4f}") for key, cosine in found)]
        )
        for (image, found), _ in zip(result.neighbours(), range(MOST_STRIPS), strict=False)
    ]
    groups = result.groups()
    strips += [
        Strip(f"Group {number} of {len(groups)}: {len(group)} images", [Tile(key) for key in group])
        for number, group in enumerate(groups[:MOST_STRIPS], 1)
    ]
    shown = [Strip(strip.title, strip.tiles[: MOST_TILES + 1]) for strip in strips[:MOST_STRIPS]]
    wanted = {tile.image for strip in shown for tile in strip.tiles}
    pictures = _pictures(result, sorted(wanted))
    total = len(result.images) + len(groups)
    more = f"{len(shown)} of {total:,} are drawn." if total > len(shown) else ""
    contact_sheet(shown, pictures, path, footer=more)
    return {key: picture for key, picture in pictures.items() if isinstance(picture, str)}


def contact_sheet(
    strips: Sequence[Strip], pictures: dict[str, np.ndarray | str], path: str | Path, footer: str = ""
) -> Path:
    """Draw strips of tiles to a PNG.

    pictures : by key an image (H, W, 3) uint8, or the reason why there is none.
    """
    columns = max((len(strip.tiles) for strip in strips), default=1)
    height = TITLE + SIDE + CAPTION + GAP
    size = (GAP + columns * (SIDE + GAP), GAP + max(1, len(strips)) * height + (TITLE if footer else 0))
    with mpl.rc_context({"font.family": list(families()), "font.size": 7}):
        figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor=PAPER)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))
        axes.set_axis_off()
        for number, strip in enumerate(strips):
            top = GAP + number * height
            width = COLUMNS * len(strip.tiles)
            axes.text(GAP, top, _cut(strip.title, width), va="top", fontsize=9, weight="bold")
            for column, tile in enumerate(strip.tiles):
                left = GAP + column * (SIDE + GAP)
                _draw(axes, tile, pictures[tile.image], left, top + TITLE)
        if not strips:
            axes.text(GAP, GAP, "No look-alikes.", va="top", fontsize=9)
        axes.text(GAP, size[1] - GAP, footer, va="bottom", fontsize=9)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, format="png")
    return Path(path)


def thumbnails(source: Source, keys: Sequence[str], preprocess: Preprocess) -> dict[str, np.ndarray | str]:
    """Each image as (H, W, 3) uint8, cut by `preprocess`, or the reason why it cannot be read."""
    found: dict[str, np.ndarray | str] = {}
    of_digest: dict[bytes, np.ndarray] = {}
    for image in load_images(source, keys, preprocess, workers=available_cores()):
        if image.error is not None:
            found[image.key] = image.error
            continue
        if image.digest not in of_digest:
            pixels = Image.fromarray(image.pixels[..., 0] if preprocess.channels == 1 else image.pixels)
            of_digest[image.digest] = np.asarray(pixels.convert("RGB"))
        found[image.key] = of_digest[image.digest]
    return found


def _pictures(result: Similar, names: Iterable[str]) -> dict[str, np.ndarray | str]:
    """Images of the cache from its source, others from their files."""
    keys = set(result.keys)
    own, others = ([name for name in names if (name in keys) == inside] for inside in (True, False))
    with FeatureCache(result.cache) as cache:
        preprocess = Preprocess.from_json(cache.spec.preprocess).override(image_size=SIDE)
        try:
            found = thumbnails(source_of(cache), own, preprocess) if own else {}
        except BottleneckError as error:  # the source as a whole is gone
            found = dict.fromkeys(own, error.message)
    return found | (thumbnails(image_files(others), others, preprocess) if others else {})


def _draw(axes: Axes, tile: Tile, picture: np.ndarray | str, left: int, top: int) -> None:
    """One tile: picture or reason, frame, name and note."""
    edge, width = (MARK, 3) if tile.marked else ("#999999", 0.6)
    face = EMPTY if isinstance(picture, str) else "none"
    if isinstance(picture, str):
        reason = "\n".join(wrap(drawable(picture, 130), COLUMNS))
        middle = {"ha": "center", "va": "center", "color": "#a02020"}
        axes.text(left + SIDE / 2, top + SIDE / 2, reason, **middle)
    else:
        box = (left, left + SIDE, top + SIDE, top)
        axes.imshow(picture, extent=box, aspect="auto", interpolation="nearest", zorder=1)
    axes.add_patch(
        Rectangle((left, top), SIDE, SIDE, facecolor=face, edgecolor=edge, linewidth=width, zorder=0.5)
    )
    folder, _, name = tile.image.rpartition("/")
    lines = [_cut(line, COLUMNS) for line in (folder, name, tile.note) if line]
    axes.text(left, top + SIDE + 4, "\n".join(lines), va="top", linespacing=1.25)


def _cut(text: str, columns: int) -> str:
    """The end of `text`, which tells names apart, as it can be drawn in so many columns."""
    kept: list[str] = []
    free = columns
    for character in reversed(unicodedata.normalize("NFC", text)):
        shown = drawable(character)
        free -= sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in shown.lstrip("\\"))
        if free < 1 and len(kept) + 1 < len(text):
            return "…" + "".join(reversed(kept))
        kept.append(shown)
    return "".join(reversed(kept))
