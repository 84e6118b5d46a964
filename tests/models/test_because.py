"""Training images that pull a prediction, for each kind of target, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr

from bottleneck import fit_heads
from bottleneck.cli.main import group
from bottleneck.errors import ArtifactError, CacheError
from bottleneck.heads.artifact import load_head
from bottleneck.models.because import because, training_rows
from bottleneck.store.reader import FeatureCache
from tests.models.conftest import write_rows


@pytest.fixture(scope="module")
def few(listed, tmp_path_factory):
    """A manifest of three of the images."""
    return write_rows(tmp_path_factory.mktemp("few") / "few.csv", listed.rows[::30])


@pytest.mark.parametrize("target", ["species", "tags", "weight"])
def test_each_target_s_predictions_have_training_samples(listed, few, target):
    found = because(listed.heads[target], few, cache=listed.cache)
    with FeatureCache(listed.cache) as cache:
        train = set(cache.samples.key[cache.samples.split == "train"])
    assert len(found.pulls) == 3
    for one in found.pulls:
        assert (one["against"] is None) == (target != "species")
        sizes = [abs(each["pull"]) for each in one["training"]]
        assert sizes == sorted(sizes, reverse=True)
        assert {each["sample"] for each in one["training"]} <= train
    assert found.exact == (target == "weight")


def test_pulls_rank_as_heads_without_the_samples(listed, few, tmp_path):
    """Heads fitted by --without, which standardise anew, of the ten strongest samples of a prediction."""
    options = {"targets": ["species"], "C": 0.01, "scales": "equal", "cache": listed.cache}
    (whole,) = fit_heads(**options, output=tmp_path / "whole").heads
    one = because(whole["path"], few, cache=listed.cache).pulls[0]
    with FeatureCache(listed.cache) as cache:
        row = cache.sample_rows("bottleneck").take(np.flatnonzero(cache.samples.key == one["sample"]))

    def margin(head):
        logits = dict(zip(head.class_names, head.decision(row)[0], strict=True))
        return logits[one["class"]] - logits[one["against"]]

    assert margin(load_head(whole["path"])) == pytest.approx(one["margin"], abs=1e-3)
    differences = []
    for number, each in enumerate(one["training"]):
        (less,) = fit_heads(**options, without=[each["sample"]], output=tmp_path / str(number)).heads
        differences.append(margin(load_head(whole["path"])) - margin(load_head(less["path"])))
    assert spearmanr(differences, [each["pull"] for each in one["training"]])[0] >= 0.9


def test_other_caches_and_other_heads_are_refused(listed, few, made_cache, made_head, images, tmp_path):
    with pytest.raises(ArtifactError, match="fitted to other labels"):
        because(listed.heads["weight"], few, cache=made_cache)
    (knn,) = fit_heads(made_cache, head="knn", output=tmp_path).heads
    with pytest.raises(ArtifactError, match="on a knn head"):
        because(knn["path"], images, cache=made_cache)
    with FeatureCache(made_cache) as cache, pytest.raises(ArtifactError, match="does not say which images"):
        training_rows(replace(load_head(made_head), trained_on={}), cache, cache.samples)
    with FeatureCache(made_cache) as cache, pytest.raises(CacheError, match="extraction was interrupted"):
        training_rows(load_head(made_head), cache, replace(cache.samples, finished=False))


def test_what_was_decided_about_the_images_is_noted(made_cache, images, tmp_path):
    (head,) = fit_heads(made_cache, C=0.1, output=tmp_path).heads
    copied = tmp_path / "given" / "a.png"
    copied.parent.mkdir()
    copied.write_bytes(next(images.rglob("*.png")).read_bytes())
    (copied.parent / "b.txt").write_text("")
    found = because(head["path"], copied.parent, cache=made_cache)
    assert "files-ignored" in [note.code for note in found.notes]


def test_images_of_the_same_name_in_two_folders_are_told_apart(made_cache, images, tmp_path):
    (head,) = fit_heads(made_cache, C=0.1, output=tmp_path).heads
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, path in zip(folders, sorted(images.rglob("*.png")), strict=False):
        folder.mkdir()
        (folder / "1.png").write_bytes(path.read_bytes())
        (folder / "2.png").write_bytes(b"broken")
    found = because(head["path"], *folders, cache=made_cache)
    assert [one["image"] for one in found.pulls] == [str(folder / "1.png") for folder in folders]
    assert list(found.failed) == [str(folder / "2.png") for folder in folders]
    (note,) = (note for note in found.notes if note.code == "images-unread")
    assert note.message.startswith(f"Images that are not explained: 2; the first is {folders[0] / '2.png'}: ")


def test_a_class_of_a_head_of_numbers_is_refused_as_one(listed, few):
    with pytest.raises(ArtifactError, match="a quantity, and has no class 'bee'"):
        because(listed.heads["weight"], few, cache=listed.cache, class_names=["bee"])


def test_a_head_fitted_to_a_labels_file_is_explained_with_that_file_alone(listed, few, tmp_path):
    with FeatureCache(listed.cache) as cache:
        samples = cache.samples
    species = samples.targets["species"]
    other = np.roll(species.values, 1)
    labels = tmp_path / "labels.csv"
    rows = [f"{key},{species.class_names[code]}" for key, code in zip(samples.key, other, strict=True)]
    labels.write_text("\n".join(["sample,species", *rows]) + "\n", "utf-8")
    (head,) = fit_heads(listed.cache, labels=labels, output=tmp_path).heads
    with pytest.raises(ArtifactError, match=r"fitted to other labels.*--labels"):
        because(head["path"], few, cache=listed.cache)
    given = dict(row.split(",") for row in rows)
    found = because(head["path"], few, cache=listed.cache, labels=labels)
    assert len(found.pulls) == 3
    assert all(each["given"] == given[each["sample"]] for one in found.pulls for each in one["training"])
    arguments = ["explain", head["path"], str(few), "-o", str(tmp_path / "e.png"), "--labels", str(labels)]
    assert "goes with --because" in CliRunner().invoke(group, arguments).output
    refused = CliRunner().invoke(group, [*arguments[:-2], "--because", str(listed.cache)])
    assert "fitted to other labels" in str(refused.exception)
    assert not (tmp_path / "e.png").exists()  # refused before an image is explained


def test_the_command_names_them(listed, few, tmp_path):
    arguments = ["explain", listed.heads["species"], str(few), "-o", str(tmp_path / "e.png")]
    shown = CliRunner().invoke(group, [*arguments, "--because", str(listed.cache), "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)["because"]
    assert len(found["pulls"]) == 3
    assert found["sheet"] == str(tmp_path / "e-because.png")
    assert (tmp_path / "e-because.png").stat().st_size > 10_000
    shown = CliRunner().invoke(group, [*arguments, "--because", str(listed.cache)])
    assert "one step of Newton" in shown.output.replace("\n", " ")
