"""Pictures of what a network's channels respond to: its first kernels, and the patches that excite them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bottleneck.files import whole_file

if TYPE_CHECKING:
    from bottleneck.backbones.patches import Patches

CELL, CELL_GAP = 64, 4  # pixels a side of a kernel or patch, and between two
LINE = 22  # pixels, height of a line of text


def draw_filters(kernels: np.ndarray, path: str | Path) -> Path:
    """Draw the kernels of a convolution as a grid of pictures.

    kernels : float (filters, channels, k, k). Three channels are drawn as colours, any other number as their
    mean. Each kernel is scaled to the full range, with 0 as the middle grey.
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
    """Draw a band for each node, with a row for each channel: its strongest patches from left to right."""
    columns = max(patches.crops.shape[1] for patches in nodes)
    rows = sum(len(patches.crops) for patches in nodes)
    sheet = _sheet(columns, rows, titles=len(nodes))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    row = 0
    for band, patches in enumerate(nodes):
        side = patches.crops.shape[2]
        listed = ", ".join(str(channel) for channel in patches.channels)
        top = CELL_GAP + row * (CELL + CELL_GAP) + band * LINE
        draw.text((CELL_GAP, top), f"{patches.node}: channels {listed} ({side} px)", (0, 0, 0), font)
        for crops in patches.crops:
            for column, crop in enumerate(crops):
                _paste(sheet, crop, column, row, titles=band + 1, smooth=True)
            row += 1
    return _save(sheet, path)


def _sheet(columns: int, rows: int, titles: int = 0) -> Image.Image:
    width, height = (CELL_GAP + count * (CELL + CELL_GAP) for count in (columns, rows))
    return Image.new("RGB", (width, height + titles * LINE), "white")


def _paste(
    sheet: Image.Image, picture: np.ndarray, column: int, row: int, titles: int = 0, *, smooth: bool
) -> None:
    """Paste a picture (H, W, 1 | 3 | 4) into a cell, below `row` rows and `titles` lines of text."""
    tile = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).convert("RGB")
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    at = (CELL_GAP + column * (CELL + CELL_GAP), CELL_GAP + row * (CELL + CELL_GAP) + titles * LINE)
    sheet.paste(tile.resize((CELL, CELL), method), at)


def _save(sheet: Image.Image, path: str | Path) -> Path:
    with whole_file(Path(path)) as file:
        sheet.save(file, format="PNG")
    return Path(path)
