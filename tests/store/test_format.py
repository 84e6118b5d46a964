"""A cache read by cache/FORMAT.md alone: nothing here but h5py, hashlib and json reads it."""

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import pytest

GOLDEN = Path(__file__).parent / "golden"  # written once by format version 1, never again
SHA_OF_NOTHING = hashlib.sha256().hexdigest()


def canonical(value) -> bytes:
    """Section 2."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def fingerprint(value) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def datasets(file) -> dict:
    found = {}
    file.visititems(lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {}))
    return found


@pytest.fixture(params=["golden", "fresh"])
def folder(request, tmp_path):
    """A folder with cache.h5 and its companion: one kept since version 1 began, one written now."""
    if request.param == "golden":
        return shutil.copytree(GOLDEN, tmp_path / "golden")
    from tests.store.make_golden import make

    return make(tmp_path)


@pytest.fixture
def main(folder):
    with h5py.File(folder / "cache.h5") as file:
        yield file


@pytest.fixture
def companion(folder):
    with h5py.File(folder / "cache--blocks.3.h5") as file:
        yield file


def test_section_3_root(main, companion):
    for file in (main, companion):
        recipes = {name: json.loads(file.attrs[name]) for name in ("backbone", "preprocess")}
        assert file.attrs["format"] == "bottleneck-feature-cache"
        assert file.attrs["format_version"] == 1
        assert file.attrs["fingerprint"] == fingerprint(recipes)
        assert file.attrs["source_root"] == "/photographs"
        assert file.attrs["created_with"].startswith("bottleneck-features ")
        assert canonical(recipes["backbone"]).decode() == file.attrs["backbone"]
    assert companion.attrs["map"] == "blocks.3@none"
    assert "map" not in main.attrs


def test_section_4_images(main):
    keys = list(main["images/key"].asstr()[:])
    assert keys == ["a/0000.jpg", "a/copy.jpg", "b/0001.jpg", "c/0002.jpg", "c/사진 😀.png"]
    contents = [b"image 0", b"image 1", b"image 1", b"image 2", b"image 0"]
    assert [bytes(row) for row in main["images/digest"]] == [hashlib.sha256(c).digest() for c in contents]
    assert main["images/size"][:].tolist() == [7] * 5
    assert main["images/mtime_ns"][:].tolist() == [0, 8, 1, 2, 7]


def test_section_5_features(main, companion):
    for file, group, name, shape in (
        (main, "features", "blocks.5", (5, 5)),
        (main, "features", "head", (5, 4)),
        (main, "views", "head", (5, 3, 4)),
        (companion, "features", "blocks.3@none", (3, 2, 3, 3)),
    ):
        rows = file[group][name]
        assert rows.shape == shape
        node, _, pool = name.partition("@")
        assert (rows.attrs["node"], rows.attrs["pool"]) == (node, pool or "avg")
        assert rows.attrs["dtype"] == rows.dtype.name == "float16"
        described = {key: rows.attrs[key] for key in ("node", "pool", "dtype", "precision", "layout")}
        views = json.loads(rows.attrs["views"]) if group == "views" else None
        described |= {"cache": file.attrs["fingerprint"], "calibration": None, "views": views}
        assert rows.attrs["fingerprint"] == fingerprint(described)


def test_section_5_a_companions_rows_are_found_by_digest(main, companion):
    rows = {bytes(digest): row for row, digest in enumerate(companion["images/digest"])}
    found = [rows[bytes(digest)] for digest in main["images/digest"]]
    assert found == [0, 1, 1, 2, 0]
    assert "samples" not in companion


def test_section_6_samples_labels_failures(main):
    assert list(main["samples/key"].asstr()[:]) == list(main["images/key"].asstr()[:])
    assert main["samples/image"][:].tolist() == [[0], [1], [2], [3], [4]]
    assert list(main["samples/split"].asstr()[:]) == ["train", "train", "val", "train", "train"]
    label = main["labels/label"]
    assert (label.attrs["kind"], json.loads(label.attrs["class_names"])) == ("class", ["x", "y", "한글"])
    assert label[:].tolist() == [1, 1, 2, 0, 0]
    assert json.loads(main["covariates"].attrs["names"]) == ["half"]
    assert main["covariates"][:].tolist() == [[0.5], [0.5], [1.0], [0.0], [0.0]]
    assert list(main["failures/key"].asstr()[:]) == ["b/bad.jpg"]
    assert list(main["failures/reason"].asstr()[:]) == ["It is no image."]
    assert bytes(main["failures/digest"][0]) == hashlib.sha256(b"bad").digest()
    assert (main["failures/size"][0], main["failures/mtime_ns"][0]) == (3, 9)


def test_section_7_checksums(main, companion):
    for file in (main, companion):
        for dataset in datasets(file).values():
            assert hashlib.sha256(dataset[...].tobytes()).hexdigest() == dataset.attrs["sha256"]
        structure = {}

        def describe(name, item, structure=structure):
            attributes = {k: v if isinstance(v, str) else int(v) for k, v in item.attrs.items()}
            entry = {"attributes": attributes}
            if isinstance(item, h5py.Dataset):
                text = f"string:{item.dtype.itemsize}"
                entry |= {
                    "shape": list(item.shape),
                    "dtype": text if item.dtype.kind == "S" else item.dtype.name,
                }
            structure[name] = entry

        describe("/", file)
        file.visititems(lambda name, item: describe(f"/{name}", item))
        seal = structure["/"]["attributes"].pop("sha256")
        assert seal == fingerprint(structure)


def test_section_2_storage(main, companion):
    for file in (main, companion):
        for dataset in datasets(file).values():
            assert dataset.fletcher32
            assert dataset.chunks[1:] == dataset.shape[1:]
            assert dataset.compression is None
            assert not dataset.is_virtual
            assert dataset.external is None


def test_section_8_log(tmp_path):
    from tests.store.make_golden import interrupted

    folder = interrupted(tmp_path)
    objects = []
    for number, line in enumerate((folder / "log").read_bytes().splitlines()):
        digits, text = line[:64].decode(), line[65:]
        assert hashlib.sha256(text).hexdigest() == digits
        objects.append(json.loads(text))
        assert objects[-1]["n"] == number
        assert canonical(objects[-1]) == text
    first, nodes, *parts = objects
    assert (first["format"], first["format_version"]) == ("bottleneck-feature-cache-parts", 1)
    assert [node["node"] for node in nodes["nodes"]] == ["blocks.5"]
    assert len(parts) > 1
    rows = 0
    for part in parts:
        data = (folder / part["part"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (part["bytes"], part["sha256"])
        with h5py.File(folder / part["part"]) as file:
            assert set(file) - {"features"} == {"images", "taken", "failures"}
            assert len(file["images/key"]) == part["rows"]
            assert "features" not in file or len(file["features/blocks.5"]) == part["rows"]
            rows += part["rows"]
    assert rows == 3
