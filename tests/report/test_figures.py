"""Pictures: names of any script are drawn without boxes, and nothing needs a display."""

import numpy as np
import pytest
from PIL import Image

from bottleneck.report import figures
from bottleneck.report.figures import confusion_matrix, drawable, picture
from bottleneck.report.glyphs import take_note


def test_what_no_font_has_is_shown_by_its_code_point():
    assert drawable("bee \U0001f41d")[:4] == "bee "
    assert "\U00102345" not in drawable("\U00102345")
    assert "U+102345" in drawable("\U00102345")


def test_decomposed_and_composed_names_look_alike():
    assert drawable("e\u0301") == drawable("é") == "é"


def test_long_names_are_cut_and_dollars_are_no_mathematics():
    assert len(drawable("x" * 100)) == 40
    assert drawable("$a$") == r"\$a\$"


@pytest.mark.parametrize("classes", [2, 60])
def test_confusion_matrix_is_a_picture(tmp_path, classes):
    confusion = np.eye(classes, dtype=int) * 5
    confusion[0, 1] = 2
    path = confusion_matrix(
        confusion, [f"개미 {i} 🐜 $x" for i in range(classes)], tmp_path / "a" / "c.png", "t"
    )
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300


def test_a_class_without_samples_divides_by_nothing(tmp_path):
    assert confusion_matrix(np.array([[3, 0], [0, 0]]), ["a", "b"], tmp_path / "c.png").exists()


def test_a_failing_picture_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), picture(tmp_path / "x.png", 3, 3):
        raise RuntimeError
    assert not (tmp_path / "x.png").exists()


def test_a_long_title_stays_within_the_picture(tmp_path):
    with picture(tmp_path / "long.png", 5.0, 4.0) as (axes,):
        axes.set_title("a title of many words " * 6)
    pixels = np.asarray(Image.open(tmp_path / "long.png").convert("L"))
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    assert all((edge == 255).all() for edge in edges)


def test_a_figure_says_where_a_font_is_lacking(tmp_path, monkeypatch):
    """And only that figure: the next one has all its characters."""
    monkeypatch.setattr(figures, "_characters", lambda: frozenset(range(128)))
    take_note()  # of the tests before
    written = []
    for names in (("개미", "bee\n"), ("ant", "bee")):
        path = confusion_matrix(np.eye(2, dtype=int), names, tmp_path / f"{names[0]}.svg")
        written.append(path.read_text(encoding="utf-8"))
    assert [figures.LACK[4:40] in text for text in written] == [True, False]
    assert "U+AC1C" in written[0]
    note = take_note()
    assert note.to_json()["characters"] == ["U+AC1C", "U+BBF8"]
    assert "U+AC1C, U+BBF8 as code points" in note.message
    assert take_note() is None
