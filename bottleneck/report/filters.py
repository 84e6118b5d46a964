"""Pictures of what a network sees with: its first kernels, and the patches that excite its channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from bottleneck.backbones.excitation import Patches

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
