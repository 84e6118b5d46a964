"""Is anything lost by the fast ways: features in 16 and 8 bits, our solver, fine-tuning from the cached map?

    python -m tests.benchmarks.accuracy [--short] [FOLDER …]

Four generated sets, and each FOLDER with `train` and `test`. Heads on features of every precision, each
chosen by cross-validation on train, and `LogisticRegressionCV` on the same float32 features; the difference
in points of test accuracy, with its paired 95 % interval. Then one block tuned from the cached map beside the
usual fine-tuning of the same layers with the same weights and epochs, and beside fastai's `fine_tune` of the
whole network where it is installed: a seed each round, median over rounds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.heads import FOLDS, GRID
from tests.benchmarks.images import digits, photographs, shapes, textures, write_set
from tests.benchmarks.measurement import LESS, NOT_INSTALLED, REPEATS, Row, main
from tests.benchmarks.peers import is_installed
from tests.benchmarks.process import run_child

SIZE = 96
PRECISIONS = ("fp32", "fast", "int8")
LOST = -0.2  # points that a head on features of fewer bits may lose
SETS = {
    "digits of 8 pixels": (digits, 8),
    "parts of photographs": (photographs,),
    "textures": (textures,),
    "shapes": (shapes,),
}
TUNED = ("digits of 8 pixels", "shapes")


def rows(short: bool, folders: tuple[Path, ...] = ()) -> Iterator[Row]:
    """Heads on every set (the short form: two), fine-tuning on two of them (one)."""
    pool, test = (200, 300) if short else (800, 700)
    with tempfile.TemporaryDirectory(prefix="bottleneck-accuracy-") as scratch:
        given = {folder.name: folder for folder in folders}
        for number, (name, (draw, *size)) in enumerate(list(SETS.items())[: 2 if short else None]):
            pictures = draw(*size, np.random.default_rng(number))
            given[name] = write_set(Path(scratch, str(number)), pictures, pool, test)
        for name, folder in given.items():
            yield from heads(name, folder, Path(scratch, f"work-{name}"))
        for name in TUNED[: 1 if short else None]:
            yield from tuned(name, given[name], Path(scratch, f"tuned-{name}"), 2 if short else 10)


def heads(name: str, folder: Path, work: Path) -> Iterator[Row]:
    """Heads on features of each precision, and scikit-learn's on float32."""
    found = run_child("accuracy", "right", folder=folder, work=work).found
    base = np.array(found["fp32"]["right"], float)
    for precision in PRECISIONS[1:]:
        if "refused" in found[precision]:
            yield Row(f"{name}: head on {precision} features", reason=found[precision]["refused"])
            continue
        right = np.array(found[precision]["right"], float)
        low, high = paired_interval(right, base)
        yield Row(
            f"{name}: head on {precision} features ({found[precision]['engine']})",
            "% of test",
            (100 * right.mean(),),
            (100 * base.mean(),),
            "head on fp32 features",
            LESS,
            at_least=LOST,
            conditions=f"{len(base)} of test; paired 95 % interval {low:+.2f} … {high:+.2f}",
        )
    peer = run_child("peers", "sklearn_sweep", features=work / "x.npz", grid=list(GRID), folds=FOLDS).found
    yield Row(
        f"{name}: head on fp32 features",
        "% of test",
        (100 * base.mean(),),
        (peer["accuracy"],),
        "LogisticRegressionCV",
        LESS,
        conditions=f"C: {found['fp32']['C']:.2g}, the peer's {peer['C']:.2g}",
    )


def paired_interval(right: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """95 % interval of the difference in points, by the normal approximation over the samples."""
    difference = 100 * (right - base)
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    return difference.mean() - half, difference.mean() + half


def tuned(name: str, folder: Path, work: Path, epochs: int) -> Iterator[Row]:
    """One block tuned by `finetune`, beside peers, a seed a round."""
    common = {"folder": folder, "epochs": epochs, "size": SIZE}
    peers = {
        "the usual fine-tuning of the same layers": ("usual_finetune", {"backbone": "efficientnet_lite0"}),
        "fastai": ("fastai_finetune", {}),
    }
    installed = [peer for peer in peers if peer != "fastai" or is_installed(peer)]
    values: dict[str, list[float]] = {"ours": [], **{peer: [] for peer in installed}}
    for seed in range(REPEATS):
        values["ours"].append(run_child("accuracy", "tune", **common, work=work, seed=seed).found["accuracy"])
        for peer in installed:
            function, options = peers[peer]
            values[peer].append(
                run_child("peers", function, **common, seed=seed, **options).found["accuracy"]
            )
    conditions = f"{epochs} epochs, {SIZE} pixels, {REPEATS} seeds, EfficientNet-Lite0"
    what = f"{name}: one block tuned from the cached map"
    for peer in peers:
        if peer not in installed:
            yield Row(f"{what}, beside {peer}", reason=NOT_INSTALLED)
            continue
        sides = (tuple(values["ours"]), tuple(values[peer]))
        yield Row(what, "% of test", *sides, peer, LESS, at_least=0.0, conditions=conditions)


# ---- each in a process of its own


def right(folder: str, work: str) -> dict:
    """For each precision: which test samples the head gets right, or why the engine is refused.

    Float32 features go to `x.npz`.
    """
    from bottleneck import FeatureCache, extract, fit_heads
    from bottleneck.errors import EngineError, first_line
    from bottleneck.heads.artifact import load_head

    found = {}
    for precision in PRECISIONS:
        path = Path(work, f"{precision}.h5")
        try:
            extracted = extract(folder, path, image_size=SIZE, precision=precision)
        except EngineError as error:
            found[precision] = {"refused": first_line(error)}
            continue
        (fitted,) = fit_heads(path, output=Path(work, precision)).heads
        head = load_head(fitted["path"])
        with FeatureCache(path) as cache:
            x, y = cache.to_numpy(split="test", target="label")
            if precision == "fp32":
                x_train, y_train = cache.to_numpy(split="train", target="label")
                np.savez(Path(work, "x.npz"), x=x_train, y=y_train, x_test=x.astype(np.float32), y_test=y)
        correct = np.array(head.class_names)[head.predict(x.astype(np.float32))] == y
        found[precision] = {
            "engine": extracted.engine,
            "C": fitted["C"],
            "right": correct.astype(int).tolist(),
        }
    return found


def tune(folder: str, work: str, epochs: int, size: int, seed: int) -> dict:
    """The accuracy on test of what `finetune` keeps, from the head that cross-validation chose."""
    from bottleneck import evaluate, extract, finetune, fit_heads

    cache = Path(work, "c.h5")
    extract(folder, cache, image_size=size)
    (head,) = fit_heads(cache, output=Path(work, "heads")).heads
    model = Path(work, f"{seed}.safetensors")
    finetune(cache, head["path"], model, unfreeze=1, epochs=epochs, seed=seed, val_fraction=0.2)
    return {"accuracy": 100 * evaluate(model, cache, split="test")["accuracy"]}


if __name__ == "__main__":
    main(rows, __doc__)
