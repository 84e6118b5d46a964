"""Does `train` choose as well as one who knew test, and what does it cost beside the usual fine-tuning?

    python -m tests.benchmarks.train [--short] [FOLDER …]

Takes 15 processor minutes; the short form takes 5, with three of the sets and fewer pictures beside the peer.
Six sets, each with a test split that is read only here: digits of scikit-learn at two sizes of train, parts
of one of its photographs, 40 places in both, generated textures, generated shapes. Each FOLDER, in the
ImageFolder layout, is a further one, whose val is its test. On each, `train` with its defaults is held
against

    the head on the bottleneck        the best single node, chosen by test (no one could know it)
    one block tuned, two blocks tuned (`finetune`, 10 epochs, from the head on the bottleneck)

The regret is the best of these less `train`, in points, with half of the paired 95 % interval. Also given is
what other values of `NOISE` would have chosen among the heads.

Then the usual fine-tuning of the whole network beside `train`, on 1,000 pictures of 500 × 375 pixels, each in
a process of its own: decode, the whole network forward and backward, in every step of every epoch. Last, in
the long form, whether `--minutes` is kept, by a real clock.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from bottleneck.store.reader import FeatureCache
from tests.benchmarks.images import digits, photographs, shapes, textures, write_set
from tests.benchmarks.machine import processor_seconds
from tests.benchmarks.measurement import FEWER, LESS, Row, main
from tests.benchmarks.process import run_child

TEST = 400  # samples; half of a paired 95 % interval is 1 to 2 points
NOISES = (0.0, 0.5, 1.0, 1.5, 2.0)
EPOCHS = (2, 20)  # of the usual fine-tuning: a few, and as many as tutorials have
WITHIN, MEAN, TIMES = 1.0, 0.4, 20.0  # wanted: the largest regret, the mean regret, and how much faster
HEADS = ("head", "node", "combined")  # kinds of candidates without flips and without tuning
SHORT = ("digits, 10 a class", "3 parts of a photograph, 150 a class", "shapes, 64 a class")
CROPS, SHORT_CROPS = 900, 300  # pictures that are learnt from beside the peer
LARGE = 12_000  # pictures, of which a minute or two allow a part
SIZE = 128
MINUTES = (1.0, 2.0)
KEPT = 0.2  # share of the minutes by which a run may be longer
TRAINED = ("head on the bottleneck", "best single node", "one block tuned", "two blocks tuned")


# ---- the sets


def places(random: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    """Crops about 40 places of the two photographs: moved, turned, of other sizes and brightness."""
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in iter(lambda: int(random.integers(40)), None):
        photo, (row, column) = photos[number % 2], divmod(number // 2, 5)
        x, y = (column + 0.5) * photo.width / 5, (row + 0.5) * photo.height / 4
        x, y, side = x + random.normal(0, 25), y + random.normal(0, 25), random.uniform(40, 80)
        crop = photo.rotate(random.uniform(-40, 40), center=(x, y)).crop(
            (int(x - side / 2), int(y - side / 2), int(x + side / 2), int(y + side / 2))
        )
        crop = ImageEnhance.Color(crop.resize((64, 64))).enhance(random.uniform(0, 1))
        yield f"{number:02}", ImageEnhance.Brightness(crop).enhance(random.uniform(0.4, 1.3))


def thirds(random: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    """Crops of the three vertical bands of one photograph."""
    return (each for each in photographs(random) if each[0].startswith("0"))


def crops(random: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    """Photographs of 500 × 375 pixels of the six thirds, for times: the size that photographs have."""
    for name, crop in photographs(random):
        yield name, crop.resize((500, 375))


def sets(scratch: Path, folders: tuple[Path, ...]) -> dict[str, Callable[[], Path]]:
    """The sets by name; each is written when it is called for."""

    def made(name: str, pictures: Callable, pool: int) -> Callable[[], Path]:
        return partial(write_set, scratch / name, pictures, pool, TEST)

    random = np.random.default_rng
    found: dict[str, Callable[[], Path]] = {
        "digits, 10 a class": made("digits100", digits(8, random(1)), 100),
        "digits, 60 a class": made("digits600", digits(8, random(2)), 600),
        "3 parts of a photograph, 150 a class": made("parts", thirds(random(3)), 450),
        "40 places in photographs, 10 a class": made("places", places(random(4)), 400),
        "textures, 53 a class": made("textures", textures(random(5)), 320),
        "shapes, 64 a class": made("shapes", shapes(random(6)), 320),
    }
    for folder in folders:
        found[folder.name] = partial(val_as_test, folder, scratch / f"{folder.name}-test")
    return found


def val_as_test(folder: Path, to: Path) -> Path:
    to.mkdir()
    for split, name in (("train", "train"), ("val", "test")):
        (to / name).symlink_to((folder / split).resolve())
    return to


# ---- what is measured


def run_train(folder: str | Path, model: str | Path, **options: object) -> dict:
    """What a user gets."""
    from bottleneck import train

    return train(folder, model, **options).to_json()


def run_contenders(folder: Path, work: Path) -> dict:
    """Every head of `train`'s candidates, and blocks tuned: which test samples each gets right."""
    from bottleneck import evaluate, finetune, fit_heads

    cache = work / "c.h5"
    heads, evidence = heads_tried(work)
    (start,) = fit_heads(cache, nodes=("bottleneck",), output=work / "heads").heads
    models = {"train": work / "m.safetensors"}
    for count, name in ((1, TRAINED[2]), (2, TRAINED[3])):
        models[name] = finetune(
            cache, start["path"], work / f"{count}.safetensors", unfreeze=count, epochs=10
        ).model
    right = dict(heads)
    with FeatureCache(cache) as opened:
        samples = opened.samples
        images = opened.images.key[samples.image[samples.split == "test", 0]].astype(str)
    for name, model in models.items():
        evaluate(model, cache, split="test", errors=work / "errors.csv")
        wrong = [row["image"] for row in csv.DictReader((work / "errors.csv").read_text().splitlines())]
        right[name] = ~np.isin(images, wrong)
    return {"right": {name: [int(each) for each in values] for name, values in right.items()}, **evidence}


def heads_tried(work: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Fit every head of `train`'s candidates again, with the C that it found, and measure it on test.

    Returns
    -------
    Which test samples each is right on, and the heads that other values of NOISE would choose.
    """
    from bottleneck.fitting.head_files import file_name
    from bottleneck.studies.train.candidates import KINDS, kind_of
    from bottleneck.trials import evidence
    from bottleneck.trials.final_head import final_head
    from bottleneck.trials.heads import outputs_of, try_head
    from bottleneck.trials.task import Records, task_of

    tried = json.loads((work / "m.candidates.json").read_text())
    records, right, contenders = Records(work / "m.work" / "trials"), {}, []
    with FeatureCache(work / "c.h5") as cache:
        task = task_of(cache, None, cv=5, seed=0)
        for each in (each for each in tried if each["kind"] in HEADS):
            node = each["node"]
            found = try_head(task, node, records, file_name(each["backbone"], "label", node))
            contenders.append(evidence.Contender(node, KINDS.index(kind_of(node)), found.evidence))
            outputs = outputs_of(task, final_head(task, node, found), task.rows["test"])
            codes = outputs.argmax(1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
            right[node] = codes == task.target.values[task.rows["test"]]
    chosen, used = {}, evidence.NOISE
    for noise in NOISES:
        evidence.NOISE = noise
        chosen[noise] = contenders[evidence.choose(contenders)[0]].what
    evidence.NOISE = used
    scores = {each.what: [int(score) for score in each.evidence.score] for each in contenders}
    return right, {"by_noise": chosen, "scores": scores}


# ---- the comparison


def keeps_minutes(scratch: Path) -> Iterator[Row]:
    """Run the command on more pictures than the time allows, and hold its wall time against `--minutes`."""
    folder = write_set(scratch / "large", photographs(np.random.default_rng(8)), LARGE, TEST)
    for given in MINUTES:
        model = scratch / f"{given:g}.safetensors"
        words = ["train", str(folder), "-o", str(model), "--minutes", str(given), "--json"]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "bottleneck", *words], stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.perf_counter() - started
        found = json.loads(done.stdout)
        used, heads = sum(found["samples"].values()), len(found["candidates"])
        yield Row(
            f"train --minutes {given:g}",
            "s by the clock",
            (seconds,),
            (60 * given,),
            "what was given",
            at_most=1 + KEPT,
            conditions=f"{used:,} of {LARGE + TEST:,} samples, {heads} candidates",
        )


def compare(name: str, folder: Path, work: Path, size: int) -> dict:
    """Accuracy on test of everything, by name, and the regret."""
    work.mkdir()
    started = processor_seconds()
    trained = run_train(folder, work / "m.safetensors", cache=work / "c.h5", image_size=size)
    seconds = processor_seconds() - started
    others = run_contenders(folder, work)
    right = {what: np.array(values, float) for what, values in others["right"].items()}
    heads = [each for each in trained["candidates"] if each["kind"] in HEADS]
    single = [each["node"] for each in trained["candidates"] if each["kind"] in ("head", "node")]
    rivals = {
        TRAINED[0]: right["bottleneck"],
        TRAINED[1]: max((right[node] for node in single), key=np.mean),
        **{what: right[what] for what in TRAINED[2:]},
    }
    best = max(rivals.values(), key=np.mean)
    difference = 100 * (best - right["train"])
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    return {
        "set": name,
        "n": len(best),
        "chosen": trained["chosen"]["what"],
        "accuracy": {
            what: 100 * values.mean() for what, values in {**rivals, "train": right["train"]}.items()
        },
        "heads": {each["node"]: 100 * right[each["node"]].mean() for each in heads},
        "by_noise": {noise: 100 * right[node].mean() for noise, node in others["by_noise"].items()},
        "scores": others["scores"],
        "right": others["right"],
        "candidates": trained["candidates"],
        "regret": float(difference.mean()),
        "half": float(half),
        "seconds": seconds,
        "contenders_seconds": processor_seconds() - started - seconds,
        "rule": trained["rule"],
        "notes": [note["message"] for note in trained["notes"]],
    }


def shown(found: dict) -> Iterator[Row]:
    """Rows of one set."""
    chosen = f"{found['chosen']} is chosen; {found['n']} of test; {found['seconds']:.0f} processor s"
    train = found["accuracy"].pop("train")
    for what, accuracy in found["accuracy"].items():
        yield Row(f"{found['set']}: train", "% of test", (train,), (accuracy,), what, LESS, conditions=chosen)
    others = ", ".join(f"{noise}: {accuracy:.2f}" for noise, accuracy in found["by_noise"].items())
    conditions = f"± {found['half']:.2f}; heads alone, by NOISE: {others}"
    yield Row(f"{found['set']}: regret", "points", (found["regret"],), at_most=WITHIN, conditions=conditions)


def rows(short: bool, folders: tuple[Path, ...] = ()) -> Iterator[Row]:
    """Accuracies and regrets on every set, the time beside the peer, and whether minutes are kept."""
    with tempfile.TemporaryDirectory(prefix="bottleneck-train-") as temporary:
        scratch, regrets = Path(temporary), []
        for number, (name, write) in enumerate(sets(scratch, folders).items()):
            if not short or name in SHORT:
                found = compare(name, write(), scratch / f"work-{number}", SIZE)
                regrets.append(found["regret"])
                yield from shown(found)
        yield Row("mean regret", "points", (float(np.mean(regrets)),), at_most=MEAN)
        pictures = crops(np.random.default_rng(7))
        folder = write_set(scratch / "crops", pictures, SHORT_CROPS if short else CROPS, 100)
        yield from beside_peer(folder, scratch / "crops.safetensors")
        if not short:
            yield from keeps_minutes(scratch)


def beside_peer(folder: Path, model: Path) -> Iterator[Row]:
    """Processor seconds of `train` on `folder`, and of the peer for as many images and epochs as is usual.

    The peer is measured on one epoch of the folder `test`, and its seconds an image are multiplied.
    """
    child = run_child("train", "run_train", folder=folder, model=model)
    images = sum(child.found["images"].values())
    options = {"folder": folder / "test", "backbone": "efficientnet_lite0", "epochs": 1, "whole": True}
    peer = run_child("peers", "usual_finetune", **options).found
    rate = peer["processor_seconds"] / peer["images"]
    for epochs in EPOCHS:
        yield Row(
            f"train of {images} pictures of 500 × 375",
            "processor s, imports included",
            (child.processor_seconds,),
            (rate * images * epochs,),
            f"the usual fine-tuning of the whole network, {epochs} epochs",
            FEWER,
            at_least=TIMES,
            conditions=f"{child.found['chosen']['what']}; the peer's time is of {peer['images']} images",
        )


if __name__ == "__main__":
    main(rows, __doc__)
