#!/usr/bin/env python3
"""What choosing labels gains, by `suggest`'s own backtest, and what `drift` says of changed images.

    python tests/benchmarks/suggest.py [FOLDER …] [--seeds 3]

Digits, six places of the two photographs that scikit-learn ships, generated textures, and each FOLDER by
class. The backtest is printed for each seed, each with folds and draws of its own. For drift, a random half
of each set is held against the other one: as it is, darker, and written anew as JPEG of quality 20. About 6
minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import recipe
from machine import print_machine
from PIL import Image, ImageEnhance

from bottleneck import drift, extract
from bottleneck.data.storage import SUFFIXES
from bottleneck.demo import write_digits
from bottleneck.progress import SILENT
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.study_config import SuggestConfig
from bottleneck.studies.suggest.suggest import fitted_head, space_of, worth
from bottleneck.trials.task import task_of

SIZE, COUNT = 128, {"places": 1200, "textures": 700}
CHANGES: dict[str, Callable[[Image.Image], Image.Image] | None] = {
    "as it is": None,
    "darker by a third": lambda image: ImageEnhance.Brightness(image).enhance(0.67),
    "JPEG of quality 20": lambda image: image,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as work:
        for name, folder in sets(Path(work), options.folders):
            cache = Path(work) / f"{name}.h5"
            extract(folder, cache, image_size=SIZE)
            measure_choice(name, cache, options.seeds)
            measure_drift(folder, Path(work) / f"{name}-drift")


def sets(work: Path, folders: list[Path]) -> Iterator[tuple[str, Path]]:
    yield "digits", write_digits(work / "digits")
    for name, pictures in (
        ("places", recipe.photographs(np.random.default_rng(0))),
        ("textures", recipe.textures(np.random.default_rng(5))),
    ):
        for number, (label, picture) in zip(range(COUNT[name]), pictures, strict=False):
            path = work / name / label / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.convert("RGB").save(path)
        yield name, work / name
    yield from ((folder.name, folder) for folder in folders)


def measure_choice(name: str, cache: Path, seeds: int) -> None:
    """Print the backtest and the outlook, for several seeds."""
    for seed in range(seeds):
        config = SuggestConfig(seed=seed)
        with FeatureCache(cache) as opened:
            task = task_of(opened, None, cv=config.cv, seed=seed)
            head = fitted_head(task, config, SILENT)
            tested, _, ahead, _ = worth(task, space_of(task, config.node), head, config, SILENT)
        print(f"{name}, seed {seed}: {tested.verdict}")
        print(
            "   ", *(f"{r['labels']}: {r['random']:.4f} {r['selector']:.4f};" for r in tested.rounds), ahead
        )


def measure_drift(folder: Path, work: Path) -> None:
    """Print what drift says of one half of the images, changed, against the other half."""
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    order = np.random.default_rng(0).permutation(len(images))
    half = len(images) // 2
    for which, change in [("old", None), *CHANGES.items()]:
        for number in order[:half] if which == "old" else order[half:]:
            path = work / which / f"{number:05}{'.jpg' if 'JPEG' in which else '.png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.open(images[number]).convert("RGB")
            (change(image) if change else image).save(path, **({"quality": 20} if "JPEG" in which else {}))
        extract(work / which, work / f"{which}.h5", image_size=SIZE)
        if which != "old":
            found = drift(work / "old.h5", work / f"{which}.h5")
            print(f"    drift, {which}: {found.verdict} Foreign: {100 * found.foreign_share:.1f} %")


if __name__ == "__main__":
    main()
