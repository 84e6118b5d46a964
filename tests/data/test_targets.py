"""A column of labels becomes the target that its values mean."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bottleneck.data.config import LabelConfig
from bottleneck.data.targets import target_from_column
from bottleneck.errors import SourceError


def names(target):
    return [target.class_names[code] if code >= 0 else None for code in target.values]


@pytest.mark.parametrize(
    ("values", "class_names"),
    [
        (["b", "a", "B"], ("B", "a", "b")),
        ([10, 9, -1], ("-1", "9", "10")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["007", "7", "08"], ("007", "7", "08")),
        ([1.0, 0.0], ("0", "1")),
        (["1.0", "2.0", "10"], ("1.0", "2.0", "10")),
        (["1e1", "10", "9"], ("9", "10", "1e1")),
        (["0", "00", "000"], ("0", "00", "000")),
        (["1.1", "1.10", "1.9"], ("1.1", "1.10", "1.9")),
        (["01.5", "02.5", "10.5"], ("01.5", "02.5", "10.5")),
        (["1.1", "1.2", "2.1"] * 5, ("1.1", "1.2", "2.1")),
        ([0.5, 1.5] * 5, ("0.5", "1.5")),
        ([1, 1.0, 2.0], ("1", "2")),
        (["True", "FALSE", "true"], ("false", "true")),
        ([True, "True", "unsure"], ("true", "unsure")),
        ([True, False], ("false", "true")),
        (["1_000", "2"], ("1_000", "2")),
        (["nan", "cat"], ("cat", "nan")),
        (["12345678901234567890", "12345678901234567891"], ("12345678901234567890", "12345678901234567891")),
        (["벌", "개미", "🐝"], ("개미", "벌", "🐝")),
        ([1, "a"], ("1", "a")),
    ],
)
def test_classes_and_their_order(values, class_names):
    target = target_from_column("t", values)[0]
    assert target.kind == "class"
    assert target.class_names == class_names
    assert target.values.dtype == np.int64
    assert target.labelled.all()


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_missing_labels_are_unlabelled(missing):
    assert names(target_from_column("t", ["b", missing, "a"])[0]) == ["b", None, "a"]
    assert names(target_from_column("t", [3, missing, 1])[0]) == ["3", None, "1"]
    assert target_from_column("t", [0.5, missing, 1])[0].labelled.tolist() == [True, False, True]
    assert target_from_column("t", [["x"], missing])[0].labelled.tolist() == [True, False]


def test_a_column_without_any_label_is_unlabelled_throughout():
    target = target_from_column("t", [None, ""])[0]
    assert (target.kind, target.class_names, target.labelled.any()) == ("class", (), False)


@pytest.mark.parametrize("values", [[0.5, 1, None], ["0.5", "1", ""], ["5e-1", "1.", "nan"]])
def test_fractions_make_a_regression(values):
    target = target_from_column("t", values)[0]
    assert target.kind == "regression"
    assert target.values[:2].tolist() == [0.5, 1.0]
    assert math.isnan(target.values[2])


def test_lists_make_several_labels():
    target = target_from_column("t", [["b", "a"], [], None, ["c", "c"], [1]])[0]
    assert target.kind == "multilabel"
    assert target.class_names == ("1", "a", "b", "c")
    assert target.values.dtype == np.uint8
    assert target.values.tolist() == [[0, 1, 1, 0], [0] * 4, [255] * 4, [0, 0, 0, 1], [1, 0, 0, 0]]


def test_a_bar_in_a_text_is_part_of_the_name():
    assert target_from_column("t", ["a|b", "a"])[0].class_names == ("a", "a|b")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([["a"], "b", None, 3], r"'b' in rows 2, 4; expected a list"),
        ([["a"], [["b"]]], r"row 2; expected names"),
        ([{"a": 1}, "b"], r"row 1; expected text"),
        ([0.5, float("inf")], r"row 2; expected a finite"),
        (["0.5", "-inf"], r"row 2; expected a finite"),
        (["a", "\ud800"], r"row 2; expected valid UTF-8"),
        (["a", "b\0"], r"row 2; expected valid UTF-8"),
        ([["\ud800"]], r"row 1; expected UTF-8"),
    ],
)
def test_what_means_nothing_is_refused_by_row(values, message):
    with pytest.raises(SourceError, match=message):
        target_from_column("t", values)


def codes(values, **config):
    return [note.code for note in target_from_column("t", values, LabelConfig(**config))[1]]


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (["Cat", "cat", "dog"], "class-names-alike"),
        (["cat ", "cat"], "class-names-alike"),
        (["caf\u00e9", "cafe\u0301"], "class-names-alike"),
        ([["Red"], ["red"]], "class-names-alike"),
        (["1e1", "10"], "class-numbers-alike"),
        (["0", "00"], "class-numbers-alike"),
        ([" 7", "7"], "class-names-alike"),
        (["0.5", "1"], "numbers-read-as-regression"),
        (["1.1", "1.2", "2.1"] * 5, "numbers-read-as-classes"),
        (["1.5", "NA", "2.5"], "class-named-like-no-label"),
        (["True", "true"], "classes-merged"),
        ([str(price) for price in range(1000, 1100)], "numbers-read-as-classes"),
        (["1.5", "nan", "2.25"], "nan-labels"),
        (["1.5", "2.25", "3.7O", "4.125"], "numbers-beside-text"),
        (["12.5", "13.5", "n/a", "14.25"], "numbers-beside-text"),
        ([f"{price}.99 EUR" for price in range(20)], "class-for-most-samples"),
        ([f"{price},99" for price in range(20)], "labels-look-like-several"),
        (["-1", "0", "1"], "class-named-like-no-label"),
        (["unlabeled", "ant"], "class-named-like-no-label"),
        (["['ant', 'red']", "['ant']"], "labels-look-like-several"),
        (["ant", "red", "ant & red"], "labels-look-like-several"),
        (["ant", "red", "ant red"], "labels-look-like-several"),
    ],
)
def test_what_was_decided_is_told(values, code):
    assert code in codes(values)


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b"],
        list("0123456789") * 3,
        [True, False],
        [["a"], ["b", "a"]],
        [3, 4],
        ["1", "2", "other"] * 5,
        ["1.50", "2.25", "none left"] * 5,
        ["-2", "-1", "0"],
        ["sports car", "car", "bus"],
        ["a/b", "c", "d"],
        [str(10**22 + 1), str(10**22 + 2)],
    ],
)
def test_where_nothing_was_decided_nothing_is_told(values):
    assert codes(values) == []


def test_alike_names_are_told_with_both_spellings():
    (note,) = target_from_column("t", ["Cat", "cat", "dog"])[1]
    assert "'Cat' and 'cat'" in note.message
    assert note.changes_result


def test_a_user_decides_whether_numbers_are_classes():
    target, notes = target_from_column("t", ["0.5", "1.25"], LabelConfig(classes=("t",)))
    assert (target.kind, target.class_names, notes) == ("class", ("0.5", "1.25"), [])
    target, notes = target_from_column("t", ["1.1", "1.10", ""], LabelConfig(regression=("t",)))
    assert (target.kind, target.values[:2].tolist(), notes) == ("regression", [1.1, 1.1], [])
    with pytest.raises(SourceError, match=r"'x' in row 2; expected a number"):
        target_from_column("t", ["1", "x"], LabelConfig(regression=("t",)))
    with pytest.raises(SourceError, match="--classes and by --regression"):
        LabelConfig(classes=("t",), regression=("t",))


def test_numbers_are_in_order_also_beside_nan():
    cells = ["10", "nan", "2", "NaN", "-3", "1e1"]
    for values in (cells, cells[::-1], cells[3:] + cells[:3]):
        target, _ = target_from_column("t", values, LabelConfig(classes=("t",)))
        assert target.class_names == ("-3", "2", "10", "1e1", "NaN", "nan")


@given(st.lists(st.text("0123456789.eE+-", min_size=1, max_size=4), min_size=1))
def test_two_different_texts_are_two_classes(values):
    target, _ = target_from_column("t", values, LabelConfig(classes=("t",)))
    assert names(target) == values
    assert set(target.class_names) == set(values)


def test_a_separator_makes_several_labels():
    cells = ["ant|red", "ant", " red | big ", "", "|", ["big"]]
    target, notes = target_from_column("t", cells, LabelConfig(label_separator="|"))
    assert (target.kind, target.class_names, notes) == ("multilabel", ("ant", "big", "red"), [])
    assert target.values.tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 1], [255] * 3, [0, 0, 0], [0, 1, 0]]


def test_another_separator_than_the_one_that_was_given_is_told():
    assert codes(["ant;red", "ant", "red"], label_separator=",") == [
        "label-separator-unused",
        "labels-look-like-several",
    ]


def test_a_separator_that_stands_nowhere():
    config = LabelConfig(label_separator="|")
    assert target_from_column("t", ["ant", "bee"], config)[0].kind == "multilabel"
    target, notes = target_from_column("t", ["ant", "bee"], config, alone=False)
    assert (target.kind, [note.code for note in notes]) == ("class", ["label-separator-unused"])
    with pytest.raises(SourceError, match="--label-separator is empty"):
        LabelConfig(label_separator="")


@pytest.mark.parametrize(
    "cells",
    [
        ["ant|red", "bee|red", "ant"],
        ["ant;red", "bee;big", "ant;big"],
        ["ant, red", "bee, red"],
        ["ant", "red", "ant|red", "bee", "ant"],  # seldom, but its parts are classes
        ["ant", "ant|red", "bee", "bee"],
    ],
)
def test_cells_that_look_like_several_labels_are_told(cells):
    (note,) = target_from_column("t", cells)[1]
    assert (note.code, note.changes_result) == ("labels-look-like-several", True)
    assert "--label-separator" in note.message
    assert target_from_column("t", cells, LabelConfig(classes=("t",)))[1] == []


@pytest.mark.parametrize("cells", [["ant", "a|b", "bee"], ["x|", "y", "z"], ["Smith, J", "Wu", "Li"]])
def test_cells_that_contain_a_separator_now_and_then_are_names(cells):
    assert codes(cells) == []


def test_many_bad_rows_are_counted():
    with pytest.raises(SourceError, match=r"rows 1, 2, 3, 4, 5 and 95 more"):
        target_from_column("t", [{}] * 100)


@given(
    st.lists(
        st.one_of(
            st.none(), st.text(st.characters(exclude_categories=["Cs"], min_codepoint=1)), st.integers()
        )
    )
)
def test_every_label_can_be_read_back(values):
    target = target_from_column("t", values)[0]
    if target.kind == "class":
        numeric = all(name.lstrip("+-").isdigit() for name in target.class_names)
        for value, name in zip(values, names(target), strict=True):
            if value is None or value == "":
                assert name is None
            elif name is not None and not numeric:
                assert name == str(value)
        assert len(set(target.class_names)) == len(target.class_names)


@pytest.mark.parametrize(
    "config", [LabelConfig(), LabelConfig(label_separator="|"), LabelConfig(classes=("t",))]
)
def test_a_label_of_spaces_is_no_class(config):
    target, notes = target_from_column("t", ["a", "  ", "b", "\t", None], config)
    assert target.labelled.tolist() == [True, False, True, False, False]
    assert target.class_names == ("a", "b")
    assert [note.details for note in notes if note.code == "blank-labels"] == [{"target": "t", "samples": 2}]
