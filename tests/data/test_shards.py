"""Shards of a source: disjoint, complete, of whole groups, and taken from the environment only when asked."""

import re

import numpy as np
import pytest
from PIL import Image

from bottleneck.data.config import ReadConfig
from bottleneck.data.read_source import read_source
from bottleneck.data.shards import shard_number, shard_of
from bottleneck.errors import SourceError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """40 samples of 2 classes and 8 groups in no order, and one whose image is absent."""
    folder = tmp_path_factory.mktemp("사진")
    lines = ["image,label,patient,age"]
    for number in np.random.default_rng(0).permutation(40):
        Image.new("RGB", (8, 8), (int(number), 0, 0)).save(folder / f"{number:02}.png")
        lines.append(f"{number:02}.png,{'ab'[number % 2]},p{number // 5},{number}.5")
    (folder / "list.csv").write_text("\n".join([*lines, "gone.png,a,p0,1"]))
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
    assert [shard.samples.shard.plan for shard in shards] == [shards[0].samples.shard.plan] * of
    place = dict(zip(whole.samples.key, range(40), strict=True))
    for shard in shards:
        assert [place[key] for key in shard.samples.key] == shard.samples.position.tolist()
    assert [list(shard.absent) for shard in shards].count(["gone.png"]) == 1
    if group:
        parts = [set(shard.samples.group) for shard in shards]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 8


@pytest.mark.parametrize(
    ("options", "edit", "parts"),
    [
        ({}, ("", ""), set()),
        ({"val_fraction": 0.5}, ("", ""), {"splits"}),
        ({"group_column": "patient"}, ("", ""), {"groups", "assignment"}),
        ({"covariate_columns": ("age",)}, ("", ""), {"covariates"}),
        ({"label_columns": ("patient",)}, ("", ""), {"labels"}),
        ({}, ("00.png,a", "00.png,b"), {"labels"}),
        ({}, ("07.png", "none.png"), {"images", "samples", "splits", "labels"}),
    ],
)
def test_the_plan_names_what_another_run_has_otherwise(manifest, options, edit, parts):
    other = manifest.parent / "other.csv"
    other.write_text(manifest.read_text().replace(*edit))
    mine = read_source(manifest, ReadConfig(shard="1/2")).samples.shard.plan
    theirs = read_source(other, ReadConfig(shard="1/2", **options)).samples.shard.plan
    assert {part for part in mine if mine[part] != theirs[part]} == parts


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


def test_samples_of_one_image_are_in_one_shard(tmp_path):
    lines = ["image,id,label"]
    for number in range(12):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
        lines += [f"{number:02}.png,{number}{name},a" for name in "xyz"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    options = {"sample_column": "id"}
    shards = [read_source(tmp_path / "list.csv", ReadConfig(**options, shard=f"{i}/3")) for i in (1, 2, 3)]
    images = [image for shard in shards for image in shard.images]
    assert len(images) == len(set(images)) == 12
    assert sum(len(shard.samples) for shard in shards) == 36
    assert not any(note.code == "images-in-other-shards" for shard in shards for note in shard.notes)
