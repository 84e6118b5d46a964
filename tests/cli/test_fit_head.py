"""The flags of fit-head: what they accept, and one whole call."""

import json

import click
import pytest
from click.testing import CliRunner

from bottleneck.cli.fit_head import Counts, Strength, command
from bottleneck.cli.options import Memory
from tests.helpers.caches import class_target, write_cache
from tests.helpers.problems import features


@pytest.mark.parametrize("kind", [Memory(), Counts(), Strength()])
@pytest.mark.parametrize("text", ["", "much", "-1", "1,,2", "0x10", "inf", "٣"])
def test_nonsense_is_refused(kind, text):
    with pytest.raises(click.BadParameter):
        kind.convert(text, None, None)


def test_lists():
    assert Counts().convert("10,1,5,5", None, None) == (1, 5, 10)
    assert Strength().convert("0.1,1e-3", None, None) == (0.1, 1e-3)
    assert Strength().convert("auto", None, None) == "auto"


@pytest.fixture
def cache(tmp_path):
    X, y = features(90, 8, 3)
    return write_cache(tmp_path / "x.h5", X, [class_target(y)], ["train"] * 70 + ["test"] * 20)


def test_json_is_one_object_with_the_promised_keys(cache, tmp_path):
    arguments = [str(cache), "--head", "logistic", "--head", "ridge", "--C", "0.01,0.1", "--shots", "1,5"]
    arguments += ["--repeats", "3", "-o", str(tmp_path / "heads"), "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    printed = json.loads(result.stdout)
    assert [head["head"] for head in printed["heads"]] == ["logistic", "ridge"]
    keys = {"path", "target", "node", "head", "C", "cv_accuracy", "accuracy", "accuracy_ci95", "n"}
    assert keys <= printed["heads"][0].keys()
    assert printed["curves"]["shots"][0]["shots"] == [1, 5]
    assert printed["seconds"] > 0


def test_people_get_a_table(cache, tmp_path):
    result = CliRunner().invoke(
        command, [str(cache), "--C", "0.1", "-o", str(tmp_path / "heads")], catch_exceptions=False
    )
    assert "logistic" in result.stdout
    assert "Next: bottleneck evaluate" in result.stdout


def test_the_next_command_takes_the_same_labels(cache, tmp_path):
    rows = "\n".join(f"그림/{i:03d}.png,{'ab'[i % 2]}" for i in range(90))
    labels = tmp_path / "the labels.csv"
    labels.write_text(f"image,letter\n{rows}", encoding="utf-8")
    arguments = [str(cache), "--labels", str(labels), "--C", "0.1", "-o", str(tmp_path / "heads")]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert f"{cache} --labels '{labels}'" in result.stdout
    labels.write_text(f"image,letter\n{rows.replace('b', 'a|b')}", encoding="utf-8")
    result = CliRunner().invoke(command, [*arguments, "--label-separator", "|"], catch_exceptions=False)
    assert f"{cache} --labels '{labels}' --label-separator '|'" in result.stdout


def test_a_head_that_did_not_converge_is_marked(cache, tmp_path, monkeypatch):
    arguments = [str(cache), "--C", "1e3", "-o", str(tmp_path / "heads")]
    plain = CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    monkeypatch.setattr("bottleneck.heads.solver.path.MAX_PASSES", 1)
    marked = CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    assert "logistic *" in marked
    assert "did not converge" in " ".join(marked.split())
    assert "logistic *" not in plain
