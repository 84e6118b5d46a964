"""What choosing labels gains, by `suggest`'s own backtest, and what `drift` says of changed images.

    python -m tests.benchmarks.suggest [--short] [FOLDER …]

Digits, six places of the two photographs that scikit-learn ships, generated textures, and each FOLDER by
class; the short form has digits alone. The backtest is made for each of three seeds, with folds and draws of
its own. For drift, a random half of each set is held against the other one: as it is, darker, and written
anew as JPEG of quality 20. About 6 minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from bottleneck import drift, extract
from bottleneck.data.storage import SUFFIXES
from bottleneck.demo import write_digits
from bottleneck.progress import SILENT
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.study_config import SuggestConfig
from bottleneck.studies.suggest.suggest import fitted_head, space_of, worth
from bottleneck.trials.task import task_of
from tests.benchmarks.images import photographs, textures
from tests.benchmarks.measurement import LESS, REPEATS, Row, main

SIZE, COUNT = 128, {"places": 1200, "textures": 700}
CHANGES: dict[str, Callable[[Image.Image], Image.Image] | None] = {
    "as it is": None,
    "darker by a third": lambda image: ImageEnhance.Brightness(image).enhance(0.67),
    "JPEG of quality 20": lambda image: image,
}


def rows(short: bool, folders: tuple[Path, ...] = ()) -> Iterator[Row]:
    """The backtest of `suggest` and the AUC of `drift` on each set."""
    with tempfile.TemporaryDirectory() as work:
        for name, folder in sets(Path(work), folders):
            cache = Path(work) / f"{name}.h5"
            extract(folder, cache, image_size=SIZE)
            yield choice(name, cache)
            yield from changes(name, folder, Path(work) / f"{name}-drift")
            if short:
                break


def sets(work: Path, folders: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    yield "digits", write_digits(work / "digits")
    for name, pictures in (
        ("places", photographs(np.random.default_rng(0))),
        ("textures", textures(np.random.default_rng(5))),
    ):
        for number, (label, picture) in zip(range(COUNT[name]), pictures, strict=False):
            path = work / name / label / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.convert("RGB").save(path)
        yield name, work / name
    yield from ((folder.name, folder) for folder in folders)


def choice(name: str, cache: Path) -> Row:
    """Accuracy with labels that the selector chose, beside as many random ones, in the last round."""
    selector, random, told = [], [], []
    for seed in range(REPEATS):
        config = SuggestConfig(seed=seed)
        with FeatureCache(cache) as opened:
            task = task_of(opened, None, cv=config.cv, seed=seed)
            head = fitted_head(task, config, SILENT)
            tested = worth(task, space_of(task, config.node), head, config, SILENT)[0]
        last = tested.rounds[-1]
        selector.append(100 * last["selector"])
        random.append(100 * last["random"])
        told.append(f"seed {seed}: {tested.verdict}")
    conditions = f"{last['labels']} labels; {' '.join(told)}"
    sides = (tuple(selector), tuple(random))
    return Row(f"{name}: labels by suggest", "% right", *sides, "random labels", LESS, conditions=conditions)


def changes(name: str, folder: Path, work: Path) -> Iterator[Row]:
    """What drift says of one half of the images, changed, against the other half."""
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
            conditions = f"{found.verdict} Foreign: {100 * found.foreign_share:.1f} %"
            yield Row(f"{name}: drift, {which}", "AUC", (found.auc,), conditions=conditions)


if __name__ == "__main__":
    main(rows, __doc__)
