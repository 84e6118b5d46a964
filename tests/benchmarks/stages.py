"""What does an image cost at each stage of `extract`, in milliseconds of a core?

    python -m tests.benchmarks.stages [--short]

Photographs of 500 × 375 pixels, and the same enlarged to 12 MP, decoded exactly and scaled. The stages of an
image run one after the other in one thread, which counts its own time; so do the engines, fed from memory.
Then `extract` itself: what an image adds to its time of cores, beside its engine alone. No pipeline on these
cores can be nearer to the engine than that, whatever it overlaps.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.extraction import LITE, PIPELINE, PRECISIONS
from tests.benchmarks.images import write_photographs
from tests.benchmarks.measurement import FEWER, REPEATS, Row, main
from tests.benchmarks.process import run_child

LARGE = (4000, 3000)
UNIT = "processor ms an image"


def rows(short: bool) -> Iterator[Row]:
    """Stages of both sizes, engines of each precision, and `extract` beside its engine."""
    with tempfile.TemporaryDirectory(prefix="bottleneck-stages-") as scratch:
        small = write_photographs(Path(scratch, "small"), 160 if short else 800)
        large = enlarge(small, Path(scratch, "large"), 8 if short else 40)
        for folder, size in ((small, "500 × 375"), (large, "12 MP")):
            yield from stage_rows(folder, size)
        engines = [run_child("stages", "engines", folder=small).found for _ in range(REPEATS)]
        for precision in PRECISIONS:
            cost = tuple(one[precision] for one in engines)
            yield Row(f"{LITE}, {precision}: the engine alone", UNIT, cost)
            for folder, size in ((small, "500 × 375"), (large, "12 MP")):
                yield from extract_rows(folder, size, precision, cost)


def enlarge(source: Path, target: Path, count: int) -> Path:
    """Write `count` of the photographs as JPEGs of 12 MP, with noise as a sensor's."""
    random = np.random.default_rng(0)
    target.mkdir()
    for path in sorted(source.rglob("*.jpg"))[:count]:
        pixels = np.asarray(Image.open(path).resize(LARGE, Image.Resampling.BICUBIC))
        noisy = pixels + random.normal(0, 4, (*pixels.shape[:2], 1)).astype(np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target / path.name, quality=90)
    return target


def stage_rows(folder: Path, size: str) -> Iterator[Row]:
    """Each stage before the engine, of both decodings."""
    for decoding in ("exact", "scaled"):
        options = {"folder": folder, "decoding": decoding}
        found = [run_child("stages", "stages", **options).found for _ in range(REPEATS)]
        for stage in found[0]:
            yield Row(f"{size}, {decoding}: {stage}", UNIT, tuple(one[stage] for one in found))


def extract_rows(folder: Path, size: str, precision: str, engine: tuple[float, ...]) -> Iterator[Row]:
    """`extract` beside its engine, of both decodings."""
    for decoding in ("exact", "scaled"):
        options = {"folder": folder, "precision": precision, "decoding": decoding}
        cost = tuple(run_child("stages", "whole", **options).found["cost"] for _ in range(REPEATS))
        what = f"{LITE}, {precision}, {size}, {decoding}: extract"
        aim = PIPELINE if precision == "fp32" else None
        yield Row(what, UNIT, cost, engine, "engine alone", FEWER, at_least=aim)


# ---- each in a process of its own


def stages(folder: str, decoding: str) -> dict:
    """Milliseconds of this thread by stage, of an image."""
    from bottleneck.backbones.registry import load_backbone
    from bottleneck.data.decode import EncodedImage
    from bottleneck.data.measures import measure

    preprocess = load_backbone(LITE).preprocess.override(decoding=decoding)
    spent: dict[str, float] = {}

    def timed(stage: str, work: Callable, *arguments: object):
        started = time.thread_time()
        result = work(*arguments)
        spent[stage] = spent.get(stage, 0.0) + time.thread_time() - started
        return result

    paths = sorted(Path(folder).rglob("*.jpg"))
    for path in (paths[0], *paths):
        if path == paths[0]:
            spent.clear()  # of the first, which imports
        data = timed("read", path.read_bytes)
        timed("sha256", hashlib.sha256, data)
        image = timed("header and memory", EncodedImage, data)
        timed("header and memory", image.memory, preprocess)
        scale = image._scale(preprocess)
        pixels = timed("decode", image.array, preprocess.mode, scale)
        cut = timed("resize and cut", image.cut, pixels, preprocess)
        timed("measures of pixels", measure, cut[None], np.array([image.size]), preprocess)
    return {stage: 1000 * seconds / len(paths) for stage, seconds in spent.items()}


def engines(folder: str) -> dict:
    """Milliseconds of cores of an image, by precision."""
    from bottleneck.backbones.registry import load_backbone
    from bottleneck.data.decode import pixels_from_bytes
    from bottleneck.engines.base import build_engine

    net = load_backbone(LITE)
    paths = sorted(Path(folder).rglob("*.jpg"))[:128]
    pixels = np.stack([pixels_from_bytes(path.read_bytes(), net.preprocess) for path in paths])
    found = {}
    for precision in PRECISIONS:
        make = lambda: net.extractor(("bottleneck",))  # noqa: E731
        engine = build_engine(make, pixels, key=LITE, precision=precision, device="cpu")
        engine(pixels)
        started = time.process_time()
        engine(pixels)
        found[precision] = 1000 * (time.process_time() - started) / len(pixels)
    return found


def whole(folder: str, precision: str, decoding: str) -> dict:
    """Milliseconds of cores that an image adds to `extract`: all images less half of them."""
    from bottleneck.extraction.extract import extract

    count = len([*Path(folder).rglob("*.jpg")])
    options = {"backbone": LITE, "precision": precision, "decoding": decoding}
    with tempfile.TemporaryDirectory() as caches:
        extract(folder, f"{caches}/first.h5", **options)
        costs = []
        for limit in (count // 2, count):
            started = time.process_time()
            extract(folder, f"{caches}/{limit}.h5", limit=limit, **options)
            costs.append(time.process_time() - started)
    return {"cost": 1000 * (costs[1] - costs[0]) / (count - count // 2)}


if __name__ == "__main__":
    main(rows, __doc__)
