"""Text in pictures, for names in any script: installed fonts, and an honest fallback where none fits.

matplotlib draws a box for a character that no font of its list has. `drawable` shows the code points instead
(`U+1F41C`), so that two names never look alike.
"""

from __future__ import annotations

import unicodedata
from functools import cache

from matplotlib import font_manager, ft2font

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
