"""CSV that no spreadsheet executes: by a rule that loses nothing."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bottleneck.data.table_file import csv_lines, inert, read_table
from bottleneck.errors import SourceError


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


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_of_200_000_columns_is_refused_by_its_number(kind):
    names = [f"c{number}" for number in range(200_000)]
    text = (
        ",".join(names) + "\n" + ",".join("1" * 200_000)
        if kind == "csv"
        else json.dumps(dict.fromkeys(names, 1))
    )
    with pytest.raises(SourceError, match=r"has 200,000 columns; at most 10,000 are read"):
        read_table(f"x.{kind}", text.encode())


def test_columns_of_one_name_are_found_among_thousands():
    names = [f"c{number}" for number in range(9_999)] + ["c7"]
    with pytest.raises(SourceError, match="two columns named 'c7'"):
        read_table("x.csv", (",".join(names) + "\n").encode())


def test_rows_without_columns_in_common_are_refused_before_they_fill_the_memory():
    lines = [json.dumps({"image": f"{number}.png", f"x{number}": 1}) for number in range(9_000)]
    with pytest.raises(SourceError, match=r"few columns in common: 18,000 of 81,009,000 cells"):
        read_table("x.jsonl", "\n".join(lines).encode())


def test_a_line_of_jsonl_beyond_its_bound_is_refused_by_its_number(monkeypatch):
    monkeypatch.setattr("bottleneck.data.table_file.LONGEST_LINE", 30)
    row = b'{"image": "a.png"}'
    assert read_table("t.jsonl", b"\n".join([row] * 9)) == {"image": ["a.png"] * 9}
    for end in (b"", b"\n" + row):
        with pytest.raises(SourceError, match="more than 30 bytes in line 3"):
            read_table("t.jsonl", b"\n".join([row, row, b'{"image": "' + b"a" * 99 + b'.png"}']) + end)
