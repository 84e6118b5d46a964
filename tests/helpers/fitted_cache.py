"""Fixtures: a folder of coloured noise, its feature cache, and a logistic head on it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bottleneck.extraction.extract import extract
from bottleneck.store.reader import FeatureCache
from bottleneck.trials.heads import head_on
from bottleneck.trials.task import task_of

COLOURS = {"blue": (60, 80, 170), "green": (70, 150, 80), "red": (170, 70, 60)}
NODES = ("bottleneck", "block3@none")  # the second is the map below the last block
COUNTS = {"train": 14, "val": 8, "test": 5}


def write_images(folder, counts=COUNTS, names=tuple(COLOURS), size=50):
    """Noisy patches of colour, one in five of another class: split/class/number.png."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for name in names:
            for number in range(count):
                shown = names[random.integers(len(names))] if random.random() < 0.2 else name
                pixels = random.normal(COLOURS[shown], 60, (size, size, 3)).clip(0, 255).astype(np.uint8)
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of three classes in three splits."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def made_cache(images, tmp_path_factory):
    """Its cache by the small CNN with random weights, with the map below the last block."""
    path = tmp_path_factory.mktemp("cache") / "c.h5"
    extract(images, path, backbone="small_cnn", nodes=NODES, engine="torch", dtype="float32")
    return path


@pytest.fixture(scope="session")
def half_cache(images, tmp_path_factory):
    """The same in float16."""
    path = tmp_path_factory.mktemp("half") / "c.h5"
    extract(images, path, backbone="small_cnn", nodes=NODES, engine="torch")
    return path


@pytest.fixture(scope="session")
def viewed_cache(images, tmp_path_factory):
    """The same in float16 with two views of each image."""
    path = tmp_path_factory.mktemp("viewed") / "c.h5"
    extract(images, path, backbone="small_cnn", nodes=NODES, engine="torch", views=2)
    return path


def copied(cache, folder):
    """Copy the files of a cache, which a test may then change."""
    for path in cache.parent.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    return folder / cache.name


@pytest.fixture(scope="session")
def made_head(made_cache, tmp_path_factory):
    """A logistic head on it."""
    with FeatureCache(made_cache) as cache:
        task = task_of(cache, None, cv=5, seed=0)
        head = head_on(task, "bottleneck", task.rows["train"], 1e-3)
        noise = np.random.default_rng(0).normal(size=head.coef.shape) / head.scale
        coef = 0.3 * head.coef + 0.02 * noise  # a head that leaves something to be learnt
        arrays = {**head.arrays, "coef": coef, "intercept": head.intercept - (coef - head.coef) @ head.mean}
        head = replace(head, arrays={name: array.astype(np.float32) for name, array in arrays.items()})
    return head.save(tmp_path_factory.mktemp("head") / "h.safetensors")
