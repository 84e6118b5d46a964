"""The scales of blocks of inputs: a block that decides is heard, noise is not, and given scales are kept."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from bottleneck.heads.block_scales import _LeastSquares, choose_scales
from bottleneck.heads.config import SweepConfig
from bottleneck.heads.cross_validation import assign_folds
from bottleneck.heads.fit import fit_kind
from bottleneck.heads.logistic import held_out_logits
from bottleneck.heads.ridge import held_out_values
from bottleneck.heads.solver.problem import TargetProblem
from bottleneck.samples import ArrayRows, InputBlock, Target
from tests.helpers.problems import features, objective, question, standardised_coef

ARRAYS = ("coef", "intercept", "mean", "scale")
AUTO, EQUAL = SweepConfig(), SweepConfig(scales="equal")


def side_by_side(**parts):
    """Rows of named blocks."""
    rows = ArrayRows(np.hstack(list(parts.values())).astype(np.float32))
    ends = np.cumsum([0, *(part.shape[1] for part in parts.values())]).tolist()
    rows.inputs = tuple(map(InputBlock, parts, ends, ends[1:]))
    return rows


def accuracy(head, rows, y):
    logits = rows.array @ head.arrays["coef"].T + head.arrays["intercept"]
    return (logits.argmax(axis=1) == y).mean()


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_one_number_that_decides_is_heard_beside_two_images(kind):
    generator = np.random.default_rng(0)
    n = 400
    y = np.arange(n) % 2
    number = (2 * y - 1 + 0.2 * generator.standard_normal(n))[:, None]
    left, right = generator.standard_normal((2, n, 1280))
    train, val = (
        side_by_side(left=left[part], right=right[part], covariates=number[part])
        for part in (slice(0, 200), slice(200, n))
    )
    asked = question(y[:200], 2, folds=4)
    (drowned,) = fit_kind(kind, train, [asked], "auto", EQUAL)
    (heard,) = fit_kind(kind, train, [asked], "auto", AUTO)
    assert accuracy(drowned, val, y[200:]) < 0.75
    assert accuracy(heard, val, y[200:]) > 0.98
    assert heard.scores.mean.max() > 0.98
    scales = heard.settings["scales"]
    assert scales["covariates"] > 10 * max(scales["left"], scales["right"])


def test_a_quantity_by_one_number():
    generator = np.random.default_rng(1)
    number = generator.standard_normal((160, 1))
    rows = side_by_side(image=generator.standard_normal((160, 600)), covariates=number)
    target = Target("v", "regression", 3 * number[:, 0] + 0.1 * generator.standard_normal(160))
    asked = TargetProblem(target, assign_folds(target, 4))
    (drowned,) = fit_kind("ridge", rows, [asked], "auto", EQUAL)
    (heard,) = fit_kind("ridge", rows, [asked], "auto", AUTO)
    assert drowned.scores.mean.max() < 0.9
    assert heard.scores.mean.max() > 0.98


def test_each_target_has_its_own_scales():
    generator = np.random.default_rng(2)
    y = np.arange(120) % 2
    other = np.where(np.arange(120) < 60, 0, 1)
    first, second = ((3 * (2 * side - 1) + generator.standard_normal(120))[:, None] for side in (y, other))
    rows = side_by_side(a=np.hstack([first] * 3), noise=generator.standard_normal((120, 300)), b=second)
    one, two = fit_kind(
        "logistic", rows, [question(y, 2, folds=3), question(other, 2, folds=3)], "auto", AUTO
    )
    assert one.settings["scales"]["a"] > 3 * one.settings["scales"]["noise"]
    assert two.settings["scales"]["b"] > 3 * two.settings["scales"]["noise"]
    assert min(one.scores.mean.max(), two.scores.mean.max()) > 0.97


def test_given_scales_are_scikit_learns_features_times_the_scales():
    X, y = features(150, 20, 3)
    N = np.random.default_rng(3).standard_normal((150, 30))
    rows = side_by_side(a=X, b=N, c=X[:, :4])
    scales = {"a": 0.5, "b": 0.0, "c": 4.0}
    (head,) = fit_kind("logistic", rows, [question(y, 3)], 0.05, AUTO, scales=scales)
    Z = StandardScaler().fit_transform(rows.array.astype(np.float64)) * np.repeat([0.5, 0, 4], [20, 30, 4])
    model = LogisticRegression(C=0.05, tol=1e-8, max_iter=10000).fit(Z, y)
    best = objective(Z, y, model.coef_, model.intercept_, 0.05)
    assert not head.arrays["coef"][:, 20:50].any()
    coef, intercept = standardised_coef(
        *(head.arrays[name] for name in ("coef", "intercept", "mean", "scale"))
    )
    assert -1e-6 < objective(Z, y, coef, intercept, 0.05) / best - 1 < 1e-5
    (ridge,) = fit_kind("ridge", rows, [question(y, 3)], 0.05, AUTO, scales=scales)
    judge = Ridge(alpha=20).fit(Z, np.where(y[:, None] == np.arange(3), 1.0, -1.0))
    found = rows.array @ ridge.arrays["coef"].T + ridge.arrays["intercept"]
    np.testing.assert_allclose(found, judge.predict(Z), atol=1e-3)


def test_chosen_scales_leave_the_optimum_to_scikit_learn():
    """The head at the scales that it records is scikit-learn's on features times these scales."""
    X, y = features(160, 24, 3)
    rows = side_by_side(a=X, b=np.random.default_rng(3).standard_normal((160, 200)))
    (head,) = fit_kind("logistic", rows, [question(y, 3, folds=3)], 0.05, AUTO)
    scales = head.settings["scales"]
    Z = StandardScaler().fit_transform(rows.array.astype(np.float64))
    Z *= np.repeat([scales["a"], scales["b"]], [24, 200])
    model = LogisticRegression(C=0.05, tol=1e-8, max_iter=10000).fit(Z, y)
    best = objective(Z, y, model.coef_, model.intercept_, 0.05)
    coef, intercept = standardised_coef(
        *(head.arrays[name] for name in ("coef", "intercept", "mean", "scale"))
    )
    assert -1e-6 < objective(Z, y, coef, intercept, 0.05) / best - 1 < 1e-4


def test_what_does_not_help_stays_as_it_is():
    """Two halves of the same features: no choice is better than equal scales by its noise."""
    X, y = features(200, 40, 3, seed=5)
    order = np.random.default_rng(0).permutation(40)
    rows = side_by_side(a=X[:, order[:20]], b=X[:, order[20:]])
    found = choose_scales(rows, rows.inputs, question(y, 3, folds=3), held_out_logits, AUTO)
    np.testing.assert_allclose(found, 1)


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_blocks_without_content_and_samples_without_folds(kind):
    solve = held_out_logits if kind == "logistic" else held_out_values
    X, y = features(60, 6, 2)
    rows = side_by_side(a=X, covariates=np.full((60, 2), 7.0))
    assert choose_scales(rows, rows.inputs, question(y, 2, folds=3), solve, AUTO)[0] > 0
    assert (choose_scales(rows, rows.inputs, question(y, 2), solve, AUTO) == 1).all()
    blank = side_by_side(a=np.ones((60, 3)), b=np.ones((60, 2)))
    assert np.isfinite(choose_scales(blank, blank.inputs, question(y, 2, folds=3), solve, AUTO)).all()


def test_one_block_has_no_scale():
    X, y = features(60, 6, 2)
    (head,) = fit_kind("logistic", side_by_side(a=X), [question(y, 2, folds=3)], [0.1], AUTO)
    assert "scales" not in head.settings


def test_the_search_has_scikit_learns_ridge_losses():
    """Held-out squared errors, with an intercept that has no penalty, and samples weighed by their class."""
    X, y = features(60, 12, 3)
    asked = question(y, 3, folds=4, class_weight="balanced")
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    answers, weights = np.where(y[:, None] == np.arange(3), 1.0, -1.0), 20 / np.bincount(y)[y]
    expected = np.zeros((2, 60))
    for index, C in enumerate((0.01, 1.0)):
        for fold in range(4):
            train, held = asked.fold != fold, asked.fold == fold
            judge = Ridge(alpha=1 / C).fit(Z[train], answers[train], sample_weight=weights[train])
            expected[index, held] = ((judge.predict(Z[held]) - answers[held]) ** 2).mean(axis=1)
    np.testing.assert_allclose(_LeastSquares(asked)(Z @ Z.T, (0.01, 1.0)), expected, rtol=1e-6)


def test_the_head_s_solver_is_asked_for_what_was_found_and_not_for_each_step():
    generator = np.random.default_rng(0)
    y = np.arange(60) % 2
    parts = {f"noise{k}": generator.standard_normal((60, 40)) for k in range(5)}
    parts |= {f"says{k}": generator.standard_normal((60, 3)) + (2 * y - 1)[:, None] for k in range(3)}
    rows, solved = side_by_side(**parts), []

    def solve(*given):
        solved.append(given)
        return held_out_logits(*given)

    found = choose_scales(rows, rows.inputs, question(y, 2, folds=3), solve, AUTO)
    assert len(solved) <= 3
    assert found[5:].min() > found[:5].max()
