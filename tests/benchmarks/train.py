#!/usr/bin/env python3
"""Does `train` choose as well as one who knew test, and what does it cost beside the usual fine-tuning?

    python tests/benchmarks/train.py [FOLDER] [--short] [--peer PATH] [--sets NAME …] [--keep DIR]
    python tests/benchmarks/train.py --minutes 1 2      only whether --minutes is kept, by a real clock

Takes 15 processor minutes; --short takes 5, with three of the sets and fewer pictures beside the peer. Six
sets, each with a test split that is read only here: digits of scikit-learn at two sizes of train, parts of
one of its photographs, 40 places in both, generated textures, generated shapes. FOLDER, in the ImageFolder
layout, is a seventh, whose val is its test. On each, `train` with its defaults is held against

    the head on the bottleneck        the best single node, chosen by test (no one could know it)
    one block tuned, two blocks tuned (`finetune`, 10 epochs, from the head on the bottleneck)

Printed: accuracy on test, the regret (the best of these less `train`, in points, with half of the paired 95 %
interval), what other values of `NOISE` would have chosen among the heads, and processor seconds, those of
child processes included.

Then the usual fine-tuning of the whole network beside `train`, on FOLDER or on 1,000 pictures of 500 × 375
pixels, each in a process of its own. The peer is a script that is called as `PEER FOLDER --epochs N` and
prints {"images": …}; by default what everyone writes, restated below: decode, the whole network forward and
backward, in every step of every epoch. `--peer none` leaves it out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import recipe
from machine import print_machine
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from bottleneck.store.reader import FeatureCache

TEST = 400  # samples; half of a paired 95 % interval is 1 to 2 points
NOISES = (0.0, 0.5, 1.0, 1.5, 2.0)
EPOCHS = (2, 20)  # of the usual fine-tuning: a few, and as many as tutorials have
WITHIN, MEAN, TIMES = 1.0, 0.4, 20.0  # wanted: the largest regret, the mean regret, and how much faster
HEADS = ("head", "node", "combined")  # kinds of candidates without flips and without tuning
SHORT = ("digits, 10 a class", "3 parts of a photograph, 150 a class", "shapes, 64 a class")
CROPS, SHORT_CROPS = 900, 300  # pictures that are learnt from beside the peer
LARGE = 12_000  # pictures, of which a minute or two allow a part
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
    return (each for each in recipe.photographs(random) if each[0].startswith("0"))


def crops(random: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    """Photographs of 500 × 375 pixels of the six thirds, for times: the size that photographs have."""
    for name, crop in recipe.photographs(random):
        yield name, crop.resize((500, 375))


def sets(scratch: Path, folder: Path | None) -> dict[str, Callable[[], Path]]:
    """The sets by name; each is written when it is called for."""

    def made(name: str, pictures: Callable, pool: int) -> Callable[[], Path]:
        return partial(recipe.write_set, scratch / name, pictures, pool, TEST)

    random = np.random.default_rng
    found: dict[str, Callable[[], Path]] = {
        "digits, 10 a class": made("digits100", recipe.digits(8, random(1)), 100),
        "digits, 60 a class": made("digits600", recipe.digits(8, random(2)), 600),
        "3 parts of a photograph, 150 a class": made("parts", thirds(random(3)), 450),
        "40 places in photographs, 10 a class": made("places", places(random(4)), 400),
        "textures, 53 a class": made("textures", recipe.textures(random(5)), 320),
        "shapes, 64 a class": made("shapes", recipe.shapes(random(6)), 320),
    }
    if folder:
        found[folder.name] = partial(val_as_test, folder, scratch / f"{folder.name}-test")
    return found


def val_as_test(folder: Path, to: Path) -> Path:
    to.mkdir()
    for split, name in (("train", "train"), ("val", "test")):
        (to / name).symlink_to((folder / split).resolve())
    return to


# ---- what is measured


def run_train(folder: Path, model: Path, **options: object) -> dict:
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


def run_peer(folder: Path, epochs: int) -> dict:
    """The usual fine-tuning of the whole network: decoding, forward and backward, in every step."""
    import timm
    import torch
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = datasets.ImageFolder(folder, transform)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=len(images.classes))
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    loader = torch.utils.data.DataLoader(images, batch_size=32, shuffle=True, num_workers=2)
    started = processor_seconds()
    for _ in range(epochs):
        for pixels, labels in loader:
            loss = torch.nn.functional.cross_entropy(network(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = processor_seconds() - started
    return {"images": len(images), "epochs": epochs, "processor_seconds": seconds}


def child(script: str, *arguments: str) -> tuple[dict, float]:
    """Run a script; return what its last line is as JSON, and its processor seconds with its children's."""
    process = subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True)
    lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed")
    return json.loads(lines[-1]), usage.ru_utime + usage.ru_stime


# ---- the comparison


def keeps_minutes(scratch: Path, minutes: list[float]) -> None:
    """Run the command on more pictures than the time allows, and hold its wall time against `--minutes`."""
    folder = recipe.write_set(scratch / "large", recipe.photographs(np.random.default_rng(8)), LARGE, TEST)
    for given in minutes:
        model = scratch / f"{given:g}.safetensors"
        words = ["train", str(folder), "-o", str(model), "--minutes", str(given), "--json"]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "bottleneck", *words], stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.perf_counter() - started
        found = json.loads(done.stdout)
        missed = "   missed" if seconds > 60 * given * (1 + KEPT) else ""
        used, heads = sum(found["samples"].values()), len(found["candidates"])
        print(
            f"--minutes {given:g}: {seconds:.0f} s, {seconds / 60 / given:.2f} of them (wanted ≤ {1 + KEPT})"
            f"{missed}; {used:,} of {LARGE + TEST:,} samples, {heads} candidates",
            flush=True,
        )


def processor_seconds() -> float:
    """Of this process and its children."""
    return sum(os.times()[:4])


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


def show(found: dict) -> None:
    print(f"\n{found['set']} ({found['n']} of test): {found['chosen']} is chosen", flush=True)
    for what, accuracy in found["accuracy"].items():
        print(f"  {what:26} {accuracy:6.2f}")
    missed = "   missed" if found["regret"] > WITHIN else ""
    told = f"regret {found['regret']:+.2f} ± {found['half']:.2f}{missed}"
    print(f"  {told}; {found['seconds']:.0f} s of processor")
    others = ", ".join(f"{noise}: {accuracy:.2f}" for noise, accuracy in found["by_noise"].items())
    print(f"  heads alone, by NOISE: {others}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--peer", help="script to fine-tune with, or 'none'")
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--short", action="store_true", help="three sets, and fewer pictures beside the peer")
    parser.add_argument("--minutes", nargs="+", type=float, help="only check that these are kept")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--keep", type=Path, help="folder for everything that is written, and the figures")
    args = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(prefix="bottleneck-train-") as temporary:
        scratch = args.keep or Path(temporary)
        scratch.mkdir(exist_ok=True)
        if args.minutes:
            keeps_minutes(scratch, args.minutes)
            return
        chosen, results = args.sets or (SHORT if args.short else None), []
        for number, (name, write) in enumerate(sets(scratch, args.folder).items()):
            if chosen and name not in chosen:
                continue
            found = compare(name, write(), scratch / f"work-{number}", args.size)
            show(found)
            results.append(found)
            if args.keep:
                (scratch / f"figures-{number}.json").write_text(json.dumps(found, indent=1))
        if results:
            regrets = np.array([found["regret"] for found in results])
            told = f"mean {regrets.mean():.2f} (wanted ≤ {MEAN}), largest {regrets.max():.2f} (≤ {WITHIN})"
            print(f"\nregret: {told}")
            for noise in NOISES:
                values = [found["by_noise"][noise] for found in results]
                print(f"  NOISE {noise:g}: mean accuracy of the chosen head {np.mean(values):.2f}")
        if args.peer != "none":
            folder = args.folder or recipe.write_set(
                scratch / "crops", crops(np.random.default_rng(7)), SHORT_CROPS if args.short else CROPS, 100
            )
            beside_peer(folder, scratch / "crops.safetensors", args.peer)


def beside_peer(folder: Path, model: Path, peer: str | None) -> None:
    """Processor seconds of `train` on `folder`, and of the peer for as many images and epochs as is usual.

    The peer is measured on one epoch of the folder `test`, and its seconds an image are multiplied.
    """
    ours, seconds = child(__file__, "train", str(folder), str(model))
    images = sum(ours["images"].values())
    found, whole = child(peer or __file__, *([] if peer else ["peer"]), str(folder / "test"), "--epochs", "1")
    rate = found.get("processor_seconds", whole) / found["images"]
    print(f"\n`train`: {seconds:.0f} processor seconds for {images} images, {ours['chosen']['what']}")
    print(
        f"fine-tuning the whole network: {1000 * rate:.0f} ms an image and epoch, of {found['images']} images"
    )
    for epochs in EPOCHS:
        times = rate * images * epochs / seconds
        missed = "   missed" if times < TIMES else ""
        print(f"  {epochs} epochs of {images} images: {times:.1f} times (wanted ≥ {TIMES:g}){missed}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        print(json.dumps(run_train(*map(Path, sys.argv[2:]))))
    elif sys.argv[1:2] == ["peer"]:
        print(json.dumps(run_peer(Path(sys.argv[2]), int(sys.argv[4]))))
    else:
        main()
