"""Processes that take a shard each write together what one process writes, dataset by dataset."""

import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from bottleneck import extract
from bottleneck.errors import FingerprintError, SourceError
from bottleneck.store.merge import merge

IMAGES = 20
SOURCE = {"val_fraction": 0.3, "covariate_columns": ("age",), "label_columns": ("label", "tags", "weight")}
NETWORK = {"image_size": 32, "engine": "torch", "batch_size": 1}  # rows then are the same bits in any batch
SMALL = {"backbone": "small_cnn", "weights": "none", "depth": 1}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Samples of two images in no order: classes, labels, numbers, groups, and a file that is no image."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "07.png").write_bytes(b"no image")
    rows = [
        f"{n:02}.png,{(n + 1) % IMAGES:02}.png,{'ab'[n % 2]},{n % 3};{n % 4},{n / 7},g{n // 3},{n}"
        for n in random.permutation(IMAGES)
    ]
    (folder / "list.csv").write_text("\n".join(["image,second,label,tags,weight,patient,age", *rows]))
    time.sleep(0.05)  # of files that changed within the present tick not all is recorded
    return folder / "list.csv"


def taken(manifest, cache, **options):
    return extract(manifest, cache, label_separator=";", **SOURCE, **NETWORK, **options)


def content(path):
    """Attributes of a file and of all its datasets, with the values of the datasets."""
    found = {}
    with h5py.File(path) as file:
        found["/"] = dict(file.attrs)

        def add(name, item):
            values = item[...] if isinstance(item, h5py.Dataset) else np.zeros(0)
            found[name] = dict(item.attrs), values.dtype, values.shape, values.tobytes()

        file.visititems(add)
    return found


TORCHRUN = [{"RANK": str(n), "WORLD_SIZE": "2"} for n in range(2)]
SLURM = [{"SLURM_ARRAY_TASK_ID": str(n), "SLURM_ARRAY_TASK_COUNT": "3"} for n in (3, 1, 2)]


@pytest.mark.parametrize("columns", [{"image_columns": ("image",)}, {"image_columns": ("image", "second")}])
@pytest.mark.parametrize("group", [None, "patient"])
@pytest.mark.parametrize("environments", [TORCHRUN, SLURM], ids=["torchrun", "slurm"])
def test_the_merged_shards_are_the_cache_of_one_process(
    manifest, tmp_path, monkeypatch, environments, group, columns
):
    options = {**SMALL, "group_column": group, **columns, "plan_file": str(tmp_path / "plan.json")}
    one = taken(manifest, tmp_path / "one.h5", **options)
    parts = []
    for environment in environments:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            parts.append(taken(manifest, tmp_path / "x.h5", shard="auto", **options))
    found = merge([part.cache for part in parts], tmp_path / "x.h5")
    assert content(tmp_path / "x.h5") == content(one.cache)
    statistics = [tmp_path / f"{name}--batchnorm.safetensors" for name in ("one", "x")]
    assert statistics[0].read_bytes() == statistics[1].read_bytes()
    again = taken(manifest, tmp_path / "x.h5", **options)
    assert (again.computed, again.images, again.failed) == (0, IMAGES - 1, 1)
    shared = [note for part in parts for note in part.notes if note.code == "images-in-other-shards"]
    repeats = [note["rows"] for note in found["notes"] if note["code"] == "rows-of-same-images"]
    assert bool(shared) == bool(repeats) == (len(columns["image_columns"]) == 2)


def test_a_shard_that_is_missing_is_named(manifest, tmp_path):
    parts = [taken(manifest, tmp_path / "x.h5", shard=f"{number}/3") for number in (1, 3)]
    assert [Path(part.cache).name for part in parts] == ["x--shard-1-of-3.h5", "x--shard-3-of-3.h5"]
    (note,) = merge([part.cache for part in parts], tmp_path / "x.h5", dry_run=True)["notes"]
    assert (note["code"], note["missing"]) == ("shards-missing", [2])


def test_a_shard_by_groups_and_one_by_keys_are_not_merged(manifest, tmp_path):
    by_group = taken(manifest, tmp_path / "x.h5", shard="1/2", group_column="patient")
    by_key = taken(manifest, tmp_path / "x.h5", shard="2/2")
    with pytest.raises(FingerprintError) as caught:
        merge([by_group.cache, by_key.cache], tmp_path / "out.h5")
    assert caught.value.fields == ("assignment", "groups", "splits")


def test_rows_that_depend_on_the_images_of_a_shard_are_refused(manifest, tmp_path):
    random = (SMALL, "BatchNorm statistics of a random network")
    for options, said in (random, ({"precision": "int8"}, "An int8 network's calibration")):
        with pytest.raises(SourceError, match=f"{said}.*") as caught:
            extract(manifest, tmp_path / "x.h5", shard="1/2", image_size=32, **options)
        assert "--plan-file" in caught.value.hint
    assert not list(tmp_path.glob("x*.h5"))


@pytest.mark.long
@pytest.mark.parametrize("of", [2, 3])
def test_the_shards_of_torchrun_are_the_cache_of_one_process(manifest, tmp_path, of):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(of), "--no-python"]
    words = ["extract", str(manifest), "--backbone", "small_cnn", "--weights", "none", "--depth", "1"]
    words += ["--image-size", "32", "--engine", "torch", "--batch-size", "1", "--covariate", "age"]
    ours = [sys.executable, "-m", "bottleneck", *words, "--plan-file", str(tmp_path / "plan.json")]
    run = {"check": True, "capture_output": True}
    subprocess.run([*torchrun, *ours, "-o", str(tmp_path / "x.h5"), "--shard", "auto"], **run)
    subprocess.run([*ours, "-o", str(tmp_path / "one.h5")], **run)
    merge([tmp_path / f"x--shard-{number}-of-{of}.h5" for number in range(1, of + 1)], tmp_path / "x.h5")
    assert content(tmp_path / "x.h5") == content(tmp_path / "one.h5")
