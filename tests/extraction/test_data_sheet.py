"""The data sheet counts what a source holds, as counting by hand does."""

import csv

import numpy as np
import pytest
from PIL import Image

from bottleneck.data.config import ReadConfig
from bottleneck.data.read_source import read_source
from bottleneck.errors import StrictError
from bottleneck.extraction.data_sheet import source_sheet
from bottleneck.extraction.survey import survey

ROWS = [
    ("a.png", "ant", "train", "1.5"),
    ("b.png", "ant", "val", "2.5"),
    ("c.png", "벌", "train", ""),
    ("d.png", "벌", "test", "-4"),
    ("e.png", "", "train", "0"),
]


def write_images(folder, names):
    """Images of noise, each another: copies would be one image."""
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name)


@pytest.fixture
def manifest(tmp_path):
    write_images(tmp_path, [row[0] for row in ROWS])
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label", "split", "weight"), *ROWS])
    return tmp_path / "list.csv"


def test_a_manifest_is_counted_by_split_class_and_target(manifest):
    source = read_source(manifest, ReadConfig(label_columns=("label", "weight")))
    sheet = source_sheet(source, source.samples, {"x.png": "is broken", "y.png": "is broken"})
    assert sheet["splits"] == {"train": 3, "val": 1, "test": 1}
    assert sheet["classes"] == {
        "label": {"ant": {"train": 1, "val": 1, "test": 0}, "벌": {"train": 1, "val": 0, "test": 1}}
    }
    assert sheet["targets"]["label"] == {"kind": "class", "classes": 2, "labelled": 4, "unlabelled": 1}
    assert sheet["targets"]["weight"]["kind"] == "regression"
    assert sheet["targets"]["weight"]["range"] == [-4.0, 2.5]
    assert sheet["failures"] == {"is broken": 2}
    assert sheet["columns"]["image"] == ["image"]


def test_a_folder_counts_the_files_that_it_ignores_by_suffix(tmp_path):
    write_images(tmp_path, ["ant/1.png", "bee/1.png"])
    for name in ("ant/notes.txt", "bee/list.txt", "bee/data.bin"):
        (tmp_path / name).write_text("x")
    source = read_source(tmp_path)
    sheet = source_sheet(source, source.samples, {})
    assert sheet["ignored"] == {".txt": 2, ".bin": 1}
    assert sheet["classes"]["label"]["ant"] == {"train": 1, "val": 0, "test": 0}


def test_strict_refuses_a_source_whose_decisions_change_the_result(tmp_path):
    write_images(tmp_path, [f"{name}/{i}.png" for name in ("Ant", "ant ") for i in range(3)])
    notes = read_source(tmp_path).notes
    assert any(note.changes_result for note in notes), notes
    with pytest.raises(StrictError):
        survey(tmp_path, tmp_path / "c.h5", strict=True)
