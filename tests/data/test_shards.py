"""Shards of a source: disjoint, complete, of whole groups, and taken from the environment only when asked."""

import re

import numpy as np
import pytest
from PIL import Image

from bottleneck.data.config import ReadConfig
from bottleneck.data.shards import shard_number, shard_of
from bottleneck.data.source import read_source
from bottleneck.errors import SourceError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """40 samples of 2 classes and 8 groups, one image of which is absent."""
    folder = tmp_path_factory.mktemp("사진")
    lines = ["image,label,patient"]
    for number in range(40):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:02}.png")
        lines.append(f"{number:02}.png,{'ab'[number % 2]},p{number // 5}")
    (folder / "list.csv").write_text("\n".join([*lines, "gone.png,a,p0"]))
    return folder / "list.csv"


@pytest.mark.parametrize("group", [None, "patient"])
@pytest.mark.parametrize("of", [2, 3])
def test_the_shards_are_the_whole_source_once_each_with_its_splits(manifest, of, group):
    options = {"val_fraction": 0.25, "test_fraction": 0.25, "group_column": group}
    whole = read_source(manifest, ReadConfig(**options))
    shards = [read_source(manifest, ReadConfig(**options, shard=f"{i}/{of}")) for i in range(1, of + 1)]
    keys = np.concatenate([shard.samples.key for shard in shards])
    assert sorted(keys) == sorted(whole.samples.key)
    split = dict(zip(whole.samples.key, whole.samples.split, strict=True))
    for shard in shards:
        assert [split[key] for key in shard.samples.key] == list(shard.samples.split)
        assert shard.images == tuple(sorted(shard.samples.key))
        assert shard.samples.targets["label"].class_names == ("a", "b")
    assert len({shard.samples.shard.plan for shard in shards}) == 1
    assert [list(shard.absent) for shard in shards].count(["gone.png"]) == 1
    if group:
        parts = [set(shard.samples.group) for shard in shards]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 8


def test_another_list_or_other_splits_are_another_plan(manifest):
    plans = {
        read_source(manifest, ReadConfig(shard="1/2", **options)).samples.shard.plan
        for options in (
            {},
            {"val_fraction": 0.5},
            {"limit": 30},
            {"label_columns": ("patient",)},
        )
    }
    assert len(plans) == 4


SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4"}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("2/3", {}, (2, 3)),
        (" 2 / 3 ", {"RANK": "0", "WORLD_SIZE": "9"}, (2, 3)),
        ("auto", {"RANK": "0", "WORLD_SIZE": "2"}, (1, 2)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "4"}, (4, 4)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_MIN": "5"}, (3, 4)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}, (4, 4)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0"}, (1, 4)),
    ],
)
def test_the_number_is_given_or_asked_of_the_environment(text, environment, expected):
    assert shard_number(text, environment)[:2] == expected


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ("0/3", {}, "shard 0 of 3; expected I/N with I from 1 to N"),
        ("4/3", {}, "shard 4 of 3"),
        ("1/0", {}, "shard 1 of 0"),
        ("three", {}, "'three'; expected I/N"),
        ("-1/3", {}, "expected I/N"),
        ("1/9999999", {}, "at most 1,000,000"),
        ("auto", {}, "neither is set"),
        ("auto", {"RANK": "1"}, "neither is set"),
        ("auto", {**SLURM, "RANK": "0", "WORLD_SIZE": "2"}, "both are set"),
        ("auto", SLURM, "not evenly spaced: 7 is none of 4 from 1"),
        ("auto", {"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 asks for shard 3 of 2"),
        ("auto", {"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
    ],
)
def test_a_shard_that_is_none_is_refused_in_one_line(text, environment, said):
    with pytest.raises(SourceError, match=re.escape(said)):
        shard_number(text, environment)


def test_a_shard_without_samples_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "only.png")
    number = shard_of("only.png", 2)
    assert len(read_source(tmp_path, ReadConfig(shard=f"{number}/2")).images) == 1
    with pytest.raises(SourceError, match="has no sample; the source has 1") as caught:
        read_source(tmp_path, ReadConfig(shard=f"{3 - number}/2"))
    assert caught.value.hint == "Use fewer shards."
