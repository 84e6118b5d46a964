"""How much faster than scikit-learn are hundreds of heads, and how exact?

    python -m tests.benchmarks.heads [--short]

Features are made: correlated, cut at zero, with ten classes that overlap. The peer is `LogisticRegressionCV`
over the same 13 values of C and 5 folds. Every contender is a process of its own, they take turns, and
seconds are without imports. The long form has 10,000 rows, and 50,000 for which the peer runs once (a
quarter of an hour or more). At its default tolerance the peer stops above the optimum, at large C far above;
the long form also has `LogisticRegression` at tolerances that come as close to it as we promise to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.measurement import FEWER, LESS, REPEATS, Row, main
from tests.benchmarks.peers import Clock
from tests.benchmarks.process import run_child, take_turns

GRID = np.logspace(-6, 0, 13)
FOLDS, D = 5, 1280
EXACT = 1e-4  # relative, of the objective
SWEEP = "LogisticRegressionCV"


def rows(short: bool) -> Iterator[Row]:
    """The sweep beside scikit-learn, its exactness, many targets, many classes, few rows."""
    with tempfile.TemporaryDirectory(prefix="bottleneck-heads-") as scratch:
        folder = Path(scratch)
        n = 800 if short else 10_000
        yield from sweep(made(folder, n, 10), n, REPEATS)
        yield from exactness(made(folder, n, 10), n)
        yield from many_targets(made(folder, n, 10), n)
        few = take_turns({"ours": ("heads", "ours", {"features": made(folder, 244, 2)})})["ours"]
        seconds = tuple(one["seconds"] for one in few)
        yield Row("13 C × 5 folds, n = 244, 2 classes", "s by the clock", seconds, at_most=1.0)
        if not short:
            yield from equal_exactness(made(folder, n, 10), n)
            yield from sweep(made(folder, 50_000, 10), 50_000, 1)
            yield from equal_exactness(made(folder, 50_000, 10), 50_000)
            yield from many_classes(made(folder, 50_000, 1000))


def sweep(features: Path, n: int, repeats: int) -> Iterator[Row]:
    """13 C × 5 folds and the refit beside the peer."""
    asked = {"features": features, "grid": list(GRID), "folds": FOLDS}
    found = take_turns(
        {"ours": ("heads", "ours", asked), "theirs": ("peers", "sklearn_sweep", asked)}, repeats
    )
    ours, theirs = found["ours"], found["theirs"]
    what, conditions = f"13 C × 5 folds and refit, n = {n:,}", f"{D:,} features, 10 classes"
    for key, unit in (("seconds", "s by the clock"), ("processor_seconds", "processor s")):
        sides = [tuple(one[key] for one in side) for side in (ours, theirs)]
        wanted = 20.0 if key == "seconds" else None
        yield Row(what, unit, *sides, SWEEP, FEWER, at_least=wanted, conditions=conditions)
    scores = [tuple(100 * one["cv_accuracy"] for one in side) for side in (ours, theirs)]
    chosen = f"C: {ours[0]['C']:.2g}, the peer's {theirs[0]['C']:.2g}"
    yield Row(f"{what}: accuracy in cross-validation", "%", *scores, SWEEP, LESS, conditions=chosen)


def exactness(features: Path, n: int) -> Iterator[Row]:
    """How far above scikit-learn's optimum a sample of the heads is."""
    gaps = run_child("heads", "exact", features=features).found["gaps"]
    yield Row(
        f"objective above scikit-learn's at tolerance 1e-8, worst of {len(gaps)} heads, n = {n:,}",
        "relative",
        (max(gaps),),
        at_most=EXACT,
    )


def equal_exactness(features: Path, n: int) -> Iterator[Row]:
    """The sweep beside the peer at tolerances that bring it as close to the optimum as we promise to be."""
    ours = run_child("heads", "without_first_fold", features=features).found
    asked = {"features": features, "grid": list(GRID), "folds": FOLDS, "within": EXACT}
    theirs = run_child("peers", "sklearn_at_exactness", objectives=ours["objectives"], **asked).found
    tolerances = f"{max(theirs['tolerances']):g} … {min(theirs['tolerances']):g}"
    conditions = (
        f"the peer without the first fold, times {FOLDS}, no refit; at each C the largest tolerance that "
        f"leaves {EXACT:g}: {tolerances}, in {sum(theirs['iterations'])} iterations"
    )
    for key, unit in (("seconds", "s by the clock"), ("processor_seconds", "processor s")):
        yield Row(
            f"13 C × 5 folds and refit, n = {n:,}, at equal exactness",
            unit,
            (ours[key],),
            (FOLDS * theirs[key],),
            "LogisticRegression",
            FEWER,
            conditions=conditions,
        )


def many_targets(features: Path, n: int) -> Iterator[Row]:
    """50 binary targets beside one."""
    found = take_turns(
        {count: ("heads", "targets", {"features": features, "count": count}) for count in (1, 50)}
    )
    conditions = f"n = {n:,}, 13 C × 5 folds"
    for key, unit in (("seconds", "s by the clock"), ("processor_seconds", "processor s")):
        sides = [tuple(one[key] for one in found[count]) for count in (50, 1)]
        yield Row("50 binary targets", unit, *sides, "one target", at_most=5.0, conditions=conditions)


def many_classes(features: Path) -> Iterator[Row]:
    """1,000 classes at one C."""
    child = run_child("heads", "ours", features=features, grid=[1e-3], folds=0)
    yield Row("1,000 classes, n = 50,000, one C", "s by the clock", (child.found["seconds"],))
    yield Row("1,000 classes, n = 50,000, one C: memory", "MB, all of the process", (child.megabytes,))


def made(folder: Path, n: int, classes: int) -> Path:
    """An .npz file of x (n, D) and y (n,)."""
    path = folder / f"{n}-{classes}.npz"
    if not path.exists():
        x, y = synthetic(n, classes)
        np.savez(path, x=x, y=y)
    return path


def synthetic(n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Sparse, correlated rows with a spectrum that falls like 1/k, as of a network's end; 5 % mislabelled."""
    generator = np.random.default_rng(0)
    y = np.arange(n) % classes
    latent = 256
    centres = generator.standard_normal((classes, latent)).astype(np.float32)
    mixing = generator.standard_normal((latent, D)).astype(np.float32)
    mixing *= (np.arange(1, latent + 1, dtype=np.float32) ** -0.5)[:, None]
    z = generator.standard_normal((n, latent), dtype=np.float32) + 0.7 * centres[y]
    x = np.maximum(z @ mixing + 0.5 * generator.standard_normal((n, D), dtype=np.float32) - 1, 0)
    wrong = generator.random(n) < 0.05
    y[wrong] = generator.integers(0, classes, wrong.sum())
    return x, y


# ---- each in a process of its own


def load(path: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as data:
        return data["x"].astype(np.float32), data["y"].astype(np.int64)


def problem_of(y: np.ndarray, folds: int):
    """A class target as the sweep takes it."""
    from bottleneck.heads.cross_validation import assign_folds
    from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
    from bottleneck.samples import Target

    target = Target("y", "class", y, tuple(map(str, range(int(y.max()) + 1))))
    fold = assign_folds(target, folds) if folds else np.full(len(y), NO_FOLD, np.int16)
    return TargetProblem(target, fold)


def measured_sweep(x: np.ndarray, problems: list, grid: np.ndarray) -> tuple[list, dict]:
    import torch  # noqa: F401  # which computes where rows are many; seconds are without imports

    from bottleneck.heads.logistic import sweep
    from bottleneck.samples import ArrayRows

    clock = Clock()
    found = sweep(ArrayRows(x), problems, grid)
    return found, clock.took(len(x))


def ours(features: str, grid: list[float] | None = None, folds: int = FOLDS) -> dict:
    """The whole sweep."""
    x, y = load(features)
    found, figures = measured_sweep(x, [problem_of(y, folds)], np.array(grid) if grid else GRID)
    score = float(found[0].scores.mean.max()) if folds else float("nan")
    return figures | {"C": found[0].C, "cv_accuracy": score}


def targets(features: str, count: int) -> dict:
    """`count` binary targets, each half of the classes against the other half."""
    x, y = load(features)
    generator = np.random.default_rng(1)
    sides = [np.isin(y, generator.permutation(10)[:5]).astype(np.int64) for _ in range(count)]
    return measured_sweep(x, [problem_of(side, FOLDS) for side in sides], GRID)[1]


def solved(x: np.ndarray, problem) -> tuple[list, list, dict]:
    """Heads and figures of `measured_sweep`, and between them the solver's solution at each C."""
    import bottleneck.heads.logistic as module

    solutions = []
    solve = module.solve_path

    def watched(*arguments, **options):
        for solution in solve(*arguments, **options):
            solutions.append(solution)
            yield solution

    module.solve_path = watched
    found, figures = measured_sweep(x, [problem], GRID)
    module.solve_path = solve
    return found, solutions, figures


def without_first_fold(features: str) -> dict:
    """The whole sweep, and the objectives of the heads that leave the first fold out."""
    x, y = load(features)
    _, solutions, figures = solved(x, problem_of(y, FOLDS))
    return figures | {"objectives": [float(solution.objective[0][0]) for solution in solutions]}


def exact(features: str) -> dict:
    """Two folds' heads at three C, and the refit, against scikit-learn's optimum on the same rows."""
    x, y = load(features)
    asked = problem_of(y, FOLDS)
    (found,), solutions, _ = solved(x, asked)
    coef, intercept, mean, scale = (found.arrays[name] for name in ("coef", "intercept", "mean", "scale"))
    z = ((x - mean) / scale).astype(np.float32)
    whole = objective(z, y, coef * scale, intercept + coef @ mean, found.C)
    gaps = [whole / best_objective(z, y, found.C) - 1]
    for place in (3, 8, 12):
        for fold in (0, 2):
            seen = asked.fold != fold
            best = best_objective(z[seen], y[seen], GRID[place])
            gaps.append(float(solutions[place].objective[0][fold]) / best - 1)
    return {"gaps": gaps}


def best_objective(z: np.ndarray, y: np.ndarray, C: float) -> float:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, tol=1e-8, max_iter=20_000).fit(z, y)
    return objective(z, y, model.coef_, model.intercept_, C)


def objective(z: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray, C: float) -> float:
    """Of a softmax head with a row of coefficients per class, in float64."""
    logits = z.astype(np.float64) @ coef.T.astype(np.float64) + intercept
    loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    return C * loss.sum() + 0.5 * np.square(coef, dtype=np.float64).sum()


if __name__ == "__main__":
    main(rows, __doc__)
