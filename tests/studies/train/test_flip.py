"""The mean of an image and its mirror image as a candidate of `train`, and the model that carries it."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bottleneck import FeatureCache, evaluate, explain, load_model, predict, train
from bottleneck.backbones.model_file import read_network, save_model
from bottleneck.heads.artifact import load_head
from bottleneck.models.export import export
from bottleneck.trials import mirrors
from bottleneck.trials.heads import try_head
from bottleneck.trials.mirrors import try_mirrored
from bottleneck.trials.task import Records, task_of
from tests.studies.train.conftest import TINY


@pytest.fixture(scope="module")
def flipped(source, tmp_path_factory):
    """On held-out samples the mean is judged to be right, so that it is chosen."""
    folder, real = tmp_path_factory.mktemp("flipped"), mirrors.mirrored_outputs

    def answered(task, head, rows):
        outputs = real(task, head, rows)
        return 9.0 * np.eye(outputs.shape[1])[task.target.values[rows]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirrors, "mirrored_outputs", answered)
        return train(source, folder / "m.safetensors", flip=True, **TINY)


def test_the_mean_is_tried_with_the_best_head_alone_and_chosen_where_it_gains(flipped, trained):
    assert flipped.chosen["kind"] == "flipped"
    assert flipped.chosen["node"] == trained.chosen["node"]
    assert [each["kind"] for each in flipped.candidates].count("flipped") == 1
    assert (flipped.chosen["cv_accuracy"], flipped.chosen["val_accuracy"]) == (1.0, 1.0)
    assert "mean of each image and its mirror image replaces" in flipped.rule[-1]


def test_without_mirrored_views_it_is_not_tried(trained):
    assert "flipped" not in {each["kind"] for each in trained.candidates}


def test_where_it_gains_nothing_the_plain_head_stays(source, flipped, tmp_path, monkeypatch):
    def wrong(task, head, rows):
        return 9.0 * np.eye(len(head.class_names))[(task.target.values[rows] + 1) % 4]

    monkeypatch.setattr(mirrors, "mirrored_outputs", wrong)
    cache = flipped.files["cache small_cnn"]
    found = train(source, tmp_path / "m.safetensors", cache=cache, **TINY)  # the views are there
    assert found.images["computed"] == 0
    assert [each["pooled"] for each in found.candidates if each["kind"] == "flipped"] == [0.0]
    assert found.chosen["kind"] != "flipped"
    assert not load_model(found.model).flips


def test_the_model_averages_by_itself_and_says_so(source, flipped, tmp_path):
    head = load_head(flipped.model)
    assert head.settings["flip"] is True
    plain = tmp_path / "plain.safetensors"
    settings = {name: value for name, value in head.settings.items() if name != "flip"}
    save_model(plain, replace(head, settings=settings), read_network(flipped.model), "")
    paths = sorted((source / "test").glob("*/*.png"))
    by_itself = predict(flipped.model, *paths, probabilities=True, engine="torch")
    asked = predict(plain, *paths, probabilities=True, flip=True, engine="torch")
    without = predict(plain, *paths, probabilities=True, engine="torch")
    assert by_itself["flip"] is True
    assert by_itself["predictions"] == asked["predictions"] != without["predictions"]
    explained = explain(flipped.model, paths[0], output=None)
    assert explained.flip
    assert "flip-of-the-model" in [note.code for note in explained.notes]
    assert explained.maps[0].confidence == pytest.approx(by_itself["predictions"][0]["confidence"], abs=1e-4)
    assert "flip-of-the-model" in {note.code for note in by_itself["notes"]}
    assert "flip-of-the-model" not in {note.code for note in asked["notes"]}
    measured = evaluate(flipped.model, source, split="test")
    right = [
        record["label"] == path.parent.name
        for record, path in zip(flipped.predict(*paths), paths, strict=True)
    ]
    assert measured["accuracy"] == flipped.accuracy["test"] == pytest.approx(np.mean(right))
    assert measured["flip"] is True
    with open(flipped.files["card"], encoding="utf-8") as file:
        assert "mean of each image and its mirror image" in file.read()


def test_the_exported_program_averages(flipped, tmp_path):
    assert export(flipped.model, format="torch", output=tmp_path / "m.pt2").max_difference < 1e-4


def test_held_out_samples_are_judged_as_scikit_learn_judges_both_images(flipped, tmp_path):
    with FeatureCache(flipped.files["cache small_cnn"]) as cache:
        task = task_of(cache, None, cv=5, seed=0)
        records = Records(tmp_path)
        plain = try_head(task, "bottleneck", records, "plain")
        found = try_mirrored(task, "bottleneck", plain, records, "mirrored")
        image = task.samples.image[:, 0]
        X = cache.features("bottleneck").take(image).astype(np.float64)
        mirrored = cache.views("bottleneck").take(image)[:, 0].astype(np.float64)
        y, train_rows = task.target.values, task.rows["train"]
        loss = {}
        parts = [(train_rows[task.fold != k], train_rows[task.fold == k]) for k in range(5)]
        for seen, held in [*parts, (train_rows, task.rows["val"])]:
            mean, scale = X[seen].mean(axis=0), X[seen].std(axis=0)
            judge = LogisticRegression(C=plain.settings["C"], tol=1e-8, max_iter=10000)
            judge.fit((X[seen] - mean) / scale, y[seen])
            both = [(judge.decision_function((rows[held] - mean) / scale)) for rows in (X, mirrored)]
            shares = np.mean([softmax(z / plain.settings["temperature"]) for z in both], axis=0)
            loss |= dict(
                zip(task.samples.key[held], -np.log(shares[np.arange(len(held)), y[held]]), strict=True)
            )
    expected = [loss[key] for key in found.evidence.keys]
    np.testing.assert_allclose(found.evidence.loss, expected, rtol=1e-2)
    assert len(expected) == 64


def softmax(z):
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)
