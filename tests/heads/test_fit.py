"""Scores of k-shot draws against heads fitted on the same draws by scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from bottleneck.errors import FitError
from bottleneck.heads.fit import draw_shots, shot_scores
from bottleneck.samples import ArrayRows
from tests.helpers.problems import features, question


def test_a_draw_is_scored_as_a_head_fitted_on_it():
    X, y = features(180, 24, 3)
    target = question(y, 3).target
    (scores,) = shot_scores(ArrayRows(X), target, 0.01, [10], repeats=2, seed=4)
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    draws = draw_shots(target, 10, 2, np.random.default_rng([4, 10]))
    for drawn, score in zip(draws, scores, strict=True):
        assert drawn.sum() == 30
        judge = LogisticRegression(C=0.01 * 180 / 30, tol=1e-8, max_iter=5000).fit(Z[drawn], y[drawn])
        assert judge.score(Z[~drawn], y[~drawn]) == pytest.approx(score, abs=0.014)  # two of 150


def test_a_class_with_fewer_samples_gives_all():
    target = question(np.repeat([0, 1], [3, 20]), 2).target
    draws = draw_shots(target, 5, 4, np.random.default_rng(0))
    assert draws[:, :3].all()
    assert (draws[:, 3:].sum(axis=1) == 5).all()


def test_shots_that_leave_no_sample_are_refused():
    X, y = features(30, 5, 3)
    with pytest.raises(FitError, match="would leave none"):
        shot_scores(ArrayRows(X), question(y, 3).target, 0.1, [len(y)], repeats=1)
