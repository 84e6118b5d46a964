"""What libraries say, put into one line of ours."""

import pytest

from bottleneck.errors import first_line


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
