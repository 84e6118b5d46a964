"""The batched solver against scikit-learn's optimum, and against itself in other company."""

import numpy as np
import pytest

from bottleneck.errors import FitError
from bottleneck.heads.config import SweepConfig
from bottleneck.heads.logistic import sweep
from bottleneck.heads.solver.objective import Passes
from bottleneck.heads.solver.path import _extrapolated, refit, solve_path
from bottleneck.samples import ArrayRows
from tests.helpers.problems import features, judge, objective, question, standardised_coef

GRID = (1e-6, 1e-4, 1e-2, 1.0)


def relative_gap(X, y, fitted, C, weights=None):
    """How far a head's objective is above scikit-learn's."""
    Z, best = judge(X, y, C, weights)
    coef, intercept = standardised_coef(
        fitted.arrays["coef"], fitted.arrays["intercept"], fitted.arrays["mean"], fitted.arrays["scale"]
    )
    if len(coef) == 2:  # the two halves of one logit
        coef, intercept = 2 * coef[1:], 2 * intercept[1:]
    return objective(Z, y, coef, intercept, C, weights) / best - 1


@pytest.mark.parametrize(("n", "D", "K"), [(400, 20, 3), (300, 15, 2), (60, 150, 4), (50, 90, 2)])
@pytest.mark.parametrize("C", GRID)
def test_reaches_scikit_learns_optimum(n, D, K, C):
    X, y = features(n, D, K)
    (fitted,) = sweep(ArrayRows(X), [question(y, K)], [C])
    assert fitted.converged
    assert -1e-6 < relative_gap(X, y, fitted, C) < 1e-4


def test_what_hardly_varies_counts_at_large_C():
    """Features that nearly agree, classes by their differences: eigenvalues far below the largest."""
    generator = np.random.default_rng(0)
    apart = generator.standard_normal((400, 40))
    X = (generator.standard_normal((400, 1)) + 0.01 * apart).astype(np.float32)
    y = (apart[:, 0] - apart[:, 1] + generator.standard_normal(400) > 0).astype(int)
    (fitted,) = sweep(ArrayRows(X), [question(y, 2)], [1e3])
    assert relative_gap(X, y, fitted, 1e3) < 1e-4


def test_every_head_of_a_sweep_reaches_its_optimum(monkeypatch):
    """All C × folds side by side: each fold's head is the one fitted alone on the other folds."""
    X, y = features(300, 40, 3)
    asked = question(y, 3, folds=4)
    solutions = []

    def watched(*arguments, **options):
        for solution in solve_path(*arguments, **options):
            solutions.append(solution)
            yield solution

    monkeypatch.setattr("bottleneck.heads.logistic.solve_path", watched)
    (fitted,) = sweep(ArrayRows(X), [asked], GRID)
    Z = ((X - fitted.arrays["mean"]) / fitted.arrays["scale"]).astype(np.float64)
    for solution in solutions:
        for fold in range(4):
            seen = asked.fold != fold
            model_best = best_on(Z[seen], y[seen], solution.C)
            assert solution.objective[0][fold] / model_best - 1 < 1e-4
            assert solution.objective[0][fold] / model_best - 1 > -1e-6


def best_on(Z, y, C):
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, tol=1e-8, max_iter=10000).fit(Z, y)
    return objective(Z, y, model.coef_, model.intercept_, C)


def test_the_path_does_not_matter():
    """A head started from smaller C has the optimum of one started from nothing."""
    X, y = features(300, 40, 3)
    (along,) = sweep(ArrayRows(X), [question(y, 3)], GRID)
    (alone,) = sweep(ArrayRows(X), [question(y, 3)], GRID[-1:])
    assert along.C == alone.C == 1.0
    gaps = [relative_gap(X, y, fitted, 1.0) for fitted in (along, alone)]
    assert max(gaps) < 1e-5


def test_company_does_not_matter():
    """Targets fitted side by side, of other K and other folds, are as if alone."""
    X, y = features(240, 30, 4)
    questions = [question(y, 4, 3), question(y % 2, 2, 4, seed=1), question((y == 0) * 1, 2, 5)]
    together = sweep(ArrayRows(X), questions, GRID)
    for asked, fitted in zip(questions, together, strict=True):
        (alone,) = sweep(ArrayRows(X), [asked], GRID)
        assert fitted.C == alone.C
        assert np.allclose(fitted.scores.loss, alone.scores.loss, rtol=1e-3)
        gap = relative_gap(X, asked.target.values, fitted, fitted.C)
        assert gap < 1e-4


def test_tasks_with_different_C_share_the_passes_of_the_refit(monkeypatch):
    X, y = features(240, 30, 4)
    gradients, passes, alone = Passes.gradients, [], []

    def counted(self, evaluations):
        passes.append(len(evaluations))
        return gradients(self, evaluations)

    def watched(rows, choices, **options):
        for choice in choices:
            passes.clear()
            refit(rows, [choice], **options)
            alone.append(len(passes))
        passes.clear()
        return refit(rows, choices, **options)

    monkeypatch.setattr(Passes, "gradients", counted)
    monkeypatch.setattr("bottleneck.heads.logistic.refit", watched)
    questions = [question((y == k) * 1, 2, folds=4) for k in range(3)] + [question(y, 4, folds=4)]
    fits = sweep(ArrayRows(X), questions, GRID)
    assert len(alone) > 1
    assert len(passes) < sum(alone)
    for asked, fitted in zip(questions, fits, strict=True):
        assert fitted.converged
        assert relative_gap(X, asked.target.values, fitted, fitted.C) < 1e-5


def test_starts_lie_between_the_line_and_the_parabola():
    optima, solved = [np.array([0.0]), np.array([1.0]), np.array([4.0])], [1e-2, 1e-1, 1.0]  # squares
    assert _extrapolated(optima[:1], solved[:1], 1e-1) == 0
    assert _extrapolated(optima[1:], solved[1:], 10.0) == pytest.approx(7)
    assert _extrapolated(optima, solved, 10.0) == pytest.approx((7 + 9) / 2)
    assert _extrapolated(optima, solved, 1e3) == 4  # too far away


def test_weights_count_as_repeats():
    X, y = features(120, 10, 3)
    times = np.arange(120) % 3
    (weighted,) = sweep(ArrayRows(X), [question(y, 3, sample_weight=times.astype(float))], [0.1])
    repeated = np.repeat(np.arange(120), times)
    (plain,) = sweep(ArrayRows(X[repeated]), [question(y[repeated], 3)], [0.1])
    assert np.allclose(weighted.arrays["mean"], plain.arrays["mean"])
    gap = relative_gap(X[repeated], y[repeated], weighted, 0.1)
    assert -1e-6 < gap < 1e-5


@pytest.mark.parametrize("K", [2, 4])
def test_balanced_classes_as_scikit_learn_balances(K):
    X, y = features(200, 12, K)
    y[y == 0] = np.where(np.arange((y == 0).sum()) % 3, 1, 0)
    (fitted,) = sweep(ArrayRows(X), [question(y, K, class_weight="balanced")], [0.1])
    weights = (len(y) / (K * np.bincount(y)))[y]
    assert -1e-6 < relative_gap(X, y, fitted, 0.1, weights) < 1e-4


def test_a_stream_gives_the_objective_of_memory():
    X, y = features(900, 30, 3)
    asked = question(y, 3, folds=3)
    (memory,) = sweep(ArrayRows(X), [asked], GRID)
    (stream,) = sweep(ArrayRows(X), [asked], GRID, SweepConfig(memory=X.nbytes // 2))
    assert stream.C == memory.C
    gaps = [relative_gap(X, y, fitted, memory.C) for fitted in (memory, stream)]
    assert abs(gaps[0] - gaps[1]) < 1e-5
    assert np.allclose(stream.scores.loss, memory.scores.loss, rtol=1e-3)


def test_a_stream_does_not_depend_on_the_block_size(monkeypatch):
    X, y = features(700, 24, 3)
    found = []
    for block in (1 << 10, 1 << 14, 1 << 20):
        monkeypatch.setattr("bottleneck.heads.solver.design.STREAM_BYTES", block)
        (fitted,) = sweep(ArrayRows(X), [question(y, 3)], [1e-3, 1e-2], SweepConfig(memory=1 << 14))
        found.append(relative_gap(X, y, fitted, 1e-2))
    assert np.ptp(found) < 1e-5


def test_a_stream_of_half_floats_is_as_one_of_floats():
    X, y = features(300, 12, 3)
    half = X.astype(np.float16)
    half.flags.writeable = False  # as of a memory map
    config = SweepConfig(memory=1 << 12)
    found = [
        sweep(ArrayRows(x), [question(y, 3)], [1e-2], config)[0].arrays["coef"]
        for x in (half, half.astype("f4"))
    ]
    assert np.array_equal(*found)


def test_a_stream_names_the_row_that_is_not_finite():
    X, y = features(300, 12, 3)

    class Damaged(ArrayRows):
        passes = 0

        def read(self, start, stop):
            self.passes += start == 0
            block = super().read(start, stop).copy()
            if self.passes > 3 and start <= 250 < stop:
                block[250 - start, 7] = np.nan
            return block

    with pytest.raises(FitError, match="Feature 7 of row 250 is NaN"):
        sweep(Damaged(X), [question(y, 3)], [1e-2], SweepConfig(memory=1 << 12))


def test_the_number_of_threads_changes_nothing(monkeypatch):
    X, y = features(2500, 16, 3)
    found = []
    for cores in (1, 3):
        monkeypatch.setattr("bottleneck.threads.available_cores", lambda cores=cores: cores)
        found.append(sweep(ArrayRows(X), [question(y, 3)], [1e-2])[0].arrays["coef"])
    assert np.allclose(*found, rtol=1e-5, atol=1e-7)


def test_separable_classes_at_a_large_C_are_solved():
    X, y = features(80, 120, 2, seed=3)
    (fitted,) = sweep(ArrayRows(X), [question(y, 2)], [1e4])
    assert fitted.converged
    assert ((X @ fitted.arrays["coef"].T + fitted.arrays["intercept"]).argmax(axis=1) == y).all()
    assert relative_gap(X, y, fitted, 1e4) < 1e-3  # the judge itself stops early here


def test_a_class_without_samples_never_wins():
    X, y = features(90, 10, 3)
    (fitted,) = sweep(ArrayRows(X), [question(y, 5, folds=3)], GRID)
    logits = X @ fitted.arrays["coef"].T + fitted.arrays["intercept"]
    assert logits.argmax(axis=1).max() <= 2
    assert np.isfinite(fitted.out_of_fold).all()
