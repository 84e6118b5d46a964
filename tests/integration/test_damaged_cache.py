"""A cache with a zeroed chunk: commands that read its rows refuse it by name, and `extract` mends it."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from bottleneck import FeatureCache, extract, fit_heads
from bottleneck.store import layout
from tests.helpers.fitted_cache import write_images

MAP = "features.block3@none"
MAP_FILE = "c--features.block3.h5"
NODES = ("bottleneck", MAP)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder, its cache of small chunks with a map, and a head."""
    folder = tmp_path_factory.mktemp("damaged")
    images = write_images(folder / "images", {"train": 8, "val": 4}, size=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK_BYTES", 2048)
        extract(images, folder / "c.h5", backbone="small_cnn", nodes=NODES, engine="torch", dtype="float32")
    head = fit_heads(folder / "c.h5", nodes=("bottleneck",), output=folder / "heads").heads[0]["path"]
    return SimpleNamespace(folder=folder, images=images, head=head)


@pytest.fixture
def cache(made):
    """The cache, which is as it was after the test."""
    files = {path: path.read_bytes() for path in made.folder.glob("c*") if path.is_file()}
    yield made.folder / "c.h5"
    for path, data in files.items():
        path.write_bytes(data)


def zero_chunk(path, node, number):
    """Zero a chunk with its checksum; return the images whose rows it holds."""
    with h5py.File(path) as file:
        dataset = file[f"features/{node}"]
        step = dataset.chunks[0]
        place = dataset.id.get_chunk_info_by_coord((number * step, *[0] * (dataset.ndim - 1)))
        damaged = file["images/key"].asstr()[number * step : (number + 1) * step].tolist()
    with open(path, "r+b") as raw:
        raw.seek(place.byte_offset)
        raw.write(bytes(place.size))
    return damaged


def all_rows(path, node):
    with FeatureCache(path) as opened:
        return opened.features(node).read(0, len(opened.images))


@pytest.mark.parametrize(
    "command",
    [
        "evaluate HEAD CACHE --split train",
        "fit-head CACHE -o OUT/heads",
        "cache export CACHE -o OUT/x.npz",
        "cache export CACHE -o OUT/x.parquet",
        "similar CACHE --all -o OUT/n.csv",
        "similar CACHE train/blue/0.png",
        "rank CACHE",
        "cache verify CACHE",
    ],
)
def test_a_command_refuses_zeroed_vectors_by_name(made, cache, tmp_path, run, command):
    zero_chunk(cache, "bottleneck", 1)
    places = {"HEAD": made.head, "CACHE": cache, "OUT": tmp_path}
    words = [word.replace("OUT", str(tmp_path)) for word in command.split()]
    result = run(*[places.get(word, word) for word in words])
    assert result.code == 1
    said = " ".join(result.err.split())
    assert str(cache) in said
    assert "bottleneck" in said
    assert f"bottleneck extract {made.images} -o {cache}" in said
    assert "Traceback" not in result.err
    assert (
        sorted(path.name for path in tmp_path.glob("*") if path.suffix in (".npz", ".parquet", ".csv")) == []
    )


@pytest.mark.parametrize(
    "command", ["finetune CACHE --head HEAD -o OUT/m.safetensors", "compare CACHE -o OUT/runs"]
)
def test_a_command_refuses_a_zeroed_map_by_name(made, cache, tmp_path, run, command):
    zero_chunk(cache.with_name(MAP_FILE), MAP, 1)
    places = {"HEAD": made.head, "CACHE": cache}
    result = run(*[places.get(word, word.replace("OUT", str(tmp_path))) for word in command.split()])
    assert result.code == 1
    said = " ".join(result.err.split())
    assert str(cache.with_name(MAP_FILE)) in said
    assert f"node {MAP!r}" in said
    assert f"bottleneck extract {made.images} -o {cache}" in said
    assert list(tmp_path.glob("*.safetensors")) == []


@pytest.mark.parametrize(("file", "node"), [("c.h5", "bottleneck"), (MAP_FILE, MAP)], ids=["vector", "map"])
def test_extract_computes_those_rows_again_and_says_so(made, cache, run, file, node):
    before = all_rows(cache, node)
    damaged = zero_chunk(cache.with_name(file), node, 1)
    result = run("extract", made.images, "-o", cache, "--engine", "torch", "--json").json
    assert (result["computed"], result["reused"]) == (len(damaged), len(before) - len(damaged))
    (note,) = [note for note in result["notes"] if note["code"] == "rows-damaged"]
    assert note["file"] == str(cache.with_name(file))
    (note,) = [note for note in result["notes"] if note["code"] == "rows-mended"]
    assert (note["engine"], note["computed"]) == ("torch", len(damaged))
    np.testing.assert_allclose(all_rows(cache, node), before, rtol=1e-5, atol=1e-6)
    assert run("cache", "verify", cache).code == 0
    again = run("extract", made.images, "-o", cache, "--json").json
    assert (again["computed"], [note["code"] for note in again["notes"]]) == (0, [])


@pytest.mark.parametrize(
    "damage", [None, b"", b"\x89PNG", bytes(99)], ids=["missing", "empty", "PNG", "zeroed"]
)
def test_verify_names_lost_statistics_of_a_random_network(cache, run, damage):
    assert run("cache", "verify", cache).code == 0
    beside = cache.with_name("c--batchnorm.safetensors")
    if damage is None:
        beside.unlink()
    else:
        beside.write_bytes(damage)
    result = run("cache", "verify", cache)
    assert result.code == 1
    fault = "is missing" if damage is None else "cannot be read"
    assert f"{beside} {fault}" in " ".join(result.err.split())
