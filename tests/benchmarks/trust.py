"""Which score tells unknown classes from known ones, and do sets of classes cover what they promise?

    python -m tests.benchmarks.trust [--short] [FOLDER …]

Five sets: digits of scikit-learn at two sizes, parts of its two photographs, generated textures and shapes;
and every FOLDER of three classes or more. All pass EfficientNet-Lite0 once. Of each set a third of the
classes is left out, another third in each draw, and a logistic head is fitted on the train images of the
others: AUROC of scores on the test images. Then all classes are fitted again on random halves: the share of
images of the other half whose set at 0.9 contains the true class. First the commands that answer from a cache
of 1,797 digits: processor time with imports, and that of the imports. Takes about 8 minutes on 2 cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from bottleneck import extract, fit_heads
from bottleneck.demo import write_digits
from bottleneck.fitting.calibrated import conformal_of
from bottleneck.heads.artifact import HeadDescription
from bottleneck.heads.config import SweepConfig
from bottleneck.heads.cross_validation import assign_folds
from bottleneck.heads.fit import fit_kind
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.metrics import fit_temperature
from bottleneck.heads.novelty import fit_novelty
from bottleneck.heads.solver.problem import TargetProblem
from bottleneck.names import BOTTLENECK
from bottleneck.samples import ArrayRows, Target
from bottleneck.store.reader import FeatureCache
from tests.benchmarks.images import digits, photographs, shapes, textures, write_set
from tests.benchmarks.measurement import LESS, REPEATS, Row, main

DRAWS, SPLITS = 6, 20  # of the classes that are left out, of the halves
CHOSEN = "kNN, roots, mean of 3 (chosen)"


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def root(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.sqrt(np.abs(x))


def nearest(known: np.ndarray, new: np.ndarray, k: int) -> np.ndarray:
    """Distance to the k-th of the known rows."""
    return 1 - np.sort(unit(new) @ unit(known).T, axis=1)[:, -k]


def mahalanobis(known: np.ndarray, codes: np.ndarray, new: np.ndarray, relative: bool = False) -> np.ndarray:
    means = np.stack([known[codes == k].mean(0) for k in np.unique(codes)])
    inverse = np.linalg.inv(ledoit_wolf(known - means[codes])[0])
    distance = np.min([((new - mean) @ inverse * (new - mean)).sum(1) for mean in means], axis=0)
    if relative:
        centred = new - known.mean(0)
        inverse = np.linalg.inv(ledoit_wolf(known - known.mean(0))[0])
        distance = distance - (centred @ inverse * centred).sum(1)
    return distance


def fitted(x: np.ndarray, codes: np.ndarray, K: int) -> tuple[HeadFit, float]:
    """A logistic head with cross-validation at C = 0.01, and its temperature."""
    target = Target("label", "class", codes, tuple(map(str, range(K))))
    problem = TargetProblem(target, assign_folds(target, 5))
    (fit,) = fit_kind("logistic", ArrayRows(x), [problem], 0.01, config=SweepConfig())
    return fit, fit_temperature(codes, fit.out_of_fold, "softmax")


def left_out(x: np.ndarray, codes: np.ndarray, train: np.ndarray, K: int, draws: int) -> dict[str, float]:
    """Mean AUROC of each score over draws of the classes that are left out."""
    ways = list(combinations(range(K), max(2, K // 3) if K > 3 else 1))
    found: dict[str, list[float]] = {}
    for number in np.random.default_rng(0).permutation(len(ways))[:draws]:
        kept = np.setdiff1d(np.arange(K), ways[number])
        known = np.isin(codes, kept)
        y = np.searchsorted(kept, codes[train & known])
        bank, new = x[train & known], x[~train]
        fit, temperature = fitted(bank, y, len(kept))
        head = fit.artifact(HeadDescription(class_names=tuple(map(str, kept))), temperature=temperature)
        z, znew = (bank - head.mean) / head.scale, (new - head.mean) / head.scale
        logits = head.decision(new).astype(np.float64)
        novelty = fit_novelty(ArrayRows(bank), [(0, x.shape[1])], np.arange(len(bank)))
        scores: dict[str, np.ndarray] = {
            "largest probability": -head.probabilities(new).max(1),
            "largest logit": -logits.max(1),
            "energy": -np.logaddexp.reduce(logits, axis=1),
            "Mahalanobis": mahalanobis(z, y, znew),
            "relative Mahalanobis": mahalanobis(z, y, znew, True),
            "kNN, standardised, k = 5": nearest(z, znew, 5),
            "kNN, k = 1": nearest(bank, new, 1),
            "kNN, k = 5": nearest(bank, new, 5),
            "kNN, roots, k = 1": nearest(root(bank), root(new), 1),
            "kNN, roots, k = 5": nearest(root(bank), root(new), 5),
            CHOSEN: novelty.of(new),
        }
        for name, values in scores.items():
            found.setdefault(name, []).append(roc_auc_score(~known[~train], values))
    return {name: float(np.mean(values)) for name, values in found.items()}


def promises(x: np.ndarray, codes: np.ndarray, K: int, splits: int) -> dict[str, np.ndarray]:
    """Accuracy, coverage at 0.9, mean size and rejected share at 0.05 on the other half, of each split."""
    rows = []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(x))
        a, b = order[: len(x) // 2], order[len(x) // 2 :]
        fit, temperature = fitted(x[a], codes[a], K)
        names = HeadDescription(class_names=tuple(map(str, range(K))))
        head = fit.artifact(names, temperature=temperature)
        conformal = conformal_of("class", "softmax", temperature, codes[a], fit.out_of_fold)
        p = head.probabilities(x[b])
        sets = conformal.members(p, 0.9)
        novelty = fit_novelty(ArrayRows(x[a]), [(0, x.shape[1])], np.arange(len(a)))
        rejected = novelty.of(x[b]) > novelty.threshold(0.05)
        inside = sets[np.arange(len(b)), codes[b]]
        rows.append((np.mean(p.argmax(1) == codes[b]), inside.mean(), sets.sum(1).mean(), rejected.mean()))
    return dict(zip(("accuracy", "coverage", "classes in a set", "rejected"), np.array(rows).T, strict=True))


def sets(folder: Path, others: tuple[Path, ...]) -> dict[str, Callable[[], Path]]:
    random = np.random.default_rng(0)
    drawn = {
        "digits 8 px": (digits(8, random), 1100, 697),
        "digits 32 px": (digits(32, random), 1100, 697),
        "parts of photographs": (photographs(random), 600, 600),
        "textures": (textures(random), 600, 600),
        "shapes": (shapes(random), 600, 600),
    }
    made: dict[str, Callable[[], Path]] = {}
    for name, (pictures, pool, test) in drawn.items():
        made[name] = lambda name=name, of=(pictures, pool, test): write_set(folder / name, *of)
    return made | {other.name: lambda other=other: other for other in others}


def commands(work: Path) -> Iterator[Row]:
    """Processor time and peak memory of each command on digits, in a process of its own."""
    folder, cache, other, few = (work / name for name in ("images", "all.h5", "other.h5", "few"))
    write_digits(folder)
    extract(folder, cache, image_size=128, test_fraction=0.2)
    extract(folder, other, image_size=128, limit=600)
    head = fit_heads(cache, output=work / "heads").heads[0]["path"]
    few.mkdir()
    for number, image in enumerate(sorted(folder.rglob("*.png"))[::300]):
        shutil.copy(image, few / f"{number}.png")
    study, model = "bottleneck.studies.{0}.{0}".format, "bottleneck.models.{}".format
    lines = {
        "audit": ([cache], study("audit")),
        "audit --head": ([cache, "--head", head], study("audit")),
        "suggest": ([cache, other], study("suggest")),
        "drift": ([cache, other], study("drift")),
        "predict --reject": ([head, few, "--reject", "0.05"], model("predict")),
        "evaluate --unknown": ([head, cache, "--unknown", few], model("evaluate")),
        "explain --because": (
            [head, few / "0.png", "--because", cache, "-o", work / "e.png"],
            model("because"),
        ),
    }
    for name, (arguments, module) in lines.items():
        command = [*name.split()[:1], *map(str, arguments), "--json"]
        whole = [
            spent([sys.executable, "-W", "ignore", "-m", "bottleneck", *command]) for _ in range(REPEATS)
        ]
        imports = spent([sys.executable, "-W", "ignore", "-c", f"import bottleneck.cli.main, {module}"])
        conditions = f"1,797 rows of 1,280 features; imports {imports[0]:.1f} s; {whole[0][1]:.0f} MB at most"
        yield Row(name, "s of a core", tuple(each[0] for each in whole), at_most=5, conditions=conditions)


def spent(command: list[str]) -> tuple[float, float]:
    """Return processor seconds and peak megabytes of a process. Raises RuntimeError where it fails."""
    with (
        tempfile.TemporaryFile("w+") as told,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            told.seek(0)
            raise RuntimeError(f"{' '.join(command[3:6])}: {told.read()[-300:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def rows(short: bool, folders: tuple[Path, ...] = ()) -> Iterator[Row]:
    """AUROC of every score beside the chosen one, and what is promised, on each set."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "commands").mkdir()
        yield from commands(Path(work) / "commands")
        for name, make in list(sets(Path(work), folders).items())[: 1 if short else None]:
            cache = Path(work) / f"{name}.h5"
            extract(make(), cache, image_size=128)
            with FeatureCache(cache) as opened:
                x = opened.sample_rows(BOTTLENECK).read(0, len(opened.samples.split)).astype(np.float32)
                target, train = opened.samples.targets["label"], opened.samples.split == "train"
            K = len(target.class_names)
            conditions = f"{len(x):,} images, {K} classes"
            areas = left_out(x, target.values, train, K, DRAWS)
            for score in sorted(areas.keys() - {CHOSEN}):
                sides = ((areas[CHOSEN],), (areas[score],))
                yield Row(f"{name}: unknown images told", "AUROC", *sides, score, LESS, conditions=conditions)
            for what, values in promises(x, target.values, K, SPLITS).items():
                yield Row(f"{name}: {what}", "", tuple(values), conditions=f"{conditions}, {SPLITS} splits")


if __name__ == "__main__":
    main(rows, __doc__)
