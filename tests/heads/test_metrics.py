"""Metrics against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as judge
from sklearn.metrics import roc_auc_score

from bottleneck.errors import BottleneckError
from bottleneck.heads import metrics

NAMES = ("ant", "bee", "cat")


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share_and_stays_within_bounds(counts):
    correct, n = counts
    low, high = metrics.wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert high - low < 1
    mirrored = metrics.wilson_interval(n - correct, n)
    assert np.allclose(mirrored, (1 - high, 1 - low), atol=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (5, 10), (146, 153), (300, 300)])
def test_wilsons_interval_is_scipys(correct, n):
    from scipy.stats import binomtest

    expected = binomtest(correct, n).proportion_ci(method="wilson")
    assert np.allclose(metrics.wilson_interval(correct, n), (expected.low, expected.high))


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=50),
    st.integers(1, 20),
)
def test_calibration_error_is_a_share(pairs, bins):
    correct, confidence = (np.array(column) for column in zip(*pairs, strict=True))
    error = metrics.expected_calibration_error(correct, confidence, bins)
    assert 0 <= error <= 1
    whole = metrics.expected_calibration_error(correct, confidence, 1)
    assert whole == pytest.approx(abs(correct.mean() - confidence.mean()))
    assert error >= whole - 1e-12  # more bins cancel less


def test_a_perfect_head():
    codes = np.array([0, 1, 2, 2])
    found = metrics.classification_metrics(codes, np.eye(3)[codes], NAMES)
    assert found["accuracy"] == found["balanced_accuracy"] == found["macro_f1"] == found["roc_auc"] == 1
    assert found["log_loss"] == found["ece"] == 0
    assert found["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 0, 2]]
    assert [row["n"] for row in found["per_class"]] == [1, 1, 2]


def test_known_figures():
    codes = np.array([0, 0, 0, 1])
    p = np.array([[0.8, 0.2, 0.0], [0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.1, 0.9, 0.0]])
    found = metrics.classification_metrics(codes, p, NAMES)
    assert found["accuracy"] == 0.75
    assert found["balanced_accuracy"] == pytest.approx(
        (2 / 3 + 1) / 2
    )  # the class that is not there has no say
    assert found["log_loss"] == pytest.approx(-np.log([0.8, 0.6, 0.3, 0.9]).mean())
    assert found["roc_auc"] == 1
    assert found["per_class"][1] == {
        "name": "bee",
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "n": 1,
    }
    assert found["top5"] == 1


def test_one_class_alone_cannot_be_ranked():
    found = metrics.classification_metrics(np.array([1, 1]), np.full((2, 2), 0.5), NAMES[:2])
    assert found["roc_auc"] is None


def test_top_five_of_ten():
    p = np.tile(np.linspace(0.1, 1, 10), (2, 1))
    found = metrics.classification_metrics(np.array([5, 4]), p, [str(k) for k in range(10)])
    assert found["top5"] == 0.5


def test_labels():
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    p = np.array([[0.9, 0.2], [0.8, 0.4], [0.1, 0.3], [0.4, 0.6]])
    found = metrics.measure("multilabel", labels, p, ("round", "red"))
    assert found["accuracy"] == 7 / 8
    assert found["exact_match"] == 3 / 4
    assert found["roc_auc"] == 1
    assert found["log_loss"] == pytest.approx(-np.log(np.where(labels == 1, p, 1 - p)).mean())


def test_numbers():
    found = metrics.measure("regression", np.array([1.0, 2, 3]), np.array([1.0, 2, 4]), ())
    assert found == {"r2": 0.5, "mae": pytest.approx(1 / 3), "rmse": pytest.approx(3**-0.5), "n": 3}
    assert metrics.regression_metrics(np.ones(2), np.ones(2))["r2"] is None


@pytest.mark.parametrize("kind", ["class", "multilabel", "regression"])
def test_nothing_to_measure_on(kind):
    empty = {"class": np.zeros(0, int), "multilabel": np.zeros((0, 2)), "regression": np.zeros(0)}[kind]
    with pytest.raises(BottleneckError, match="No labelled sample"):
        metrics.measure(kind, empty, np.zeros((0, 2)), NAMES[:2])


def test_the_area_is_scikit_learns_with_ties():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 9, (200, 3)) / 8
    codes = generator.integers(0, 3, 200)
    found = metrics.classification_metrics(codes, scores, NAMES)["roc_auc"]
    assert found == pytest.approx(
        np.mean([roc_auc_score(codes == k, scores[:, k]) for k in range(3)]), abs=1e-12
    )


def test_the_scores_are_scikit_learns():
    """Classes that nothing is predicted as, classes without samples, and scores with ties are among them."""
    generator = np.random.default_rng(0)
    for n in (1, 2, 7, 60):
        codes, p = generator.integers(0, 3, n), generator.integers(0, 9, (n, 3)) / 8
        labels, values = generator.integers(0, 2, (n, 3)), generator.standard_normal(n)
        found = metrics.classification_metrics(codes, p, NAMES)
        predicted = p.argmax(axis=1)
        assert found["confusion"] == judge.confusion_matrix(codes, predicted, labels=range(3)).tolist()
        for truth, answer, report in (
            (codes, predicted, found),
            (labels, p > 0.5, metrics.multilabel_metrics(labels, p, NAMES)),
        ):
            *scores, support = judge.precision_recall_fscore_support(
                truth, answer, labels=range(3), average=None, zero_division=0
            )
            expected = [
                [float(x) if k else None for x, k in zip(row, support, strict=True)] for row in scores
            ]
            names = ("precision", "recall", "f1")
            assert [[each[name] for each in report["per_class"]] for name in names] == expected
        rankable = [k for k in range(3) if labels[:, k].any()]
        areas = [judge.average_precision_score(labels[:, k], p[:, k]) for k in rankable]
        assert report["mean_average_precision"] == (pytest.approx(np.mean(areas)) if areas else None)
        found = metrics.regression_metrics(values, p[:, 0])
        assert found["r2"] == (pytest.approx(judge.r2_score(values, p[:, 0])) if n > 1 else None)
        assert found["mae"] == pytest.approx(judge.mean_absolute_error(values, p[:, 0]))
        assert found["rmse"] == pytest.approx(judge.mean_squared_error(values, p[:, 0]) ** 0.5)


def test_a_class_without_samples_has_no_scores():
    p = np.array([[0.8, 0.2, 0.0], [0.3, 0.7, 0.0], [0.1, 0.3, 0.6]])
    found = metrics.classification_metrics(np.array([0, 1, 1]), p, NAMES)
    assert found["per_class"][2] == {"name": NAMES[2], "precision": None, "recall": None, "f1": None, "n": 0}
    assert found["predicted"] == [1, 1, 1]
    labels = np.array([[1, 0], [0, 0]])
    found = metrics.multilabel_metrics(labels, np.array([[0.9, 0.9], [0.1, 0.1]]), NAMES[:2])
    assert [row["recall"] for row in found["per_class"]] == [1.0, None]


@pytest.mark.parametrize(
    ("codes", "predicted", "answer"),
    [
        ([0, 1, 1], [1, 1, 1], ["bee"]),
        ([0, 1, 1], [1, 1, 0], None),
        ([1, 1, 1], [1, 1, 1], None),  # there is one class
        ([0, 0, 0], [1, 1, 1], None),
    ],
)
def test_one_answer_for_samples_of_several_classes_is_told(codes, predicted, answer):
    found = metrics.classification_metrics(np.array(codes), np.eye(3)[predicted], NAMES)
    notes = metrics.one_answer_notes("The head", "test", found)
    assert [note.details["answer"] for note in notes] == ([] if answer is None else [answer])
