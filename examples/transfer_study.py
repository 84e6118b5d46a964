"""How transferable are features? The study of Yosinski et al. (2014) on rendered characters, offline.

    python examples/transfer_study.py [--output characters-study] [--seeds 4]

Renders 60 classes of characters (Latin, Greek, digits) from the fonts that matplotlib ships, with random pose,
colours, blur, noise and clutter, then runs `bottleneck transfer-study` on them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "abdefghnqrt"  # lower case where it is not a smaller capital
GREEK = "ΓΔΘΛΞΠΣΦΨΩ" + "αβγδεζθλμξπφψ"
DIGITS = "23456789"
FAMILIES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
STYLES = ("", "-Bold", "-Oblique", "-BoldOblique", "-Italic", "-BoldItalic", "Bol", "BolIta", "Italic")
DRAWN, SIDE = 96, 32  # pixels a side: as drawn, and as written


@cache
def fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    """Every style of the four families that holds Latin and Greek: 16 fonts."""
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    paths = (folder / f"{family}{style}.ttf" for family in FAMILIES for style in STYLES)
    return tuple(ImageFont.truetype(path, 56) for path in paths if path.exists())


def draw(character: str, rng: np.random.Generator) -> Image.Image:
    """One picture of `character`, SIDE × SIDE grey: random font, pose, tones, clutter, blur and noise."""
    mask = Image.new("L", (DRAWN, DRAWN))
    font = fonts()[rng.integers(len(fonts()))]
    ImageDraw.Draw(mask).text((DRAWN / 2, DRAWN / 2), character, fill=255, font=font, anchor="mm")
    mask = mask.transform(mask.size, Image.Transform.AFFINE, pose(rng), Image.Resampling.BILINEAR)
    ground, ink = rng.uniform(0, 255, 2)
    while abs(ground - ink) < 90:
        ground, ink = rng.uniform(0, 255, 2)
    picture = mask.point(lambda covered: ground + (ink - ground) * covered / 255)
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.integers(0, 3)):
        pen.line(tuple(map(int, rng.integers(0, DRAWN, 4))), fill=int(ink), width=int(rng.integers(1, 4)))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2))).resize((SIDE, SIDE), Image.Resampling.BOX)
    noisy = np.asarray(picture) + rng.normal(0, rng.uniform(2, 15), (SIDE, SIDE))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def pose(rng: np.random.Generator) -> tuple[float, ...]:
    """The six numbers of PIL's affine transform: turned, sheared, scaled and moved about the centre."""
    angle, shear, scale = rng.normal(0, 0.25), rng.normal(0, 0.2), 1 / rng.uniform(0.8, 1.3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = scale * turn @ np.array([[1.0, shear], [0.0, 1.0]])
    offset = DRAWN / 2 - matrix @ (DRAWN / 2 + rng.normal(0, 5, 2))
    return (*matrix[0], offset[0], *matrix[1], offset[1])


def write_characters(folder: Path, train: int, val: int, seed: int = 0) -> Path:
    """`folder/SPLIT/U+XXXX/N.png` for every class; what is there already is left."""
    for split, count in (("train", train), ("val", val)):
        for character in LATIN + GREEK + DIGITS:
            code = f"U+{ord(character):04X}"
            rng = np.random.default_rng([seed, ord(character), split == "val"])
            (folder / split / code).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / split / code / f"{number:04d}.png"
                picture = draw(character, rng)
                if not path.exists():
                    picture.save(path)
    return folder
