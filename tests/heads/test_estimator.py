"""LogisticHead and the ridge heads as scikit-learn estimators."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bottleneck.errors import FitError
from bottleneck.heads.artifact import HeadDescription
from bottleneck.heads.linear_heads import LogisticHead, RidgeHead, RidgeRegressionHead
from tests.helpers.problems import features

ESTIMATORS = [LogisticHead(), LogisticHead(multi_class="ovr"), RidgeHead(), RidgeRegressionHead()]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learns_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


class Reader:
    """Rows that can only be read in blocks."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def read(self, start, stop):
        return self.array[start:stop]


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, Reader])
@pytest.mark.parametrize("head", [LogisticHead(C=0.1), RidgeHead(C=0.1)])
def test_rows_of_any_kind(head, make):
    X, y = features(150, 12, 3)
    expected = head.fit(X, y).predict_proba(X)
    assert np.allclose(head.fit(make(X), y).predict_proba(make(X)), expected, atol=1e-6)


@pytest.mark.parametrize("K", [2, 3])
def test_float64_rows_are_solved_to_rounding(K):
    X, y = features(150, 12, K, dtype=np.float64)
    head = LogisticHead(C=0.3).fit(X, y)
    Z = StandardScaler().fit_transform(X)
    judge = LogisticRegression(C=0.3, tol=1e-10, max_iter=10000).fit(Z, y)
    assert head.coef_.shape == judge.coef_.shape
    assert np.allclose(head.coef_ * head.scale_, judge.coef_, atol=1e-5)
    assert np.allclose(head.predict_proba(X), judge.predict_proba(Z), atol=1e-5)
    assert head.scale_[-1] == 1  # the constant column


def test_one_against_the_rest():
    X, y = features(150, 12, 3, dtype=np.float64)
    head = LogisticHead(C=0.3, multi_class="ovr").fit(X, y)
    Z = StandardScaler().fit_transform(X)
    judge = OneVsRestClassifier(LogisticRegression(C=0.3, tol=1e-10, max_iter=10000)).fit(Z, y)
    assert np.allclose(head.predict_proba(X), judge.predict_proba(Z), atol=1e-5)
    assert np.allclose(head.artifact().probabilities(X), judge.predict_proba(Z), atol=1e-4)


def test_class_weights_by_name():
    X, y = features(150, 12, 3, dtype=np.float64)
    names = np.array(["ant", "bee", "cat"])[y]
    weights = {"ant": 3.0, "cat": 0.5}
    head = LogisticHead(C=0.3, class_weight=weights).fit(X, names)
    Z = StandardScaler().fit_transform(X)
    judge = LogisticRegression(C=0.3, class_weight=weights, tol=1e-10, max_iter=10000).fit(Z, names)
    assert np.allclose(head.predict_proba(X), judge.predict_proba(Z), atol=1e-5)
    with pytest.raises(FitError, match="dog"):
        LogisticHead(class_weight={"dog": 1.0}).fit(X, names)


@pytest.mark.parametrize(("n", "D"), [(150, 12), (40, 90)])
def test_ridge_is_scikit_learns(n, D):
    X, y = features(n, D, 3, dtype=np.float64)
    Z = StandardScaler().fit_transform(X)
    judge = RidgeClassifier(alpha=1 / 0.05).fit(Z, y)
    assert np.allclose(RidgeHead(C=0.05).fit(X, y).decision_function(X), judge.decision_function(Z))
    value = X[:, 0] + 0.1 * y
    weights = 1.0 + np.arange(n) % 3
    scaler = StandardScaler().fit(X, sample_weight=weights)
    expected = Ridge(alpha=1 / 0.05).fit(scaler.transform(X), value, sample_weight=weights)
    found = RidgeRegressionHead(C=0.05).fit(X, value, sample_weight=weights)
    assert np.allclose(found.predict(X), expected.predict(scaler.transform(X)))


def test_generalised_cross_validation_takes_the_penalty_that_predicts():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((300, 40))
    clear = X[:, 0] + 0.01 * generator.standard_normal(300)
    noise = generator.standard_normal(300)
    assert RidgeRegressionHead(C="auto").fit(X, clear).C_ > 0.1
    assert RidgeRegressionHead(C="auto").fit(X, noise).C_ < 1e-3


def test_artifacts_predict_as_their_estimators():
    X, y = features(150, 12, 3)
    for head in (LogisticHead(C=0.1), RidgeHead(C=0.1)):
        artifact = head.fit(X, y).artifact(HeadDescription(target="species"))
        assert (artifact.predict(X) == head.predict(X)).all()
        assert np.allclose(artifact.decision(X), head.logits(X), atol=1e-3)
        assert artifact.C == 0.1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_feature_is_named(value):
    X, y = features(60, 6, 2)
    X[17, 3] = value
    with pytest.raises(FitError, match=r"Feature 3 of row 17 is (NaN|infinity)"):
        LogisticHead().fit(Reader(X), y)


@pytest.mark.parametrize("C", [0, -1.0, np.inf, "best"])
def test_an_impossible_penalty_is_refused(C):
    X, y = features(60, 6, 2)
    with pytest.raises(FitError, match="expected auto"):
        LogisticHead(C=C).fit(X, y)


def test_one_class_is_named_as_python_writes_it():
    with pytest.raises(ValueError, match=r"got one class: 0\.$"):
        LogisticHead().fit(np.eye(3), np.zeros(3, int))
