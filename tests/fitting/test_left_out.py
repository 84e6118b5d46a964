"""Heads without listed images: those of a cache that lacks them, and a proof of what a head has seen."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from bottleneck import fit_heads
from bottleneck.cli.main import group
from bottleneck.errors import ArtifactError, CacheError, FitError
from bottleneck.fitting.left_out import left_out, seen_images
from bottleneck.heads.artifact import load_head
from bottleneck.heads.trained_on import TrainedOn
from bottleneck.samples import SampleTable
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


def test_names_with_outer_spaces_and_other_ends_of_lines_are_found(tmp_path):
    group = np.array(["Anna " if i < 3 else "Be\u2028a" if i < 5 else f"{i}" for i in range(N)], object)
    cache = write_cache(tmp_path / "c.h5", X, [class_target(Y)], split=SPLIT, group=group)
    (tmp_path / "list.txt").write_bytes("Anna \r\nBe\u2028a\r\n".encode())
    with FeatureCache(cache) as opened:
        found = left_out(opened, tmp_path / "list.txt")
    assert (found.rows.tolist(), found.unknown) == ([0, 1, 2, 3, 4], ())


def test_a_name_of_an_image_that_is_also_a_group_s_is_told(tmp_path):
    """The image is left out, and the group stays."""
    named = np.array([key(5) if i in (8, 9) else key(i) if i == 6 else "사람" for i in range(N)], object)
    cache = write_cache(tmp_path / "c.h5", X, [class_target(Y)], split=SPLIT, group=named)
    with FeatureCache(cache) as opened:
        found = left_out(opened, [key(5), key(6), "사람"])
        assert found.ambiguous == (key(5),)
        assert 8 not in found.rows
        (note,) = (note for note in found.notes(opened) if note.code == "names-of-several")
    text = "1 of 3 names is of an image or a sample, which is left out, and of a group or sample that stays: "
    assert note.message.startswith(f"{text}'{key(5)}'.")
    (head,) = fit_heads(cache, output=tmp_path / "heads").heads
    assert "names-of-several" in {
        note["code"] for note in seen_images(head["path"], cache, [key(5)])["notes"]
    }


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


def test_a_cache_without_rows_is_refused(cache, listed, heads, monkeypatch):
    def refuse(cache):
        raise CacheError("It has no rows.")

    monkeypatch.setattr(FeatureCache, "require_rows", refuse)
    with pytest.raises(CacheError, match="no rows"):
        seen_images(heads[0], cache, listed)


def test_a_name_leaves_out_all_files_that_it_is_the_same_name_of():
    """Two files may have names that differ in the composition of their letters alone."""
    keys = np.array(["caf\u00e9.png", "cafe\u0301.png", "b.png"], object)
    digest = np.arange(96, dtype=np.uint8).reshape(3, 32)
    images = SimpleNamespace(key=keys, digest=digest, digests=lambda: [bytes(each) for each in digest])
    samples = SampleTable(keys, np.arange(3)[:, None], np.array(["train"] * 3, object))
    cache = SimpleNamespace(images=images, samples=samples, source_root="/images", path="c.h5")
    found = left_out(cache, ["cafe\u0301.png"])
    assert (found.rows.tolist(), found.images.tolist()) == ([0, 1], [0, 1])
