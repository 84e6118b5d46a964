"""Is anything lost by the fast ways: features in 16 and 8 bits, our solver, fine-tuning from the cached map?

    python -m tests.benchmarks.accuracy [--short] [FOLDER …]

Four generated sets, and each FOLDER with `train` and `test`. Heads on features of every precision, each
chosen by cross-validation on train, and `LogisticRegressionCV` on the same float32 features; the difference
in points of test accuracy, with its paired 95 % interval, of each set and of all sets together. Then one
block tuned from the cached map, in float32 and in bfloat16, beside the usual fine-tuning of the same layers
with the same weights and epochs, and beside fastai's `fine_tune` of the whole network where it is installed:
a seed each round, median over rounds, and the interval of their mean difference. `finetune` takes a fifth of
train to choose its epoch by; the usual fine-tuning trains on all of it, and in the long form also on as many
samples as `finetune` has left.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from scipy.stats import t as student_t

from tests.benchmarks.heads import FOLDS, GRID
from tests.benchmarks.images import digits, photographs, shapes, textures, write_set
from tests.benchmarks.measurement import LESS, NOT_INSTALLED, REPEATS, Row, main
from tests.benchmarks.peers import is_installed
from tests.benchmarks.process import run_child, take_turns

SIZE = 96
PRECISIONS = ("fp32", "fast", "int8")
LOST = -0.2  # points that a head on features of fewer bits, or a block tuned in them, may lose
VAL = 0.2  # of train, by which `finetune` chooses its epoch
TEST = 4000  # samples: with one answer in a hundred that differs, an interval of 0.3 points to each side
SETS = {
    "digits of 8 pixels": (digits, 8),
    "parts of photographs": (photographs,),
    "textures": (textures,),
    "shapes": (shapes,),
}
TUNED = ("digits of 8 pixels", "shapes")


def rows(short: bool, folders: tuple[Path, ...] = ()) -> Iterator[Row]:
    """Heads on every set, fine-tuning on two of them; the short form has one."""
    pool, test = (200, 300) if short else (800, TEST)
    with tempfile.TemporaryDirectory(prefix="bottleneck-accuracy-") as scratch:
        given = {folder.name: folder for folder in folders}
        for number, (name, (draw, *size)) in enumerate(list(SETS.items())[: 1 if short else None]):
            pictures = draw(*size, np.random.default_rng(number))
            given[name] = write_set(Path(scratch, str(number)), pictures, pool, test)
        right: dict[str, list[list[int]]] = {precision: [] for precision in PRECISIONS}
        for name, folder in given.items():
            yield from heads(name, folder, Path(scratch, f"work-{name}"), right)
        yield from together(right)
        for name in TUNED[: 1 if short else None]:
            yield from tuned(name, given[name], Path(scratch, f"tuned-{name}"), short)


def heads(name: str, folder: Path, work: Path, right: dict[str, list[list[int]]]) -> Iterator[Row]:
    """Heads on features of each precision, and scikit-learn's on float32.

    right : of each precision, for each set so far, which test samples its head gets right; this set is added,
    empty where the engine was refused or the features are those of fp32.
    """
    found = run_child("accuracy", "right_answers", folder=folder, work=work).found
    base = np.array(found["fp32"]["right"], float)
    for precision in PRECISIONS:
        again = precision != PRECISIONS[0] and found[precision].get("computed") == PRECISIONS[0]
        right[precision].append([] if again else found[precision].get("right", []))
    for precision in PRECISIONS[1:]:
        what = f"{name}: head on {precision} features"
        if "refused" in found[precision]:
            yield Row(what, reason=found[precision]["refused"])
            continue
        mine = np.array(found[precision]["right"], float)
        told = f"{what} ({found[precision]['engine']}, {found[precision]['computed']})"
        yield paired_row(told, mine, base, "head on fp32 features")
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


def together(right: dict[str, list[list[int]]]) -> Iterator[Row]:
    """Heads on features of each precision, over the sets that have such features."""
    for precision in PRECISIONS[1:]:
        pairs = [
            (mine, base) for mine, base in zip(right[precision], right[PRECISIONS[0]], strict=True) if mine
        ]
        if len(pairs) > 1:
            mine, base = (np.concatenate(side).astype(float) for side in zip(*pairs, strict=True))
            what = f"{len(pairs)} sets together: head on {precision} features"
            yield paired_row(what, mine, base, "head on fp32 features")


def paired_row(what: str, right: np.ndarray, base: np.ndarray, peer: str) -> Row:
    """Accuracies on the same n samples: `right` and `base` (n,) are 1 where an answer is right, else 0."""
    return Row(
        what,
        "% of test",
        (100 * right.mean(),),
        (100 * base.mean(),),
        peer,
        LESS,
        at_least=LOST,
        conditions=f"{len(base):,} of test",
        interval=paired_interval(right, base),
    )


def paired_interval(right: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """95 % interval of the difference in points, by the normal approximation over the samples."""
    difference = 100 * (right - base)
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    return difference.mean() - half, difference.mean() + half


def interval_of_rounds(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean difference of two or more paired rounds, by Student's t."""
    difference = np.subtract(ours, theirs)
    half = student_t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / np.sqrt(len(difference))
    return difference.mean() - half, difference.mean() + half


def tuned(name: str, folder: Path, work: Path, short: bool) -> Iterator[Row]:
    """One block tuned by `finetune`, beside peers, a seed a round; in the long form also in bfloat16."""
    from bottleneck.engines.device import trains_in_bf16

    epochs = 5 if short else 10
    common = {"folder": folder, "epochs": epochs, "size": SIZE}
    usual = {"backbone": "efficientnet_lite0"}
    peers = {
        "the usual fine-tuning of the same layers": ("usual_finetune", usual),
        "fastai": ("fastai_finetune", {}),
    }
    if not short:
        peers["the same on as many samples"] = ("usual_finetune", {**usual, "share": 1 - VAL})
    installed = [peer for peer in peers if peer != "fastai" or is_installed(peer)]
    precisions = ("fp32", "bf16") if trains_in_bf16("cpu") and not short else ("fp32",)
    contenders = {
        each: ("accuracy", "tune", {**common, "work": work, "precision": each}) for each in precisions
    }
    contenders |= {peer: ("peers", peers[peer][0], {**common, **peers[peer][1]}) for peer in installed}
    found = take_turns(contenders, numbered="seed")
    right = {precision: [one["right"] for one in found[precision]] for precision in precisions}
    ours = tuple(100 * float(np.mean(one)) for one in right["fp32"])
    conditions = f"{epochs} epochs, {SIZE} pixels, {REPEATS} seeds, EfficientNet-Lite0"
    what = f"{name}: one block tuned from the cached map"
    for peer in peers:
        if peer not in installed:
            yield Row(f"{what}, beside {peer}", reason=NOT_INSTALLED)
            continue
        theirs = tuple(one["accuracy"] for one in found[peer])
        interval = interval_of_rounds(ours, theirs)
        told, wanted = conditions, 0.0
        if peer == "fastai":  # another head and all layers: shown, not judged
            train, by_batch = (median(one[key] for one in found[peer]) for key in ("on_train", "by_batch"))
            told = f"{told}; fastai on train {train:.0f} %, {by_batch:.0f} % by the statistics of each batch"
            wanted = None
        yield Row(what, "% of test", ours, theirs, peer, LESS, wanted, conditions=told, interval=interval)
    if "bf16" in right:
        half, whole = (np.mean(right[precision], axis=0) for precision in ("bf16", "fp32"))
        yield paired_row(f"{what} in bf16, mean of {REPEATS} seeds", half, whole, "in fp32")


# ---- each in a process of its own


def right_answers(folder: str, work: str) -> dict:
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
            computed = cache.vectors("bottleneck")[0].precision
            if precision == "fp32":
                x_train, y_train = cache.to_numpy(split="train", target="label")
                np.savez(Path(work, "x.npz"), x=x_train, y=y_train, x_test=x.astype(np.float32), y_test=y)
        correct = np.array(head.class_names)[head.predict(x.astype(np.float32))] == y
        found[precision] = {
            "engine": extracted.engine,
            "computed": computed,
            "C": fitted["C"],
            "right": correct.astype(int).tolist(),
        }
    return found


def tune(folder: str, work: str, epochs: int, size: int, seed: int, precision: str) -> dict:
    """Which test samples `finetune`'s model gets right, from the head that cross-validation chose."""
    from bottleneck import extract, finetune, fit_heads, predict

    cache = Path(work, "c.h5")
    extract(folder, cache, image_size=size)
    (head,) = fit_heads(cache, output=Path(work, "heads")).heads
    model = Path(work, f"{precision}-{seed}.safetensors")
    options = {"epochs": epochs, "seed": seed, "precision": precision, "val_fraction": VAL}
    finetune(cache, head["path"], model, unfreeze=1, **options)
    predictions = predict(model, Path(folder, "test"))["predictions"]
    return {"right": [int(one["label"] == one["image"].split("/")[0]) for one in predictions]}


if __name__ == "__main__":
    main(rows, __doc__)
