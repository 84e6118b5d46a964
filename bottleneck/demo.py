"""The whole chain on data that a dependency ships: scikit-learn's digits, 1,797 numerals of 8 × 8 pixels.

Numerals are far from the photographs of ImageNet, so the features at the network's end are not the best ones
here: the demo extracts several nodes in one pass and lets cross-validation choose.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bottleneck.extraction.extract import extract
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.models.evaluate import evaluate
from bottleneck.models.predict import predict
from bottleneck.progress import SILENT, Reporter
from bottleneck.report.figures import confusion_matrix
from bottleneck.report.head_curves import head_curves

# Every stage, averaged over a 2 × 2 grid that keeps where the strokes are, and the network's end.
NODES = (*(f"blocks.{i}@avg2" for i in range(7)), "bottleneck")
TEST_FRACTION = 0.2


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's digits as `folder/DIGIT/NUMBER.png`, 8-bit grey."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).save(path)
    return folder


def demo(
    output: str | Path = "bottleneck-demo", *, seed: int = 0, reporter: Reporter = SILENT
) -> dict[str, Any]:
    """Digits → extract → fit-head → evaluate → predict, all below the folder `output`.

    Returns
    -------
    dict
        `heads` as of `fit_heads`, `chosen` (the one that cross-validation picked), `evaluation` of it on the
        test split, five `predictions`, the `files` left behind, and `seconds`.
    """
    started = time.perf_counter()
    output = Path(output)
    source = write_digits(output / "digits")
    cache = output / "digits.h5"
    extracted = extract(source, cache, nodes=NODES, test_fraction=TEST_FRACTION, seed=seed, reporter=reporter)
    fitted = fit_heads(
        cache, nodes=tuple(extracted.nodes), output=output / "heads", seed=seed, reporter=reporter
    )
    chosen = max(fitted.heads, key=lambda head: head["cv_accuracy"])
    evaluation = evaluate(chosen["path"], cache, split="test", reporter=reporter)
    picture = confusion_matrix(
        evaluation["confusion"],
        evaluation["classes"],
        output / "confusion.png",
        title=f"Digits, {chosen['node']}",
    )
    examples = [source / str(digit) / f"{digit:04d}.png" for digit in range(5)]  # the first ten are 0 … 9
    predicted = predict(chosen["path"], *examples)
    return {
        "heads": fitted.heads,
        "chosen": chosen,
        "evaluation": evaluation,
        "predictions": predicted["predictions"],
        "files": {"cache": str(cache), "confusion": str(picture), **fitted.files, **head_curves(fitted)},
        "images_per_second": extracted.images_per_second,
        "seconds": time.perf_counter() - started,
    }
