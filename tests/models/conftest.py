"""A manifest with columns of odd names, its cache by the small CNN, and heads on its targets."""

import csv
import json
from types import SimpleNamespace

import pytest

from bottleneck import extract, fit_heads
from tests.helpers.torch_engine import torch_computes

__all__ = ["COLUMNS", "listed", "torch_computes", "write_rows"]

COLUMNS = {
    "image_columns": ["Photo"],
    "label_columns": ["species", "tags", "weight"],
    "split_column": "fold",
    "sample_column": "name",
    "covariate_columns": ["age"],
    "label_separator": "|",
}


def write_rows(path, rows):
    """Write a manifest of dicts as .csv or .jsonl."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def listed(images, tmp_path_factory):
    """`rows` of a manifest of the images, its path, its cache, and a head for each kind of target."""
    folder = tmp_path_factory.mktemp("listed")
    rows = []
    for number, image in enumerate(sorted(images.rglob("*.png"))):
        split, species, _ = image.relative_to(images).parts
        rows.append(
            {
                "name": f"no. {number}",
                "Photo": str(image),
                "species": species,
                "tags": f"{species}|even" if number % 2 == 0 else species,
                "weight": f"{number}.5",
                "fold": split,
                "age": number % 7,
                "remark": f"remark, {number}",
            }
        )
    manifest = write_rows(folder / "list.csv", rows)
    cache = folder / "c.h5"
    extract(manifest, cache, backbone="small_cnn", engine="torch", dtype="float32", **COLUMNS)
    heads = {head["target"]: head["path"] for head in fit_heads(cache, output=folder / "heads", C=0.1).heads}
    return SimpleNamespace(rows=rows, manifest=manifest, cache=cache, heads=heads)
