#!/usr/bin/env python3
"""How much faster than scikit-learn are hundreds of heads, how exact, and in how much memory?

    python tests/benchmarks/heads.py [--features F.npz] [--peer PATH] [--case sweep …] [--rounds 1]

`--features` holds x (n, D) and y (n,), best of real images; without it features are made: correlated, cut at
zero, with ten classes that overlap. The peer is called as `PEER FEATURES.npz` and prints {"seconds", "C",
"cv_accuracy"}; by default scikit-learn's LogisticRegressionCV, restated below. Every measurement is a process
of its own, contenders take turns, and the best round of each counts; seconds are without imports.

Cases: sweep (13 C × 5 folds + refit at n = 10,000), large (the same at 50,000; the peer takes half an hour),
targets (50 binary targets beside one), classes (1,000 at n = 50,000), small (n = 244), memory (a cache of
--gigabytes under --memory 512MiB). Without --case all but large and memory: 10 minutes on 2 idle cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from machine import print_machine

CASES = ("sweep", "large", "targets", "classes", "small", "memory")
GRID = np.logspace(-6, 0, 13)
FOLDS, D = 5, 1280
EXACT = 1e-4  # relative, of the objective
MEMORY = 512 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, help="x (n, D) and y (n,); the first n rows are taken")
    parser.add_argument("--peer", type=Path, help="script beside which the sweep is measured")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of the cache in the memory case")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child[0]](args.child[1])))
        return
    print_machine()
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as scratch:
        folder = Path(scratch)
        for case in args.case or [name for name in CASES if name not in ("large", "memory")]:
            if case in ("sweep", "large"):
                n = 10_000 if case == "sweep" else 50_000
                compare(made(folder, n, 10, args.features), args.peer, args.rounds)
            elif case == "targets":
                many_targets(folder, args.features)
            elif case == "memory":
                bounded_memory(folder, args.gigabytes)
            else:
                one_solve(folder, case)


def compare(features: Path, peer: Path | None, rounds: int) -> None:
    """The whole sweep beside the peer, and the exactness of a sample of heads."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(child("sweep", features))
        theirs.append(child("peer", features) if peer is None else run([sys.executable, peer, features]))
    ours, theirs = (min(found, key=lambda one: one["seconds"]) for found in (ours, theirs))
    ratio = theirs["seconds"] / ours["seconds"]
    row(f"sweep, n = {ours['n']:,}: times faster than the peer", f"{ratio:.1f}", "≥ 20")
    row("    seconds, ours and the peer's", f"{ours['seconds']:.1f}  {theirs['seconds']:.1f}")
    row("    C chosen, ours and the peer's", f"{ours['C']:.2g}  {theirs['C']:.2g}", "equal, or")
    row("    its cv accuracy", f"{ours['cv_accuracy']:.4f}  {theirs['cv_accuracy']:.4f}", "equal scores")
    exact = child("exact", features)
    row(
        "    objective above scikit-learn's at tol 1e-8, worst of 7",
        f"{exact['worst']:.1e}",
        f"≤ {EXACT:.0e}",
    )


def many_targets(folder: Path, features: Path | None) -> None:
    """50 binary targets beside one."""
    data = made(folder, 10_000, 10, features)
    one, fifty = child("targets", f"{data}:1"), child("targets", f"{data}:50")
    row("50 binary targets: times one", f"{fifty['seconds'] / one['seconds']:.1f}", "≤ 5")
    row("    seconds", f"{one['seconds']:.1f}  {fifty['seconds']:.1f}")


def one_solve(folder: Path, case: str) -> None:
    """1,000 classes at one C; or a whole sweep of 244 rows."""
    n, classes = (50_000, 1000) if case == "classes" else (244, 2)
    found = child("classes" if case == "classes" else "sweep", made(folder, n, classes, None))
    what, target = ("one C", "finishes") if case == "classes" else ("whole sweep", "< 1")
    row(f"{classes:,} classes, n = {n:,}, {what}: seconds", f"{found['seconds']:.2f}", target)
    row("    MiB above the imports", f"{found['mebibytes']:.0f}")


def bounded_memory(folder: Path, gigabytes: float) -> None:
    """fit_heads under 512 MiB on a cache that is larger."""
    found = child("memory", f"{folder}:{gigabytes}")
    row(
        f"--memory 512MiB, cache of {found['gigabytes']:.1f} GB: MiB above imports",
        f"{found['mebibytes']:.0f}",
        "≤ 600",
    )
    row("    seconds", f"{found['seconds']:.0f}")


def row(what: str, measured: str, target: str = "") -> None:
    print(f"{what:66}{measured:>16}   {target}", flush=True)


def run(command: list) -> dict:
    """The JSON object that a process prints last."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def child(name: str, argument: object) -> dict:
    return run([sys.executable, __file__, "--child", name, argument])


def made(folder: Path, n: int, classes: int, given: Path | None) -> Path:
    """Features of n rows: the first of `given`, or made up as real as can be."""
    path = folder / f"{n}-{classes}.npz"
    if path.exists():
        return path
    if given is not None:
        with np.load(given) as data:
            x, y = data["x"][:n], data["y"][:n]
    else:
        x, y = synthetic(n, classes)
    np.savez(path, x=x.astype(np.float32), y=y)
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


def load(path: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as data:
        return data["x"].astype(np.float32), data["y"].astype(np.int64)


def question_of(y: np.ndarray, folds: int):
    """A class target as the sweep takes it."""
    from bottleneck.heads.cross_validation import assign_folds
    from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
    from bottleneck.samples import Target

    target = Target("y", "class", y, tuple(map(str, range(int(y.max()) + 1))))
    fold = assign_folds(target, folds) if folds else np.full(len(y), NO_FOLD, np.int16)
    return TargetProblem(target, fold)


def measured_sweep(x: np.ndarray, questions: list, grid: np.ndarray) -> tuple[list, dict]:
    from bottleneck.heads.logistic import sweep
    from bottleneck.samples import ArrayRows

    before, start = peak(), time.perf_counter()
    found = sweep(ArrayRows(x), questions, grid)
    return found, {"seconds": time.perf_counter() - start, "mebibytes": peak() - before, "n": len(x)}


def child_sweep(path: str) -> dict:
    x, y = load(path)
    found, figures = measured_sweep(x, [question_of(y, FOLDS)], GRID)
    return figures | {"C": found[0].C, "cv_accuracy": float(found[0].scores.mean.max())}


def child_targets(argument: str) -> dict:
    path, _, count = argument.rpartition(":")
    x, y = load(path)
    generator = np.random.default_rng(1)
    sides = [np.isin(y, generator.permutation(10)[:5]).astype(np.int64) for _ in range(int(count))]
    return measured_sweep(x, [question_of(side, FOLDS) for side in sides], GRID)[1]


def child_classes(path: str) -> dict:
    x, y = load(path)
    found, figures = measured_sweep(x, [question_of(y, 0)], np.array([1e-3]))
    return figures | {"converged": found[0].converged}


def child_exact(path: str) -> dict:
    """Two folds' heads at three C, and the refit, against scikit-learn's optimum on the same rows."""
    import bottleneck.heads.logistic as module

    x, y = load(path)
    solutions = []
    solve = module.solve_path

    def watched(*arguments, **options):
        for solution in solve(*arguments, **options):
            solutions.append(solution)
            yield solution

    module.solve_path = watched
    asked = question_of(y, FOLDS)
    found = measured_sweep(x, [asked], GRID)[0][0]
    coef, intercept, mean, scale = (found.arrays[name] for name in ("coef", "intercept", "mean", "scale"))
    z = ((x - mean) / scale).astype(np.float32)
    whole = objective(z, y, coef * scale, intercept + coef @ mean, found.C)
    gaps = [whole / best_objective(z, y, found.C) - 1]
    for place in (3, 8, 12):
        for fold in (0, 2):
            seen = asked.fold != fold
            best = best_objective(z[seen], y[seen], GRID[place])
            gaps.append(float(solutions[place].objective[0][fold]) / best - 1)
    return {"worst": max(gaps), "gaps": gaps}


def best_objective(z: np.ndarray, y: np.ndarray, C: float) -> float:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, tol=1e-8, max_iter=20_000).fit(z, y)
    return objective(z, y, model.coef_, model.intercept_, C)


def objective(z: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray, C: float) -> float:
    """Of a softmax head with a row of coefficients per class, in float64."""
    logits = z.astype(np.float64) @ coef.T.astype(np.float64) + intercept
    loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    return C * loss.sum() + 0.5 * np.square(coef, dtype=np.float64).sum()


def child_peer(path: str) -> dict:
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    warnings.simplefilter("ignore")
    x, y = load(path)
    start = time.perf_counter()
    search = LogisticRegressionCV(Cs=GRID, cv=FOLDS, max_iter=2000, tol=1e-4, use_legacy_attributes=False)
    make_pipeline(StandardScaler(), search).fit(x, y)
    seconds = time.perf_counter() - start
    scores = np.asarray(search.scores_).reshape(FOLDS, -1, len(GRID)).mean(axis=(0, 1))
    return {"seconds": seconds, "C": float(np.ravel(search.C_)[0]), "cv_accuracy": float(scores.max())}


def child_memory(argument: str) -> dict:
    """Write a cache of float16 rows in parts of a block, then fit one C on it."""
    folder, _, gigabytes = argument.rpartition(":")
    n = int(float(gigabytes) * 1e9 / (2 * D))
    path = Path(folder, "large.h5")
    done = subprocess.run(
        [sys.executable, __file__, "--child", "write", f"{path}:{n}"], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    import bottleneck.heads.fit
    import bottleneck.report.curves  # noqa: F401
    from bottleneck.fitting.fit_heads import fit_heads

    before, start = peak(), time.perf_counter()
    fit_heads(path, C=1e-3, memory=MEMORY, output=Path(folder, "heads"))
    return {
        "seconds": time.perf_counter() - start,
        "mebibytes": peak() - before,
        "gigabytes": path.stat().st_size / 1e9,
    }


def child_write(argument: str) -> dict:
    from bottleneck.samples import SampleTable, Target
    from bottleneck.store.spec import CacheSpec, NodeSpec
    from bottleneck.store.writer import CacheWriter

    path, _, count = argument.rpartition(":")
    n = int(count)
    keys = [f"{i:07d}.jpg" for i in range(n)]
    digests = [i.to_bytes(32, "big") for i in range(n)]
    x, y = synthetic(8192, 10)
    generator = np.random.default_rng(2)
    table = SampleTable(
        key=np.array(keys, object),
        image=np.arange(n)[:, None],
        split=np.full(n, "train", object),
        targets={"y": Target("y", "class", np.resize(y, n), tuple(map(str, range(10))))},
    )
    spec = CacheSpec(backbone={"name": "drawn"}, preprocess={"size": 8})
    with CacheWriter(Path(path), spec, [NodeSpec("bottleneck", "native", (D,))], "/") as writer:
        writer.plan(keys, [(1, 1)] * n)
        for start in range(0, n, len(x)):
            rows = x[: n - start] + 0.1 * generator.standard_normal(x[: n - start].shape, dtype=np.float32)
            part = slice(start, start + len(rows))
            images = [(key, digest, (1, 1)) for key, digest in zip(keys[part], digests[part], strict=True)]
            writer.add(images, {"bottleneck": rows})
        writer.finish(table)
    return {"n": n}


def peak() -> float:
    """Most resident memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


CHILDREN = {
    "sweep": child_sweep,
    "targets": child_targets,
    "classes": child_classes,
    "exact": child_exact,
    "peer": child_peer,
    "memory": child_memory,
    "write": child_write,
}

if __name__ == "__main__":
    main()
