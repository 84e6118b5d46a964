"""What libraries say, put into one line of ours."""

import pytest

from bottleneck.errors import CacheError, Note, StrictError, counted, first_line, refuse_strict


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("Unable to open  file\n(no signature)"), "Unable to open file"),
        (RuntimeError("\n  mat1 and mat2 differ.\n"), "mat1 and mat2 differ"),
        (MemoryError(), "MemoryError"),
        (ValueError("x" * 1000), "x" * 300),
    ],
)
def test_a_reason_is_one_short_line(error, said):
    assert first_line(error) == said


def test_strict_refuses_notes_that_change_the_result():
    harmless = Note("cells-stripped", "3 cells were stripped.")
    harmful = Note("split-guessed", "The split was guessed.", changes_result=True, details={"rows": 3})
    refuse_strict([harmless], strict=True)
    refuse_strict([harmful], strict=False)
    with pytest.raises(StrictError, match="The split was guessed"):
        refuse_strict([harmless, harmful], strict=True)
    assert harmful.to_json() == {
        "code": "split-guessed",
        "message": "The split was guessed.",
        "changes_result": True,
        "rows": 3,
    }


def test_a_name_with_line_breaks_leaves_the_message_one_line():
    error = CacheError("There is no a\nb\r.h5.", "Run `x 'a\nb'`.")
    assert str(error) == r"There is no a\nb\r.h5. Run `x 'a\nb'`."
    assert error.message == error.args[0] == r"There is no a\nb\r.h5."


def test_one_thing_is_counted_as_one():
    assert [counted(n, "image") for n in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert counted(1, "row is", "rows are") == "1 row is"
    assert counted(2, "row is", "rows are") == "2 rows are"
