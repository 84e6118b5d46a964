"""Write what tests/integration/golden contains: a cache, heads of every kind, a model.

    python -m tests.integration.make_golden FOLDER

The copy in the repository was written by the code of version 0.1.0 before its modules were moved.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from bottleneck import evaluate, extract, finetune, fit_heads, predict

COLOURS = {"blue": (60, 80, 170), "green": (70, 150, 80), "붉은색": (170, 70, 60)}
MEASURED = ("accuracy", "log_loss", "ece", "confusion", "r2", "mae", "n")
COUNTS = {"train": 12, "val": 5, "test": 4}


def write_images(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for name, colour in COLOURS.items():
            for number in range(count):
                shown = list(COLOURS.values())[random.integers(3)] if random.random() < 0.2 else colour
                pixels = random.normal(shown, 60, (24, 24, 3)).clip(0, 255).astype(np.uint8)
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


def main(folder: Path) -> None:
    images = write_images(folder / "images")
    cache = folder / "cache.h5"
    extract(images, cache, backbone="small_cnn", depth=6, nodes=("block5@none", "bottleneck"), engine="torch")
    labels = folder / "labels.csv"
    with labels.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "numeral", "shade"))
        for i, path in enumerate(sorted(images.rglob("*.png"))):
            red, _, blue = np.asarray(Image.open(path)).mean(axis=(0, 1))
            shade = "warm" if red > blue else "cold"
            mean = np.asarray(Image.open(path)).mean()
            table.writerow((path.relative_to(images).as_posix(), f"{mean + i % 3:.3f}", shade))
    kinds = ("logistic", "ridge", "nearest-mean", "knn", "mlp")
    heads = fit_heads(cache, head=kinds, cv=3, C=1e-4, output=folder / "heads").heads
    heads += fit_heads(cache, labels=labels, head=("logistic",), cv=3, output=folder / "heads").heads
    plain = next(h["path"] for h in heads if h["target"] == "label" and h["head"] == "logistic")
    model = finetune(cache, plain, folder / "model.safetensors", epochs=15, unfreeze=2, lr=0.03, patience=15)
    assert model.kept == "finetuned", model
    model = model.model
    answers = {}
    for path in [h["path"] for h in heads] + [model]:
        named = None if "label" in Path(path).name or path == model else labels
        measured = evaluate(path, cache, split="test", **({"labels": named} if named else {}))
        shown = predict(path, images / "test")["predictions"]
        answers[str(Path(path).relative_to(folder))] = {
            "evaluate": {
                k: measured[k]
                for k in measured
                if k in ("accuracy", "log_loss", "ece", "confusion", "r2", "mae", "n")
            },
            "predict": [{key: row[key] for key in ("image", "label", "confidence")} for row in shown],
        }
    (folder / "expected.json").write_text(json.dumps(answers, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
