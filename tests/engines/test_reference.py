import numpy as np
import pytest

from bottleneck.engines.reference import complaint, measure

WAYS = [("fp32", False), ("fp16", False), ("bf16", False), ("bf16", True), ("int8", True)]


def test_a_faint_row_is_not_hidden_by_a_strong_one():
    reference = np.array([[1e6, 1e6], [1.0, 1.0]], np.float32)
    rows = reference + np.array([[0, 0], [0, 1]], np.float32)
    assert measure([rows], [reference])[0] == pytest.approx(1 / np.sqrt(2))


def test_values_near_zero_are_judged_by_the_size_of_their_row():
    reference = np.array([[1.0, 1e-9]], np.float32)
    assert measure([reference + np.float32(1e-7)], [reference])[0] < 1e-6


def test_maps_are_compared_whole_and_each_node_by_itself():
    reference = [np.ones((2, 3, 4, 4)), np.ones((2, 5))]
    assert measure([reference[0], 1.1 * reference[1]], reference) == {0: 0.0, 1: pytest.approx(0.1)}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("precision", "as_cosine"), WAYS)
def test_rows_that_are_not_finite_are_out_of_bounds(bad, precision, as_cosine):
    reference = np.ones((2, 3), np.float32)
    rows = np.array([[1, 1, 1], [1, bad, 1]], np.float32)
    assert complaint(measure([rows], [reference], as_cosine=as_cosine), precision, as_cosine=as_cosine)


@pytest.mark.parametrize(("precision", "as_cosine"), WAYS)
def test_rows_of_zeros_agree_only_with_zeros(precision, as_cosine):
    zeros, ones = np.zeros((2, 3)), np.ones((2, 3))
    assert not complaint(measure([zeros], [zeros], as_cosine=as_cosine), precision, as_cosine=as_cosine)
    assert complaint(measure([zeros], [ones], as_cosine=as_cosine), precision, as_cosine=as_cosine)
    assert complaint(measure([ones], [zeros], as_cosine=as_cosine), precision, as_cosine=as_cosine)


@pytest.mark.parametrize(("precision", "as_cosine"), WAYS)
def test_other_shapes_are_out_of_bounds(precision, as_cosine):
    reference = [np.ones((2, 3)), np.ones((2, 3))]
    for outputs in ([np.ones((2, 3)), np.ones((2, 4))], [np.ones((2, 3))]):
        assert complaint(measure(outputs, reference, as_cosine=as_cosine), precision, as_cosine=as_cosine)


@pytest.mark.parametrize(
    ("precision", "within", "beyond"), [("fp32", 9e-5, 2e-4), ("fp16", 4e-3, 6e-3), ("bf16", 2e-2, 4e-2)]
)
def test_each_precision_has_its_bound(precision, within, beyond):
    assert complaint({0: within}, precision) == ""
    assert f"{beyond:.1e}" in complaint({0: within, 1: beyond}, precision)
    assert "not finite" in complaint({0: np.inf}, precision)


@pytest.mark.parametrize(("precision", "within", "beyond"), [("int8", 0.981, 0.979), ("bf16", 0.996, 0.994)])
def test_cosines_have_their_bounds_and_the_lowest_counts(precision, within, beyond):
    assert complaint({0: within}, precision, as_cosine=True) == ""
    assert f"{beyond:.4f}" in complaint({0: within, 1: beyond}, precision, as_cosine=True)
