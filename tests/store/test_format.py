"""A cache read by cache/FORMAT.md alone: nothing here but h5py, hashlib and json reads it."""

import hashlib
import json
import re
import shutil
import textwrap
import zlib
from pathlib import Path

import h5py
import pytest
from hypothesis import given

from bottleneck.store.spec import canonical_json
from tests.helpers.json_values import JSON

GOLDEN = (
    Path(__file__).parent / "golden"
)  # written once by format version 1, by version 2 in v2, with sums of chunks in crc32
TEXT = (Path(__file__).parents[2] / "cache" / "FORMAT.md").read_text(encoding="utf-8")
SHA_OF_NOTHING = hashlib.sha256().hexdigest()


def code_of(section: str) -> str:
    """The Python code of a section."""
    body = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", TEXT, re.M | re.S)[1]
    return textwrap.dedent(re.search(r"^ *```python\n(.*?)^ *```$", body, re.M | re.S)[1])


def canonical(value) -> bytes:
    """Section 2, by the code that stands there."""
    names = {}
    exec(code_of("2. Common rules"), names)
    return names["canonical_json"](value).encode()


def fingerprint(value) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def datasets(file) -> dict:
    found = {}
    file.visititems(lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {}))
    return found


def listing(file) -> str:
    """What the format's description shows of a file: each object, its attributes, and small tables."""
    lines = []

    def show(path, item):
        attributes = {
            name: value[:8] if re.fullmatch("[0-9a-f]{64}", str(value)) else value
            for name, value in sorted(item.attrs.items())
        }
        if isinstance(item, h5py.Dataset):
            kind = f"string:{item.dtype.itemsize}" if item.dtype.kind == "S" else item.dtype.name
            lines.append(f"{path:24} {kind:10} {item.shape!s:14} sha256 {attributes.pop('sha256')}")
        else:
            lines.append(path)
        lines.extend(f"    @{name} = {value}" for name, value in attributes.items())
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "Sifu" and item.dtype.itemsize != 2:
            values = item[...] if item.dtype.kind != "S" else item.asstr()[...]
            rows = [bytes(row).hex()[:8] for row in values] if path.endswith("/digest") else values.tolist()
            lines.append("    " + ", ".join(map(str, rows)))

    show("/", file)
    file.visititems(lambda name, item: show(f"/{name}", item))
    return "\n".join(lines)


@pytest.fixture(params=["golden", "golden v2", "golden crc32", "fresh"])
def folder(request, tmp_path):
    """A folder with cache.h5 and its companion: one kept of each version, one written now."""
    if request.param != "fresh":
        return shutil.copytree(GOLDEN, tmp_path / "golden") / request.param.removeprefix("golden").strip()
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


@pytest.fixture
def version(folder):
    return 1 if folder.name == "golden" else 2


@pytest.mark.parametrize("name", ["cache.h5", "cache--blocks.3.h5"])
def test_the_file_shown_is_the_golden_one(name):
    with h5py.File(GOLDEN / "crc32" / name) as file:
        assert f"```text\n{listing(file)}\n```" in TEXT


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("\udc80", r'"\udc80"'),
        ("a\udcffé😀\u2028\x7f", '"a' + r"\udcff" + 'é😀\u2028\x7f"'),
        ("\ud83d\ude00", r'"\ud83d\ude00"'),
        ('\x00\x1f\b\t\n\f\r"\\/', r'"\u0000\u001f\b\t\n\f\r\"\\/"'),
        (
            {"b": 1, "a": {"\uffff": 1.0, "😀": 1e-05, "é": 0.5}},
            '{"a":{"é":0.5,"\uffff":1.0,"😀":1e-05},"b":1}',
        ),
        ([None, True, 10**20, -0.0], "[null,true,100000000000000000000,-0.0]"),
    ],
)
def test_section_2_canonical_json_is_what_the_store_writes(value, text):
    assert canonical(value).decode() == canonical_json(value) == text


@given(JSON)
def test_section_2_canonical_json_of_any_value(value):
    assert canonical(value).decode() == canonical_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_section_2_nan_and_infinity_are_forbidden(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(value)


def test_section_9_reads_a_cache(folder):
    code = code_of("9. Reading with h5py alone")
    names = {}
    exec(code.replace("NAME.h5", str(folder / "cache.h5")).replace('bottleneck"]', 'blocks.5"]'), names)
    assert names["x"].shape == (5, 5)
    assert names["y"].tolist() == [1, 1, 2, 0, 0]


def test_section_10_rules_are_numbered_once_in_order():
    numbers = [tuple(map(int, rule.split("."))) for rule in re.findall(r"^- \*\*(\d+\.\d+)\*\*", TEXT, re.M)]
    for section in range(1, 11):
        inside = [rule for head, rule in numbers if head == section]
        assert inside == list(range(1, len(inside) + 1))
    assert numbers == sorted(numbers)
    referred = {tuple(map(int, pair)) for pair in re.findall(r"\b(\d+)\.(\d+)\b(?! or newer)", TEXT)}
    assert {pair for pair in referred if pair[0] in range(1, 11)} - set(numbers) <= {(1, 10), (1, 0), (0, 5)}


def test_section_3_root(main, companion, version):
    for file in (main, companion):
        recipes = {name: json.loads(file.attrs[name]) for name in ("backbone", "preprocess")}
        assert file.attrs["format"] == "bottleneck-feature-cache"
        assert file.attrs["format_version"] == version
        assert file.attrs.get("source") == {1: None, 2: "/photographs"}[version]
        assert file.attrs["fingerprint"] == fingerprint(recipes)
        assert file.attrs["source_root"] == "/photographs"
        assert file.attrs["created_with"].startswith("bottleneck-features ")
        assert canonical(recipes["backbone"]).decode() == file.attrs["backbone"]
    assert companion.attrs["map"] == "blocks.3@none"
    assert "map" not in main.attrs


def test_section_4_images(main, version):
    keys = list(main["images/key"].asstr()[:])
    assert keys == ["a/0000.jpg", "a/copy.jpg", "b/0001.jpg", "c/0002.jpg", "c/사진 😀.png"]
    contents = [b"image 0", b"image 1", b"image 1", b"image 2", b"image 0"]
    assert [bytes(row) for row in main["images/digest"]] == [hashlib.sha256(c).digest() for c in contents]
    assert main["images/size"][:].tolist() == [7] * 5
    assert main["images/mtime_ns"][:].tolist() == [0, 8, 1, 2, 7]
    assert ("ctime_ns" in main["images"], "inode" in main["images"]) == (version == 2,) * 2


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


def test_section_6_samples_labels_failures(main, version):
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
    kinds = main["failures/kind"].asstr()[:].tolist() if version == 2 else None
    assert kinds == {1: None, 2: ["content"]}[version]
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


@pytest.mark.parametrize("made", ["golden crc32", "fresh"])
def test_section_5_a_crc32_of_the_rows_of_each_chunk(made, tmp_path):
    from tests.store.make_golden import make

    folder = GOLDEN / "crc32" if made != "fresh" else make(tmp_path)
    found = []
    for name in ("cache.h5", "cache--blocks.3.h5"):
        with h5py.File(folder / name) as file:
            for path, rows in datasets(file).items():
                if path.startswith(("features/", "views/")):
                    step, sums = rows.chunks[0], file[f"crc32_{path}"]
                    starts = range(0, len(rows), step)
                    assert sums.dtype == "int64"
                    assert sums[:].tolist() == [zlib.crc32(rows[at : at + step].tobytes()) for at in starts]
                    found.append(path)
    assert found == ["features/blocks.5", "features/head", "views/head", "features/blocks.3@none"]


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
    assert (first["format"], first["format_version"]) == ("bottleneck-feature-cache-parts", 2)
    assert [node["node"] for node in nodes["nodes"]] == ["blocks.5"]
    assert len(parts) > 1
    rows = 0
    for part in parts:
        data = (folder / part["part"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (part["bytes"], part["sha256"])
        with h5py.File(folder / part["part"]) as file:
            assert set(file) - {"features", "crc32_features"} == {"images", "taken", "failures"}
            assert len(file["images/key"]) == part["rows"]
            assert "features" not in file or len(file["features/blocks.5"]) == part["rows"]
            rows += part["rows"]
    assert rows == 3
