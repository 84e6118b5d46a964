"""CSV that no spreadsheet executes: by a rule that loses nothing."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bottleneck.data.table_file import csv_lines, inert


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1"]
)
def test_what_would_be_executed_gets_an_apostrophe(text):
    assert inert(text) == "'" + text


@pytest.mark.parametrize("text", ["-3.5", "+1", "-1e-05", "1", "-.5", "ants/1.jpg", "", "'tis", "a=1"])
def test_numbers_and_other_texts_stay(text):
    assert inert(text) == text


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2)))
def test_python_reads_every_text_back(rows):
    lines = "".join(csv_lines(rows, raw=True))
    assert list(csv.reader(io.StringIO(lines, newline=""))) == rows
    shown = list(csv.reader(io.StringIO("".join(csv_lines(rows)), newline="")))
    for cells, texts in zip(shown, rows, strict=True):
        for cell, text in zip(cells, texts, strict=True):
            assert cell[cell != text :] == text


def test_a_separator_of_another_locale_cannot_start_a_cell():
    assert list(csv_lines([("a;=1", 0.5)])) == ['"a;=1",0.5\r\n']
