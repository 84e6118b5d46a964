"""Run the whole chain on data that a dependency ships: scikit-learn's digits, 1,797 images of 8 × 8 pixels.

Digits are unlike the photographs of ImageNet, so the features at the network's end are not the best ones
here. The demo extracts several nodes in one pass, lets cross-validation choose, and reports on the choice.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bottleneck.data.config import ReadConfig
from bottleneck.errors import distinct
from bottleneck.extraction.extract import extract
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.models.evaluate import evaluate
from bottleneck.models.predict import predict
from bottleneck.names import BOTTLENECK, DEMO_FOLDER
from bottleneck.progress import SILENT, Reporter
from bottleneck.report.curves import head_curves
from bottleneck.report.figures import confusion_matrix
from bottleneck.report.page.report import write_report
from bottleneck.store.reader import FeatureCache

# Every stage, averaged over a 2 × 2 grid, which keeps the positions of the strokes, and the network's end.
NODES = (*(f"blocks.{i}@avg2" for i in range(6)), "blocks@avg2", BOTTLENECK)
TEST_FRACTION = 0.2
SHOWN = 5  # images that are predicted


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
    """Write digits to the folder `output`, extract features, fit heads, evaluate the best one, and report.

    Returns
    -------
    dict
        `heads` as of `fit_heads`, `chosen` (the head with the best cross-validation), its `evaluation` on the
        test split, five `predictions` of images of that split, the page of `report`, the other written
        `files`, `images`, `images_per_second`, `seconds`, and `notes`.
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
    predicted = predict(chosen["path"], *(source / key for key in _test_images(cache)))
    shown, page = [chosen["path"], str(cache)], str(output / "report.html")
    again = shlex.join(["bottleneck", "report", *shown, "-o", page])
    report = write_report(shown, output=page, seed=seed, command=again, reporter=reporter)
    return {
        "heads": fitted.heads,
        "chosen": chosen,
        "evaluation": evaluation,
        "predictions": predicted["predictions"],
        "report": report.path,
        "files": {"cache": str(cache), "confusion": str(picture), **fitted.files, **head_curves(fitted)},
        "images": extracted.images,
        "images_per_second": extracted.images_per_second,
        "seconds": time.perf_counter() - started,
        "notes": distinct(
            [*extracted.notes, *fitted.notes, *evaluation["notes"], *predicted["notes"], *report.notes]
        ),
    }


def _test_images(path: Path) -> list[str]:
    """Return the keys of the first images of the test split, each of another class."""
    with FeatureCache(path) as cache:
        samples = cache.samples
        test = np.flatnonzero(samples.split == "test")
        _, first = np.unique(samples.targets["label"].values[test], return_index=True)
        return [str(key) for key in cache.images.key[samples.image[test[first[:SHOWN]], 0]]]
