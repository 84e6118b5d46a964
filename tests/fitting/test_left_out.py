"""Heads without listed images: those of a cache that lacks them, and a proof of what a head has seen."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from bottleneck import fit_heads
from bottleneck.cli.main import group
from bottleneck.errors import ArtifactError, FitError
from bottleneck.fitting.left_out import left_out, seen_images
from bottleneck.heads.artifact import load_head
from bottleneck.heads.trained_on import TrainedOn
from bottleneck.store.reader import FeatureCache
from bottleneck.training.finetune import finetune
from tests.helpers.caches import class_target, write_cache

N = 90
SPLIT = np.array(["train", "train", "val"] * (N // 3), object)
GROUP = np.array([f"사람 {i // 3 % 10}" for i in range(N)], object)
OUT = [0, 3, 4, 5, 30, 44]
DRAW = np.random.default_rng(0)
Y = np.arange(N) % 2
X = (DRAW.normal(size=(2, 12))[Y] + DRAW.normal(size=(N, 12))).astype(np.float32)


def key(i):
    return f"그림/{i:03d}.png"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("left") / "c.h5"
    return write_cache(path, X, [class_target(Y)], split=SPLIT, group=GROUP)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "사람.txt"
    path.write_text("\ufeff" + "".join(f"./{key(i)}\n" for i in OUT) + "\nno/such.png\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def heads(cache, listed, tmp_path_factory):
    """Heads with and without the list, and the notes of the latter."""
    folder = tmp_path_factory.mktemp("heads")
    (whole,) = fit_heads(cache, output=folder / "whole").heads
    result = fit_heads(cache, without=listed, output=folder / "left")
    return whole["path"], result.heads[0], result.notes


@pytest.mark.parametrize("kind", ["logistic", "ridge", "knn"])
def test_the_head_is_that_of_a_cache_without_those_rows(cache, listed, tmp_path, kind):
    (found,) = fit_heads(cache, without=listed, head=kind, output=tmp_path / "a").heads
    rest = np.setdiff1d(np.arange(N), OUT)
    few = write_cache(
        tmp_path / "few.h5", X[rest], [class_target(Y[rest])], split=SPLIT[rest], group=GROUP[rest]
    )
    (expected,) = fit_heads(few, head=kind, output=tmp_path / "b").heads
    assert (found["C"], found["n"], found["accuracy"]) == (expected["C"], expected["n"], expected["accuracy"])
    one, other = load_head(found["path"]), load_head(expected["path"])
    for name, array in other.arrays.items():
        np.testing.assert_allclose(one.arrays[name], array, rtol=1e-4, atol=1e-5)
    with np.load(found["out_of_fold"]) as stored:
        assert not {key(i) for i in OUT} & set(stored["sample"].tolist())


def test_the_file_says_what_was_left_out_and_the_digests_prove_it(cache, listed, heads):
    whole, left, notes = heads
    assert {note.code for note in notes} >= {"samples-left-out", "names-not-found"}
    model = load_head(left["path"])
    assert (model.without["names"], model.without["images"], len(model.without["sha256"])) == (7, 6, 64)
    found = seen_images(left["path"], cache, listed)
    assert (found["proven"], found["seen"], found["images"], found["undecided"]) == (True, [], 6, 0)
    found = seen_images(whole, cache, listed)
    assert not found["proven"]
    assert found["seen"] == [key(i) for i in OUT if SPLIT[i] == "train"]


def test_a_part_of_the_digests_leaves_images_undecided(cache):
    with FeatureCache(cache) as opened:
        digests = opened.images.digest
    some = TrainedOn.of(digests[:40])
    part = TrainedOn(some.images, some.starts[:10])
    seen, decided = part.has(digests)
    assert seen.sum() == 10
    assert decided.sum() == (digests[:, :8].copy().view(">u8").ravel() <= some.starts[9]).sum() < N


def test_samples_groups_tables_and_copies_are_found(cache, tmp_path):
    with FeatureCache(cache) as opened:
        assert left_out(opened, ["사람 3"]).rows.tolist() == np.flatnonzero(GROUP == "사람 3").tolist()
        table = tmp_path / "list.csv"
        table.write_text(f"note,group\nx,사람 0\ny,{key(5)}\n", "utf-8")
        assert left_out(opened, table).rows.tolist() == sorted({5, *np.flatnonzero(GROUP == "사람 0")})
        assert left_out(opened, [f"{opened.source_root}/{key(7)}"]).rows.tolist() == [7]
        opened.images.digest[60] = opened.images.digest[7]
        found = left_out(opened, [key(7)])
        assert (found.rows.tolist(), found.copies) == ([7, 60], 1)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"elsewhere/x.png\n", "None of 1 name of .* is a sample, image or group"),
        (b"\n \n", "is empty"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        (None, "There is no list"),
    ],
)
def test_a_useless_list_is_named(cache, tmp_path, content, text):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FitError, match=text):
        fit_heads(cache, without=path, output=tmp_path / "heads")


def test_training_on_from_such_a_head_is_refused(cache, heads, tmp_path):
    with pytest.raises(ArtifactError, match="fitted without 6 images"):
        finetune(cache, head=heads[1]["path"], output=tmp_path / "m.safetensors")


def test_the_command_checks_and_exits_1_for_a_head_that_has_seen_one(cache, heads, listed):
    names = listed.read_text("utf-8-sig")
    arguments = ["fit-head", str(cache), "--without", "-", "--check"]
    proven = CliRunner().invoke(group, [*arguments, heads[1]["path"], "--json"], input=names)
    assert (proven.exit_code, json.loads(proven.stdout)["proven"]) == (0, True)
    seen = CliRunner().invoke(group, [*arguments, heads[0], "--json"], input=names)
    assert (seen.exit_code, json.loads(seen.stdout)["proven"]) == (1, False)
    assert "has seen 4 of the 6 images" in str(seen.exception)
