"""A zeroed or changed chunk is never used in silence, and `extract` computes its rows again and no others."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from bottleneck.errors import CacheError
from bottleneck.store import layout
from bottleneck.store.convert import export
from bottleneck.store.layout import seal
from bottleneck.store.merge import merge
from bottleneck.store.reader import FeatureCache
from bottleneck.store.verify import verify
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import MAP, ROOT, SPEC, VIEWED, A, B, content, digest_of, world_of

NODES = [A, B, MAP, VIEWED]
COMPANION = "cache--blocks.3.h5"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cache and its map, both of many small chunks."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK_BYTES", 30)
        patch.setattr("bottleneck.files.sync", lambda descriptor: None)
        patch.setattr("bottleneck.store.parts.sync", lambda descriptor: None)
        world_of(9).extract(folder / "cache.h5", NODES)
    return folder


@pytest.fixture
def path(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "copy") / "cache.h5"


def chunks(path):
    """(dataset, number, offset, bytes) of each chunk of a file."""
    found = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and item.chunks:
            for number in range(item.id.get_num_chunks()):
                info = item.id.get_chunk_info_by_coord((number * item.chunks[0], *[0] * (item.ndim - 1)))
                found.append((name, number, info.byte_offset, info.size))

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def overwrite(path, offset, data):
    """Change bytes in place, as an attacker or a failing disk does."""
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(data)


def zero(path, dataset, number=0):
    """Zero one chunk together with HDF5's own checksum, which then is right."""
    place = next(chunk for chunk in chunks(path) if chunk[:2] == (dataset, number))
    overwrite(path, place[2], bytes(place[3]))


def rows_of(path, dataset, number):
    """The digests of the rows in a chunk."""
    with h5py.File(path) as file:
        step = file[dataset].chunks[0]
        return {bytes(row) for row in file["images/digest"][number * step : (number + 1) * step]}


def digest_counts(path):
    """How many rows of the main file have each digest."""
    with h5py.File(path) as file:
        digests = [bytes(row) for row in file["images/digest"]]
    return {digest: digests.count(digest) for digest in digests}


@pytest.mark.parametrize("name", ["cache.h5", COMPANION])
def test_no_zeroed_chunk_is_read_in_silence(path, name):
    expected, sound = world_of(9).expected(NODES), (path.parent / name).read_bytes()
    tried = 0
    for dataset, number, offset, size in chunks(path.parent / name):
        if not any(sound[offset : offset + size]):
            continue  # zeros already: nothing would change
        overwrite(path.parent / name, offset, bytes(size))
        with pytest.raises(CacheError, match=r"damaged|lacks the rows") as caught:
            assert content(path) == expected, (dataset, number)
        assert name in str(caught.value), (dataset, number)
        (path.parent / name).write_bytes(sound)
        tried += 1
    assert tried > 15
    assert content(path) == expected


FEATURES = [
    ("cache.h5", "features/blocks.5", 0),
    ("cache.h5", "features/blocks.5", 2),
    ("cache.h5", "features/bottleneck", 5),
    ("cache.h5", "features/head", 1),
    ("cache.h5", "views/head", 5),
    (COMPANION, "features/blocks.3@none", 5),
]


@pytest.mark.parametrize(("name", "dataset", "number"), FEATURES)
def test_extract_computes_the_damaged_rows_and_no_others(path, name, dataset, number):
    file = path.parent / name
    node = dataset.partition("/")[2]
    damaged = rows_of(file, dataset, number)
    copied = {digest for digest, count in digest_counts(path).items() if count > 1}
    zero(file, dataset, number)
    with FeatureCache(path) as cache:
        rows = cache.views(node) if dataset.startswith("views") else cache.features(node)
        with pytest.raises(CacheError) as caught:
            rows.read(0, len(rows))
    assert str(file) in caught.value.message
    assert repr(node) in caught.value.message
    assert f"`bottleneck extract {ROOT} -o {path}`" in caught.value.hint
    world = world_of(9)
    with CacheWriter(path, SPEC, NODES, ROOT) as writer:
        plan = writer.plan(world.keys, [world.stat(key) for key in world.keys])
    assert [note.code for note in plan.notes] == ["rows-damaged"]
    assert plan.notes[0].details["dataset"] == f"/{dataset}"
    world.extract(path, NODES)
    computed = {digest for _, digest in world.computed}
    assert {name for name, _ in world.computed} == {node}
    assert damaged - copied <= computed <= damaged  # of a copy, the other row may be sound
    assert len(world.computed) == len(computed)
    assert content(path) == world.expected(NODES)
    assert verify(path).ok


def test_a_sound_row_of_a_copy_serves_for_a_damaged_one(tmp_path):
    world = world_of(9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK_BYTES", 10)  # a row a chunk
        world.extract(tmp_path / "cache.h5", [A])
    with h5py.File(tmp_path / "cache.h5") as file:
        keys = file["images/key"].asstr()[:].tolist()
    zero(tmp_path / "cache.h5", "features/blocks.5", keys.index("a/copy.jpg"))
    world.computed.clear()
    world.extract(tmp_path / "cache.h5", [A])
    assert world.computed == []
    assert content(tmp_path / "cache.h5") == world.expected([A])


@pytest.mark.parametrize("dataset", ["labels/label", "samples/key", "samples/split", "covariates"])
def test_damaged_samples_are_written_anew_and_nothing_is_computed(path, dataset):
    zero(path, dataset, 1)
    with FeatureCache(path) as cache, pytest.raises(CacheError, match=f"/{dataset} does not match") as caught:
        _ = cache.samples
    assert f"`bottleneck extract {ROOT} -o {path}`" in caught.value.hint
    world = world_of(9)
    with CacheWriter(path, SPEC, NODES, ROOT) as writer:
        plan = writer.plan(world.keys, [world.stat(key) for key in world.keys])
    assert [note.code for note in plan.notes] == ["samples-damaged"]
    world.extract(path, NODES)
    assert world.computed == []
    assert content(path) == world.expected(NODES)


def test_two_chunks_that_changed_places_are_refused_and_computed_again(path):
    first, second = (
        chunk for chunk in chunks(path) if chunk[0] == "features/blocks.5" and chunk[1] in (0, 1)
    )
    data = path.read_bytes()
    a, b = (data[offset : offset + size] for _, _, offset, size in (first, second))
    overwrite(path, first[2], b)
    overwrite(path, second[2], a)
    with FeatureCache(path) as cache, pytest.raises(CacheError, match=r"node 'blocks\.5'"):
        cache.features(A.name).read(0, 1)
    damaged = rows_of(path, "features/blocks.5", 0) | rows_of(path, "features/blocks.5", 1)
    world = world_of(9)
    world.extract(path, NODES)
    assert {digest for _, digest in world.computed} <= damaged
    assert content(path) == world.expected(NODES)


@pytest.mark.parametrize("name", [COMPANION, "cache.h5"])
def test_the_command_that_mends_a_file_keeps_the_columns_of_the_manifest(path, name):
    columns = {"image": ["photo"], "label": ["the class"]}
    with h5py.File(path, "r+") as file:
        file["samples/key"].attrs["columns"] = json.dumps(columns)
        seal(file)
    dataset = "features/blocks.3@none" if name == COMPANION else "features/blocks.5"
    zero(path.with_name(name), dataset)
    command = f"extract {ROOT} --image-column photo --label-column 'the class' -o {path}`"
    with FeatureCache(path) as cache, pytest.raises(CacheError) as caught:
        cache.features(MAP.name if name == COMPANION else A.name).read(0, 9)
    assert command in caught.value.hint


def test_damaged_checksums_are_made_anew_and_nothing_is_computed(path):
    zero(path, "crc32_features/blocks.5")
    with FeatureCache(path) as cache, pytest.raises(CacheError, match=r"crc32_features/blocks\.5") as caught:
        cache.features(A.name).read(0, 1)
    assert "bottleneck extract" in caught.value.hint
    world = world_of(9)
    world.extract(path, NODES)
    assert world.computed == []
    assert content(path) == world.expected(NODES)
    assert verify(path).ok


def test_an_interrupted_mend_goes_on_where_it_stopped(path, monkeypatch):
    zero(path, "features/blocks.5", 0)
    zero(path, "features/blocks.5", 2)
    monkeypatch.setattr("bottleneck.store.committer.PART_ROWS", 1)
    world = world_of(9)
    with CacheWriter(path, SPEC, NODES, ROOT) as writer:
        world.feed(writer, batch=1, stop_after=2)
    first = list(world.computed)
    assert first
    world.extract(path, NODES)
    assert len(set(world.computed)) == len(world.computed) > len(first)
    assert content(path) == world.expected(NODES)


@pytest.mark.parametrize("golden", ["", "v2"])
@pytest.mark.parametrize("name", ["cache.h5", COMPANION])
def test_a_file_without_sums_is_refused_where_its_zeros_do_not_match_the_sha256(tmp_path, golden, name):
    source = Path(__file__).parent / "golden" / golden
    folder = shutil.copytree(source, tmp_path / "old")
    path = folder / "cache.h5"
    dataset = "features/blocks.5" if name == "cache.h5" else "features/blocks.3@none"
    zero(folder / name, dataset)
    with pytest.raises(CacheError, match="do not match their checksums") as caught:
        content(path)
    assert name in caught.value.message
    world = world_of(3)
    world.extract(path, [A, VIEWED, MAP])
    assert dataset.partition("/")[2] in {node for node, _ in world.computed}
    assert content(path) == world.expected([A, VIEWED, MAP])
    assert verify(path).ok


def test_rows_that_are_zeros_by_right_are_read_with_and_without_sums(tmp_path):
    world = world_of(3)
    with CacheWriter(tmp_path / "x.h5", SPEC, [A], ROOT) as writer:
        plan = writer.plan(["a/0000.jpg"], [world.stat("a/0000.jpg")])
        assert plan.to_read == 1
        image = ("a/0000.jpg", digest_of(b"image 0"), world.stat("a/0000.jpg"))
        writer.add([image], {A.name: np.zeros((1, 5), np.float32)})
        writer.finish(world.samples().take(np.array([0])))
    with FeatureCache(tmp_path / "x.h5") as cache:
        assert not cache.features(A.name).read(0, 1).any()
    with h5py.File(tmp_path / "x.h5", "r+", libver=("v110", "v110")) as file:
        del file["crc32_features"]
        seal(file)
    with FeatureCache(tmp_path / "x.h5") as cache:
        assert not cache.features(A.name).read(0, 1).any()


def test_merge_and_export_refuse_damaged_rows_and_write_nothing(path, tmp_path):
    other = world_of(0)
    other.put("z/other.jpg", b"other")
    other.extract(tmp_path / "other.h5", NODES)
    zero(path, "features/head", 1)
    for action, out in (
        (lambda out: merge([path, tmp_path / "other.h5"], out), "merged.h5"),
        (lambda out: export(path, out), "x.npz"),
    ):
        with pytest.raises(CacheError, match="node 'head'"):
            action(tmp_path / out)
        assert not (tmp_path / out).exists()


def test_merged_and_copied_rows_keep_right_sums(path, tmp_path):
    other = world_of(0)
    other.put("z/other.jpg", b"other")
    other.extract(tmp_path / "other.h5", NODES)
    merge([path, tmp_path / "other.h5"], tmp_path / "merged.h5")
    assert verify(tmp_path / "merged.h5").ok
    zero(tmp_path / "merged.h5", "features/head")
    with pytest.raises(CacheError, match="node 'head'"):
        content(tmp_path / "merged.h5")


def test_a_damaged_row_of_a_run_that_ended_in_its_parts_names_the_part(tmp_path, monkeypatch):
    monkeypatch.setattr("bottleneck.store.committer.PART_ROWS", 4)
    world = world_of(9)
    world.extract(tmp_path / "cache.h5", [A], consolidate=False)
    part = next((tmp_path / "cache.h5.parts").glob("part-*.h5"))
    zero(part, "features/blocks.5")
    with pytest.raises(CacheError) as caught:
        content(tmp_path / "cache.h5")
    assert str(part) in caught.value.message
    assert f"Delete {part}" in caught.value.hint
    part.unlink()
    world.computed.clear()
    world.extract(tmp_path / "cache.h5", [A], consolidate=False)
    assert 0 < len(world.computed) <= 4
    assert content(tmp_path / "cache.h5") == world.expected([A])


def test_rows_of_each_file_have_a_sum_for_each_chunk(path):
    for name, expected in (("cache.h5", 4), (COMPANION, 1)):
        counts = {}
        for dataset, number, _, _ in chunks(path.parent / name):
            counts[dataset] = number + 1
        rows = [dataset for dataset in counts if dataset.startswith(("features/", "views/"))]
        assert len(rows) == expected
        with h5py.File(path.parent / name) as file:
            assert [file[f"crc32_{dataset}"].shape for dataset in rows] == [(counts[d],) for d in rows]
