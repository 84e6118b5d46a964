"""Ridge heads: their moments, folds by subtraction, and rows that no head can be fitted on."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from bottleneck.errors import FitError
from bottleneck.heads.linear_heads import LogisticHead, RidgeHead, RidgeRegressionHead
from bottleneck.heads.ridge import ridge_sweep
from bottleneck.heads.solver.design import Standardisation, build_design
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
from bottleneck.heads.solver.ridge_path import Moments, RidgePath, moments_by_fold
from bottleneck.samples import ArrayRows, Target
from bottleneck.threads import WorkerPool
from tests.helpers.problems import features


def values_problem(values, fold):
    return TargetProblem(Target("y", "regression", np.asarray(values, np.float64)), np.asarray(fold))


def test_moments_come_fold_by_fold_and_last_those_of_rows_that_no_fold_holds_out():
    X, y = features(50, 6, 3)
    fold = np.arange(50) % 4 - 1
    assert fold.min() == NO_FOLD
    answers, weights = (y[:, None] == np.arange(3)) * 2.0 - 1, 1.0 + np.arange(50) % 2
    with WorkerPool() as pool:
        design, order = build_design(ArrayRows(X), Standardisation.identity(6), pool, 1 << 30)
        found = moments_by_fold(design, pool, answers[order], weights[order], fold[order])
    Z = design.read(0, 50)
    for moments, number in zip(found, (0, 1, 2, NO_FOLD), strict=True):
        rows = fold[order] == number
        w, z, a = weights[order][rows], Z[rows].astype(np.float64), answers[order][rows]
        assert moments.weight == w.sum()
        np.testing.assert_allclose(moments.xx, (z * w[:, None]).T @ z, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(moments.xy, (z * w[:, None]).T @ a, rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(moments.yy, (a**2 * w[:, None]).sum(axis=0), rtol=1e-15)


def test_samples_that_no_fold_holds_out_are_in_every_fit():
    """Each fold's head is scikit-learn's on the other folds and on the samples without a fold."""
    X, _ = features(90, 8, 3, dtype=np.float64)
    values = X @ np.linspace(-1, 1, 8) + np.sin(np.arange(90))
    fold = np.arange(90) % 4 - 1
    (head,) = ridge_sweep(ArrayRows(X.astype(np.float32)), [values_problem(values, fold)], [0.1])
    Z = StandardScaler().fit_transform(X)
    for number in range(3):
        held = fold == number
        judge = Ridge(alpha=10).fit(Z[~held], values[~held])
        np.testing.assert_allclose(head.out_of_fold[held, 0], judge.predict(Z[held]), atol=1e-4)
    assert np.isnan(head.out_of_fold[fold == NO_FOLD]).all()


def test_answers_far_from_zero_cost_no_digits():
    """Sums over answers are in float64: seconds since 1970 have a spread of a millionth of their mean."""
    X, _ = features(200, 6, 3)
    offsets = X @ np.arange(6.0) + np.sin(np.arange(200))
    fold = np.arange(200) % 3
    near, far = (
        ridge_sweep(ArrayRows(X), [values_problem(offsets + shift, fold)], [1.0])[0] for shift in (0, 1.6e9)
    )
    np.testing.assert_allclose(far.arrays["coef"], near.arrays["coef"], rtol=1e-3, atol=1e-3)


def test_rows_without_weight_are_refused():
    with pytest.raises(FitError, match="no sample with a positive weight"):
        RidgePath.of(Moments.zeros(3, 1))
    held_out_at_once = values_problem(np.arange(20.0), np.zeros(20, np.int16))
    with pytest.raises(FitError, match="no sample with a positive weight"):
        ridge_sweep(ArrayRows(features(20, 4, 2)[0]), [held_out_at_once], [1.0])


@pytest.mark.parametrize("head", [LogisticHead(), RidgeHead(), RidgeRegressionHead()])
def test_weights_that_are_all_zero_are_refused(head):
    X, y = features(30, 4, 2)
    with pytest.raises(ValueError, match="ample weights"):
        head.fit(X, y, sample_weight=np.zeros(30))
