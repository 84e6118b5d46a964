"""How much faster than the usual loop is `extract`, and how near to what its parts allow?

    python -m tests.benchmarks.extraction [--short]

Photographs of 500 × 375 pixels, made from the two that scikit-learn ships. Beside `extract` run the loop that
everyone writes, for ResNet-50 also img2vec_pytorch and Keras where they are installed; decoding alone, and
the engine alone, fed from memory. Each contender is a process of its own, and they take turns. ResNet-50 has
random weights, which take the same time. Rates are without imports and without building the network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from tests.benchmarks.images import write_photographs
from tests.benchmarks.measurement import NOT_INSTALLED, Row, main, speed
from tests.benchmarks.peers import RESNET, Clock, is_installed
from tests.benchmarks.process import take_turns

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
    """Rates of each network and precision, its peers and its parts; the short form has fewer of them."""
    with tempfile.TemporaryDirectory(prefix="bottleneck-extraction-") as scratch:
        folder = write_photographs(Path(scratch, "photographs"), 128 if short else 800)
        for backbone, images in ((LITE, 128 if short else 800), (RESNET, 32 if short else 256)):
            precisions = PRECISIONS[: (1 if backbone == RESNET else 2) if short else None]
            wanted = {precision: WANTED[backbone][precision] for precision in precisions}
            yield from compare(folder, backbone, images, wanted, parts=not short or backbone == LITE)


def compare(
    folder: Path,
    backbone: str,
    images: int,
    wanted: dict[str, float | None],
    device: str = "cpu",
    parts: bool = True,
) -> Iterator[Row]:
    """One network, in each precision of `wanted`, beside its peers."""
    options = {"folder": folder, "backbone": backbone, "limit": images}
    on_device = {**options, "device": device}
    others = OTHERS if backbone == RESNET and device == "cpu" else {}
    installed = [name for name in others if is_installed(name)]
    contenders = {"loop": ("peers", "eager_extract", on_device)}
    contenders |= {name: ("peers", others[name], options) for name in installed}
    contenders |= {
        each: ("extraction", "ours", {**on_device, "precision": each, "parts": parts}) for each in wanted
    }
    if parts and set(wanted) - {"fp32"}:
        contenders["decode"] = ("extraction", "decode", options)
    found = take_turns(contenders)
    conditions = f"{images} photographs"
    for precision, aim in wanted.items():
        ours = found[precision]
        what = f"{backbone}, {precision}: extract ({ours[0]['engine']})"
        yield from speed(what, ours, found["loop"], "the usual loop", at_least=aim, conditions=conditions)
        if parts:
            yield from beside_parts(what, ours, found.get("decode", []), precision, conditions)
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
    from bottleneck.data.read_source import read_source
    from bottleneck.threads import thread_budget

    source, preprocess = read_source(folder), load_backbone(backbone, **_weights(backbone)).preprocess
    keys, workers = source.images[:limit], thread_budget().decode
    for _ in load_images(source, keys[:8], preprocess, workers=workers):
        pass
    clock = Clock()
    done = sum(image.error is None for image in load_images(source, keys, preprocess, workers=workers))
    return clock.took(done)


def ours(
    folder: str, backbone: str, limit: int, precision: str, device: str = "cpu", parts: bool = True
) -> dict:
    """What `extract` reports, the time of cores that an image adds, and with `parts` its engine's rate alone.

    Starting takes time of cores too, most of all the first time, when engines are compared and raced: once a
    process, before anything is measured. After that, the difference between many images and a quarter of them
    counts. It is not told of few images, where starting is most of it.
    """
    from bottleneck.engines.race import RACE_IMAGES
    from bottleneck.extraction.extract import extract

    options = {"backbone": backbone, "precision": precision, "device": device, **_weights(backbone)}
    part = limit // 4
    start(folder, min(limit, 2 * RACE_IMAGES), **options)
    with tempfile.TemporaryDirectory() as caches:
        clock = Clock()
        result = extract(folder, f"{caches}/all.h5", limit=limit, **options)
        many, told = clock.took(limit), dict[str, float]()
        if part >= 4 * RACE_IMAGES:
            clock = Clock()
            extract(folder, f"{caches}/few.h5", limit=part, **options)
            added = many["processor_seconds"] - clock.took(part)["processor_seconds"]
            told = {"processor_seconds": added / (limit - part) * result.computed}
    if parts:
        told["alone"] = engine_alone(folder, backbone, limit, precision, device)
    return {"images": result.computed, "seconds": result.seconds, "engine": result.engine, **told}


@cache
def start(folder: str, limit: int, **options: str) -> None:
    """Extract once in this process: libraries are imported, engines compared, raced and kept."""
    from bottleneck.extraction.extract import extract

    with tempfile.TemporaryDirectory() as caches:
        extract(folder, f"{caches}/first.h5", limit=limit, **options)


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
    batches = [pixels[start : start + run.batch] for start in starts] * max(1, limit // len(pixels))
    with ThreadPoolExecutor(run.calls) as pool:  # as many calls at once as in the pipeline
        clock = Clock()
        list(pool.map(run, batches))
        took = clock.took(sum(map(len, batches)))
    return took["images"] / took["seconds"]


def _weights(backbone: str) -> dict:
    return {"weights": "none"} if backbone == RESNET else {}


if __name__ == "__main__":
    main(rows, __doc__)
