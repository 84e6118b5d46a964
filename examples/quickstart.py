"""Train a classifier on a folder of images and use it. About 10 s for 240 photographs on two cores.

    python examples/quickstart.py FOLDER

FOLDER holds one folder of images per class, or train and val folders of them. Without a folder, the digits of
scikit-learn are written to one; their bottleneck head reaches about 0.94 on validation images.
"""

import sys
import tempfile
from pathlib import Path

from bottleneck import evaluate, extract, fit_heads, load_model
from bottleneck.demo import write_digits


def main(folder: str, work: str) -> None:
    cache = extract(folder, f"{work}/features.h5", val_fraction=0.2).cache
    (head,) = fit_heads(cache, output=f"{work}/heads").heads
    result = evaluate(head["path"], cache, split="val")
    first = next(path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    (prediction,) = load_model(head["path"]).predict(first)
    low, high = result["accuracy_ci95"]
    print(f"accuracy {result['accuracy']:.3f}, 95 % interval {low:.3f} … {high:.3f}")
    print(f"{first.name}: {prediction['label']} ({prediction['confidence']:.2f})")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        main(sys.argv[1] if len(sys.argv) > 1 else str(write_digits(Path(work) / "digits")), work)
