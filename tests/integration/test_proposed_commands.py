"""Commands that messages propose do what they say when they are given to a shell."""

import shlex

import pytest

from bottleneck import FeatureCache, extract
from bottleneck.errors import CacheError
from bottleneck.store.cachefile import CacheFile
from tests.helpers.fitted_cache import write_images

SMALL = {"backbone": "small_cnn", "weights": "none", "depth": 1, "image_size": 32, "engine": "torch"}


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A manifest whose numbers and separators are read in one of two ways, and images with Korean names."""
    folder = tmp_path_factory.mktemp("목록")
    write_images(folder / "내 사진", {"train": 12}, size=40)
    files = sorted((folder / "내 사진").rglob("*.png"))
    lines = [
        f"{file.relative_to(folder)},{file.parent.name} | wild,{n % 18 + 0.5},{n}"
        for n, file in enumerate(files)
    ]
    header = "사진 경로,the kind,code,age"
    (folder / "목록.csv").write_text("\n".join([header, *lines]) + "\n", "utf-8")
    return folder / "목록.csv"


def samples_in(path):
    with FeatureCache(path) as cache:
        samples = cache.samples
    answers = {
        name: (target.kind, [target.answer(row) for row in range(len(samples))])
        for name, target in samples.targets.items()
    }
    return samples.key.tolist(), samples.split.tolist(), answers


def test_a_proposed_extraction_leaves_splits_and_kinds_of_targets(listed, tmp_path, run):
    path = tmp_path / "내 캐시.h5"
    reading = {
        "image_columns": ["사진 경로"],
        "label_columns": ["the kind", "code", "age"],
        "classes": ["the kind", "code"],
        "regression": ["age"],
        "label_separator": "|",
        "val_fraction": 0.25,
        "test_fraction": 0.2,
        "seed": 3,
    }
    extract(listed, path, **SMALL, **reading)
    before = samples_in(path)
    assert {kind for kind, _ in before[2].values()} == {"class", "regression"}
    with (
        FeatureCache(path) as cache,
        pytest.raises(CacheError, match="no features of node 'block1@avg'") as no,
    ):
        cache.features("block1@avg")
    with CacheFile(path) as file:
        assert {"--regression", "--classes", "--val-fraction"} <= set(file.mend.split())
    command = shlex.split(no.value.hint.split("`")[1])
    done = run(*command[1:], "--json")
    assert done.code == 0, done.err
    assert "splits-changed" not in {note["code"] for note in done.json["notes"]}
    assert samples_in(path) == before
