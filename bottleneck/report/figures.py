"""Pictures of results as PNG files, drawn without a display.

Shapes: C classes.

Text in pictures, for names in any script: installed fonts, and an honest fallback where none fits.

matplotlib draws a box for a character that no font of its list has. `drawable` shows the code points instead
(`U+1F41C`), so that two names never look alike.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Families that carry scripts beyond Latin, Greek and Cyrillic, as the common systems ship them.
WIDE_FAMILIES = (
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Noto Sans KR",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
    "UnDotum",
    "Baekmuk Dotum",
    "Arial Unicode MS",
    "WenQuanYi Zen Hei",
    "Noto Sans",
    "Noto Emoji",
)


@cache
def families() -> tuple[str, ...]:
    """Font families to hand to matplotlib, its own default first, then the wide ones that are installed."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in WIDE_FAMILIES if name in installed))


@cache
def _characters() -> frozenset[int]:
    """Code points that at least one of the families has."""
    found: set[int] = set()
    for family in families():
        path = font_manager.findfont(family, fallback_to_default=True)
        found.update(ft2font.FT2Font(path).get_charmap())
    return frozenset(found)


def drawable(text: str, longest: int = 40) -> str:
    """`text` as it can be drawn: composed (NFC), uncovered characters as code points, cut to `longest`.

    Dollar signs are escaped, or matplotlib would read mathematics into a file name.
    """
    text = unicodedata.normalize("NFC", text)
    shown = "".join(
        character if ord(character) in _characters() else f"U+{ord(character):04X}" for character in text
    )
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    return shown.replace("$", r"\$")


MOST_CLASSES_NAMED = 40
TITLE_CHARACTERS = 10  # of a line, for each inch of width


@contextmanager
def picture(
    path: str | Path, width: float, height: float, columns: int = 1, rows: int = 1
) -> Iterator[Sequence[Axes]]:
    """Axes, row by row, of a new figure of `width` × `height` inches, saved to `path` on leaving.

    Figures are made without pyplot: no global state, no display, safe in threads.
    """
    with mpl.rc_context({"font.family": list(families()), "font.size": 10, "axes.titlesize": 11}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in figure.axes:
            axes.set_title(fill(axes.get_title(), int(TITLE_CHARACTERS * width / columns)))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)


def confusion_matrix(
    confusion: np.ndarray, class_names: Sequence[str], path: str | Path, title: str = ""
) -> Path:
    """Draw counts of true (rows) against predicted (columns) classes, coloured by the share of the row.

    confusion : (C, C) int, class_names : C names.
    """
    confusion = np.asarray(confusion)
    C = len(confusion)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.42 * C + 2.2, 4.0, 16.0))
    with picture(path, side + 0.8, side) as (axes,):
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="true", title=drawable(title, 80))
        if C <= MOST_CLASSES_NAMED:
            names = [drawable(name, 24) for name in class_names]
            axes.set_xticks(range(C), names, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(C), names)
            for (row, column), count in np.ndenumerate(confusion):
                if count:
                    colour = "white" if share[row, column] > 0.5 else "black"
                    axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
        axes.figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    return Path(path)
