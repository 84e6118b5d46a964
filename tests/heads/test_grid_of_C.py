"""The grid of C grows where its best value is at an end, and the choice is scikit-learn's on a wide grid."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from bottleneck.errors import StrictError
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.heads.config import AUTO_C, FURTHEST, beyond
from bottleneck.heads.cross_validation import assign_folds
from bottleneck.heads.linear_heads import RidgeRegressionHead
from bottleneck.heads.logistic import sweep
from bottleneck.heads.ridge import ridge_sweep
from bottleneck.heads.solver.problem import TargetProblem
from bottleneck.samples import ArrayRows, Target
from tests.helpers.caches import class_target, write_cache
from tests.helpers.problems import features, question

WIDE = 10.0 ** (np.arange(-20, 9) / 2)


def nearly_equal(n=240, D=8, seed=0):
    """Features (n, D) that nearly agree, and values (n,) by their differences: a weak penalty is best."""
    generator = np.random.default_rng(seed)
    apart = generator.standard_normal((n, D))
    X = (generator.standard_normal((n, 1)) + 0.03 * apart).astype(np.float32)
    return X, apart[:, 0] - apart[:, 1] + 0.3 * generator.standard_normal(n)


def scikit_learns_means(model_at, Z, answers, fold, score):
    """The mean score (G,) over the folds at each of `WIDE`."""
    folds = range(fold.max() + 1)
    return np.array(
        [
            np.mean(
                [
                    score(model_at(C).fit(Z[fold != k], answers[fold != k]), Z[fold == k], answers[fold == k])
                    for k in folds
                ]
            )
            for C in WIDE
        ]
    )


def standardised(X):
    return StandardScaler().fit_transform(X.astype(np.float64))


def logistic(C):
    return LogisticRegression(C=C, tol=1e-8, max_iter=1000, solver="newton-cholesky")


def test_classes_far_beyond_the_grid():
    X, value = nearly_equal()
    y = (value > 0).astype(int)
    asked = question(y, 2, folds=4)
    (fixed,) = sweep(ArrayRows(X), [asked], AUTO_C)
    (grown,) = sweep(ArrayRows(X), [asked], "auto")
    assert (fixed.C, fixed.scores.added) == (1.0, ())
    judged = scikit_learns_means(
        logistic, standardised(X), y, asked.fold, lambda model, Z, y: (model.predict(Z) == y).mean()
    )
    assert grown.scores.mean.max() == pytest.approx(judged.max())
    at = np.flatnonzero(np.isclose(WIDE, grown.C))
    assert judged[at] == pytest.approx(judged.max())
    assert grown.C > 100
    assert (np.diff(grown.scores.C) > 0).all()
    assert set(AUTO_C) | set(grown.scores.added) == set(grown.scores.C)
    assert (grown.out_of_fold.argmax(axis=1) == y).mean() == pytest.approx(judged.max())
    assert grown.converged


def test_labels_far_beyond_the_grid():
    """Each label by itself in scikit-learn; the share of right answers over all of them."""
    X, value = nearly_equal(seed=1)
    labels = np.stack([value > 0, value > 0.7, value < -0.5], axis=1).astype(np.uint8)
    target = Target("t", "multilabel", labels, ("a", "b", "c"))
    fold = assign_folds(target, 3)
    (grown,) = sweep(ArrayRows(X), [TargetProblem(target, fold)], "auto")
    judged = np.mean(
        [
            scikit_learns_means(
                logistic, standardised(X), labels[:, k], fold, lambda m, Z, y: (m.predict(Z) == y).mean()
            )
            for k in range(3)
        ],
        axis=0,
    )
    at = int(np.flatnonzero(np.isclose(WIDE, grown.C))[0])
    assert grown.C > 10
    assert judged[at] == pytest.approx(judged.max(), abs=2e-3)  # an answer of 720 may lie on the boundary


@pytest.mark.parametrize("seed", range(3))
def test_quantities_far_beyond_the_grid(seed):
    X, value = nearly_equal(seed=seed)
    target = Target("v", "regression", value)
    fold = assign_folds(target, 4, seed=seed)
    (grown,) = ridge_sweep(ArrayRows(X), [TargetProblem(target, fold)], "auto")
    judged = scikit_learns_means(
        lambda C: Ridge(alpha=1 / C),
        standardised(X),
        value,
        fold,
        lambda model, Z, v: -np.square(model.predict(Z) - v).mean(),
    )
    at = int(np.flatnonzero(np.isclose(WIDE, grown.C))[0])
    assert grown.C > 100
    assert judged[at] == pytest.approx(judged.max(), rel=1e-3)


def test_the_estimator_goes_on_as_well():
    """Generalised cross-validation by the hat matrix, in numpy."""
    X, value = nearly_equal()
    Z, centred = standardised(X), value - value.mean()
    errors = []
    for C in WIDE:
        hat = Z @ np.linalg.solve(Z.T @ Z + np.eye(8) / C, Z.T)
        rss = np.square(centred - hat @ centred).mean()
        errors.append(rss / (1 - (1 + np.trace(hat)) / len(Z)) ** 2)
    head = RidgeRegressionHead(C="auto").fit(X, value)
    at = int(np.flatnonzero(np.isclose(WIDE, head.C_))[0])
    assert head.C_ > 1
    assert errors[at] == pytest.approx(min(errors), rel=2e-2)


def test_a_best_value_inside_costs_nothing(monkeypatch):
    """The solver is not asked for more, and the head is that of the fixed grid."""
    X, y = features(300, 40, 3)
    asked = question(y, 3, folds=4)
    (fixed,) = sweep(ArrayRows(X), [asked], AUTO_C)

    def refuse(*arguments, **options):
        raise AssertionError("a further value of C was solved")

    monkeypatch.setattr("bottleneck.heads.logistic._Sweep.solve_further", refuse)
    (found,) = sweep(ArrayRows(X), [asked], "auto")
    assert AUTO_C[0] < found.C < AUTO_C[-1]
    assert (found.C, found.scores.added) == (fixed.C, ())
    np.testing.assert_array_equal(found.arrays["coef"], fixed.arrays["coef"])


@pytest.mark.parametrize("case", ["constant", "always right", "noise"])
def test_nothing_to_gain_ends_soon(case):
    generator = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = {
        "constant": np.ones((90, 6), np.float32),
        "always right": (generator.standard_normal((90, 6)) + 20 * np.eye(3, 6)[y]).astype(np.float32),
        "noise": generator.standard_normal((90, 6)).astype(np.float32),
    }[case]
    (found,) = sweep(ArrayRows(X), [question(y, 3, folds=3)], "auto")
    assert len(found.scores.added) <= {"noise": 4}.get(case, 0)
    target = Target("v", "regression", generator.standard_normal(90))
    (ridge,) = ridge_sweep(ArrayRows(X), [TargetProblem(target, np.arange(90) % 3)], "auto")
    assert len(ridge.scores.added) <= 4


def test_each_target_has_a_grid_of_its_own():
    """A target whose best C is inside is chosen as if alone, though another one's grid grows."""
    X, value = nearly_equal()
    hard, easy = question((value > 0) * 1, 2, folds=4), question((X[:, 0] > 0) * 1, 2, folds=4, seed=1)
    together = sweep(ArrayRows(X), [hard, easy], "auto")
    for asked, found in zip((hard, easy), together, strict=True):
        (alone,) = sweep(ArrayRows(X), [asked], "auto")
        assert (found.C, found.scores.added) == (alone.C, alone.scores.added)


def test_a_decade_beyond():
    assert beyond(AUTO_C, 5) == ()
    assert beyond(AUTO_C, 12) == pytest.approx((10**0.5, 10))
    assert beyond(AUTO_C, 0) == pytest.approx((1e-7, 10**-6.5))
    assert beyond((1.0, FURTHEST[1]), 1) == beyond((FURTHEST[0], 1.0), 0) == ()


@pytest.fixture
def far(tmp_path):
    """A cache whose target needs a weak penalty."""
    X, value = nearly_equal()
    number = Target("age", "regression", value)
    return write_cache(tmp_path / "x.h5", X, [class_target((value > 0) * 1), number])


def codes(result, target="label"):
    return {note.code for note in result.notes if note.details.get("target") == target}


def test_what_is_extended_is_told_and_recorded(far, tmp_path):
    result = fit_heads(far, head=["logistic", "ridge"], output=tmp_path)
    assert "c-grid-extended" in codes(result)
    assert "c-grid-extended" in codes(result, "age")
    for record in result.heads:
        scores = record["cv_scores"]
        assert record["C"] in scores["added"]
        assert set(scores["added"]) < set(scores["C"])
        assert len(scores["C"]) == len(scores["mean"]) == len(scores["loss"])


def test_a_grid_that_was_given_is_kept_and_its_end_told(far, tmp_path):
    result = fit_heads(far, C=[0.1, 1.0], output=tmp_path)
    assert {record["C"] for record in result.heads} == {1.0}
    assert codes(result) == codes(result, "age") == {"c-at-grid-end"}
    assert codes(fit_heads(far, C=1.0, output=tmp_path)) == set()


def test_a_head_that_did_not_converge_says_so(far, tmp_path, monkeypatch):
    monkeypatch.setattr("bottleneck.heads.solver.path.MAX_PASSES", 1)
    result = fit_heads(far, targets=["label"], C=1e3, output=tmp_path / "heads")
    assert [record["converged"] for record in result.heads] == [False]
    assert "not-converged" in codes(result)
    with pytest.raises(StrictError, match="did not converge at C = 1e"):
        fit_heads(far, targets=["label"], C=1e3, output=tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()
