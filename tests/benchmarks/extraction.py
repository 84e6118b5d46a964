"""How much faster than the usual loop is `extract`, and how near to what its parts allow?

    python -m tests.benchmarks.extraction [--short]

Photographs of 500 × 375 pixels, made from the two that scikit-learn ships. Beside `extract` run the loop that
everyone writes, for ResNet-50 also img2vec_pytorch and Keras where they are installed; decoding alone, and
the engine alone, fed from memory. Each measurement is a process of its own, and contenders take turns.
ResNet-50 has random weights, which take the same time. Rates are without imports and without building the
network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.benchmarks.images import write_photographs
from tests.benchmarks.measurement import NOT_INSTALLED, REPEATS, Row, main, speed
from tests.benchmarks.peers import RESNET, Clock, is_installed
from tests.benchmarks.process import run_child

LITE = "efficientnet_lite0"
PRECISIONS = ("fp32", "fast", "int8")  # fast is bf16 where the processor has units for it, else fp32
# Precision → times the usual loop, wanted where there are matrix units.
WANTED = {
    LITE: dict(zip(PRECISIONS, (5.0, 12.0, 14.0), strict=True)),
    RESNET: dict(zip(PRECISIONS, (2.5, 8.0, 12.0), strict=True)),
}
PIPELINE = 0.85  # of the engine alone in fp32, else of the slower one of decoding and engine alone
OTHERS = {"img2vec_pytorch": "img2vec_extract", "Keras on TensorFlow": "keras_extract"}


def rows(short: bool) -> Iterator[Row]:
    """Rates of each network and precision, its peers and its parts."""
    with tempfile.TemporaryDirectory(prefix="bottleneck-extraction-") as scratch:
        folder = write_photographs(Path(scratch, "photographs"), 160 if short else 800)
        for backbone, images in ((LITE, 160 if short else 800), (RESNET, 32 if short else 256)):
            precisions = PRECISIONS[: 1 if short and backbone == RESNET else None]
            wanted = {precision: WANTED[backbone][precision] for precision in precisions}
            yield from compare(folder, backbone, images, wanted)


def compare(
    folder: Path, backbone: str, images: int, wanted: dict[str, float | None], device: str = "cpu"
) -> Iterator[Row]:
    """One network, in each precision of `wanted`: `REPEATS` rounds in which contenders take turns."""
    options = {"folder": folder, "backbone": backbone, "limit": images}
    on_device = {**options, "device": device}
    others = OTHERS if backbone == RESNET and device == "cpu" else {}
    installed = [name for name in others if is_installed(name)]
    found: dict[str, list[dict]] = {}
    for _ in range(REPEATS):
        measured = {
            "loop": run_child("peers", "eager_extract", **on_device),
            "decode": run_child("extraction", "decode", **options),
        }
        measured |= {name: run_child("peers", others[name], **options) for name in installed}
        measured |= {each: run_child("extraction", "ours", **on_device, precision=each) for each in wanted}
        for name, child in measured.items():
            found.setdefault(name, []).append(child.found)
    conditions = f"{images} photographs"
    for precision, aim in wanted.items():
        ours = found[precision]
        what = f"{backbone}, {precision}: extract ({ours[0]['engine']})"
        yield from speed(what, ours, found["loop"], "the usual loop", at_least=aim, conditions=conditions)
        yield from beside_parts(what, ours, found["decode"], precision, conditions)
    for name in others:
        what = f"{backbone}, fp32: extract"
        if name in installed:
            yield from speed(what, found["fp32"], found[name], name, conditions=conditions)
        else:
            yield Row(f"{what} beside {name}", reason=NOT_INSTALLED)


def beside_parts(what: str, ours: list, decode: list, precision: str, conditions: str) -> Iterator[Row]:
    """The pipeline beside the slower one of its parts; in fp32 that is the engine."""
    rate = tuple(one["images"] / one["seconds"] for one in ours)
    alone = tuple(one["alone"] for one in ours)
    peer = "engine alone"
    if precision != "fp32":
        decoding = [one["images"] / one["seconds"] for one in decode]
        alone, peer = tuple(map(min, alone, decoding)), "the slower of decoding alone and engine alone"
    yield Row(
        f"{what}, the pipeline", "images/s", rate, alone, peer, at_least=PIPELINE, conditions=conditions
    )


# ---- each in a process of its own


def decode(folder: str, backbone: str, limit: int) -> dict:
    """Images from files to pixels, as extraction loads them, without a network."""
    from bottleneck.backbones.registry import load_backbone
    from bottleneck.data.loader import load_images
    from bottleneck.data.source import read_source
    from bottleneck.threads import thread_budget

    source, preprocess = read_source(folder), load_backbone(backbone, **_weights(backbone)).preprocess
    keys, workers = source.images[:limit], thread_budget().decode
    for _ in load_images(source, keys[:8], preprocess, workers=workers):
        pass
    clock = Clock()
    done = sum(image.error is None for image in load_images(source, keys, preprocess, workers=workers))
    return clock.took(done)


def ours(folder: str, backbone: str, limit: int, precision: str, device: str = "cpu") -> dict:
    """What `extract` reports, the time of cores that an image adds, and the rate of its engine alone.

    Starting takes time of cores too, most of all the first time, when engines are compared and raced. After
    that, the difference between many images and a quarter of them counts. It is not told of few images, where
    starting is most of it.
    """
    from bottleneck.engines.race import RACE_IMAGES
    from bottleneck.extraction.extract import extract

    options = {"backbone": backbone, "precision": precision, "device": device, **_weights(backbone)}
    with tempfile.TemporaryDirectory() as caches:
        extract(folder, f"{caches}/first.h5", limit=min(limit, 2 * RACE_IMAGES), **options)
        clock = Clock()
        extract(folder, f"{caches}/few.h5", limit=limit // 4, **options)
        few = clock.took(limit // 4)
        clock = Clock()
        result = extract(folder, f"{caches}/all.h5", limit=limit, **options)
        many = clock.took(limit)
    added = (many["processor_seconds"] - few["processor_seconds"]) / (limit - limit // 4)
    told = {"processor_seconds": added * result.computed} if limit // 4 >= 4 * RACE_IMAGES else {}
    return {
        "images": result.computed,
        "seconds": result.seconds,
        **told,
        "engine": result.engine,
        "alone": engine_alone(folder, backbone, limit, precision, device),
    }


def engine_alone(folder: str, backbone: str, limit: int, precision: str, device: str = "cpu") -> float:
    """Images a second of the engine that extraction builds, fed with decoded images from memory."""
    from bottleneck.backbones.registry import load_backbone
    from bottleneck.data.decode import pixels_from_bytes
    from bottleneck.engines.base import build_engine

    net = load_backbone(backbone, **_weights(backbone))
    paths = sorted(Path(folder).rglob("*.jpg"))[: min(limit, 128)]
    pixels = np.stack([pixels_from_bytes(path.read_bytes(), net.preprocess) for path in paths])
    make = lambda: net.extractor(("bottleneck",))  # noqa: E731
    run = build_engine(make, pixels, key=backbone, precision=precision, device=device)
    run(pixels)
    starts = range(0, len(pixels), run.batch)
    batches = [pixels[start : start + run.batch] for start in starts] * -(-limit // len(pixels))
    with ThreadPoolExecutor(run.calls) as pool:  # as many calls at once as in the pipeline
        clock = Clock()
        list(pool.map(run, batches))
        took = clock.took(sum(map(len, batches)))
    return took["images"] / took["seconds"]


def _weights(backbone: str) -> dict:
    return {"weights": "none"} if backbone == RESNET else {}


if __name__ == "__main__":
    main(rows, __doc__)
