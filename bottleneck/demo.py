"""Run the whole chain on data that a dependency ships: scikit-learn's digits, 1,797 images of 8 × 8 pixels.

Digits are unlike the photographs of ImageNet, so the features at the network's end are not the best ones
here. The demo extracts several nodes in one pass and lets cross-validation choose.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bottleneck.data.config import ReadConfig
from bottleneck.extraction.extract import extract
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.models.evaluate import evaluate
from bottleneck.models.predict import predict
from bottleneck.names import BOTTLENECK, DEMO_FOLDER
from bottleneck.progress import SILENT, Reporter
from bottleneck.report.curves import head_curves
from bottleneck.report.figures import confusion_matrix

# Every stage, averaged over a 2 × 2 grid, which keeps the positions of the strokes, and the network's end.
NODES = (*(f"blocks.{i}@avg2" for i in range(7)), BOTTLENECK)
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
    output: str | Path = DEMO_FOLDER, *, seed: int = ReadConfig.seed, reporter: Reporter = SILENT
) -> dict[str, Any]:
    """Write digits to the folder `output`, extract features, fit heads, evaluate the best one and predict.

    Returns
    -------
    dict
        `heads` as of `fit_heads`, `chosen` (the head with the best cross-validation), its `evaluation` on the
        test split, five `predictions`, the written `files`, and `seconds`.
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
