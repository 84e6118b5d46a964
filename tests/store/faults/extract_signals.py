"""One to five of SIGINT, SIGTERM and SIGHUP, 1 to 300 ms apart, at real `extract` commands of large images.

    python -m tests.store.faults.extract_signals [--long]

Decoding, the engine and the store are the real ones; the network is a small CNN with random weights. A run is
struck at a random moment, often just after its first rows. The cache goes on from round to round until it is
whole; then its rows are compared with those of an undisturbed run, and the next one begins.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from bottleneck.store.layout import parts_folder
from bottleneck.store.reader import FeatureCache
from tests.store.faults.kill import committed
from tests.store.faults.runner import main
from tests.store.faults.signals import DEFECTS, FIGURES, count, strike, wait_for_handlers

IMAGES = 200
NODES = ("bottleneck", "block4@none")


def write_images(folder: Path) -> Path:
    """JPEGs of 400 × 400 pixels, all different."""
    dice = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(dice.integers(0, 256, (50, 50, 3), np.uint8))
        noise.resize((400, 400)).save(path)
    return folder


def command(source: Path, cache: Path) -> list[str]:
    """A real command line; the cache that it goes on with has the settings."""
    return [sys.executable, "-m", "bottleneck", "extract", str(source), "-o", str(cache)]


def rows_of(path: Path) -> dict[str, np.ndarray]:
    """The rows of each node by image."""
    with FeatureCache(path) as cache:
        order = np.argsort(cache.images.key)
        return {name: cache.features(name).read(0, IMAGES)[order].astype(np.float32) for name in cache.nodes}


def equal(path: Path, expected: dict[str, np.ndarray]) -> bool:
    """Whether a finished cache has the expected rows, to the rounding of float16."""
    found = rows_of(path)
    return found.keys() == expected.keys() and all(
        np.allclose(found[name], expected[name], rtol=2e-3, atol=1e-3) for name in expected
    )


def seeded(folder: Path, source: Path) -> Path:
    """A cache of two of the images: a run that goes on with it needs no torch, and starts at once."""
    few = folder / "few"
    for name in ("a/0.jpg", "b/1.jpg"):
        (few / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, few / name)
    settings = ["--backbone", "small_cnn", "--image-size", "64", *(f"--node={node}" for node in NODES)]
    subprocess.run([*command(few, folder / "seed.h5"), *settings], check=True, capture_output=True)
    return folder / "seed.h5"


def copied(seed: Path, folder: Path) -> Path:
    """A copy of a cache with the files beside it."""
    folder.mkdir()
    for path in seed.parent.glob("seed*"):
        shutil.copy(path, folder / path.name)
    return folder / seed.name


def run(folder: Path, rounds: int, seed: int = 0) -> dict:
    """Send random signals to `extract` until each cache is whole."""
    dice = random.Random(seed)
    figures = dict.fromkeys([*FIGURES, *(f"defect: {what}" for what in DEFECTS)], 0)
    os.environ["BOTTLENECK_CACHE"] = str(folder / "graphs")
    source = write_images(folder / "images")
    template = seeded(folder, source)
    whole = copied(template, folder / "whole")
    subprocess.run([*command(source, whole), "--source-moved"], check=True, capture_output=True)
    expected, number = rows_of(whole), 0
    path = copied(template, folder / f"{number}")
    for _ in range(rounds):
        before = committed(path)
        child = subprocess.Popen(
            [*command(source, path), "--source-moved"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_for_handlers(child)
        if dice.random() < 0.8:  # as soon as it writes, or a little later
            while child.poll() is None and not (parts_folder(path) / "pid").exists():
                time.sleep(0.005)
            time.sleep(dice.choice([0, dice.uniform(0, 0.3), dice.uniform(0, 3)]))
        else:
            time.sleep(dice.uniform(0, 2))
        sent, code, said = strike(child, dice)
        count(figures, sent, code, said, len(before - committed(path)))
        if len(committed(path)) == IMAGES:
            subprocess.run([*command(source, path), "--source-moved"], check=True, capture_output=True)
            figures["caches finished"] += 1
            figures["defect: final content differs"] += not equal(path, expected)
            number += 1
            path = copied(template, folder / f"{number}")
    return figures


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    main(run, short=3, long=200)
