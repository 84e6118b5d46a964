"""Sheets of images: every tile in its place, names in any script, reasons where there is no picture."""

import numpy as np
import pytest
from PIL import Image

from bottleneck.report.image_sheets import GAP, SIDE, TITLE, Strip, Tile, _cut, contact_sheet


def test_pictures_lie_pixel_by_pixel_in_their_places(tmp_path):
    generator = np.random.default_rng(0)
    pictures = {name: generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for name in "ab"}
    strips = [Strip("first", [Tile("a", marked=True), Tile("b", "cosine 0.9")]), Strip("second", [Tile("b")])]
    sheet = np.asarray(Image.open(contact_sheet(strips, pictures, tmp_path / "s.png")).convert("RGB"))
    top, left, inner = GAP + TITLE, GAP + SIDE + GAP, slice(3, SIDE - 3)
    assert np.array_equal(
        sheet[top : top + SIDE, left : left + SIDE][inner, inner], pictures["b"][inner, inner]
    )
    assert np.array_equal(
        sheet[top : top + SIDE, GAP : GAP + SIDE][inner, inner], pictures["a"][inner, inner]
    )


def test_a_missing_picture_is_an_empty_frame_with_its_reason(tmp_path):
    strips = [Strip("개미 🐜 $x$", [Tile("개미 🐜/$1$.jpg", "note")])]
    blank, reasoned = (
        np.asarray(Image.open(contact_sheet(strips, {strips[0].tiles[0].image: reason}, tmp_path / "s.png")))
        for reason in ("", "cannot be read: No such file")
    )
    frame = (slice(GAP + TITLE + 2, GAP + TITLE + SIDE - 2), slice(GAP + 2, GAP + SIDE - 2))
    assert len(np.unique(blank[frame].reshape(-1, blank.shape[2]), axis=0)) == 1
    assert (reasoned[frame] != blank[frame]).any()


def test_nothing_to_draw_is_said(tmp_path):
    assert (np.asarray(Image.open(contact_sheet([], {}, tmp_path / "s.png")).convert("L")) < 128).any()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short.jpg", "short.jpg"),
        ("exactly ten", "…actly ten"),
        ("0123456789", "0123456789"),
        ("$1.jpg", r"\$1.jpg"),
        ("e\u0301", "é"),
        ("", ""),
    ],
)
def test_names_keep_their_ends(text, shown):
    assert _cut(text, 10) == shown
