"""Characters that no font here has, of the figures that were drawn: collected here, and told once as a note.

matplotlib is not imported, so that a command can ask whether or not it has drawn anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from bottleneck.errors import Note, listed

ADVICE = "no font here has such characters. Install one, such as Noto Sans CJK or NanumGothic."
SHOWN = 8  # characters that the note names

_lacking: set[str] = set()


def add_lacking(characters: Iterable[str]) -> None:
    """Remember characters that a written figure shows as code points."""
    _lacking.update(each for each in characters if each.isprintable())  # others have no glyph anywhere


def take_note() -> Note | None:
    """Return a note on all characters that were added since the last call; None if there were none."""
    codes = [f"U+{ord(character):04X}" for character in sorted(_lacking)]
    _lacking.clear()
    if not codes:
        return None
    text = f"Figures show {listed(codes, SHOWN)} as code points: {ADVICE}"
    return Note("characters-not-drawn", text, details={"characters": codes})
