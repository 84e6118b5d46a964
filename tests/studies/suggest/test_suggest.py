"""`suggest` on clusters of which two overlap: what it names, what it says of its worth, what it writes."""

import csv
import json
import re
import shlex

import numpy as np
import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from bottleneck import fit_heads, suggest
from bottleneck.cli.main import group
from bottleneck.errors import BottleneckError, CacheError, FingerprintError, FitError
from bottleneck.samples import Target
from bottleneck.store.merge import merge
from bottleneck.store.reader import FeatureCache
from tests.helpers.caches import class_target, write_cache

NAMES = ("개", "=고양이", "cow")
CENTRES = np.array([[6.0] + [0.0] * 7, [0.0, 6.0] + [0.0] * 6, [0.0, 4.0, 3.0] + [0.0] * 5])
N = 180


def clusters(n, seed):
    """Rows (n, 8) of three classes, the last two of which overlap, and their codes."""
    draw = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    return (CENTRES[codes] + draw.normal(size=(n, 8))).astype(np.float32), codes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("suggest")


@pytest.fixture(scope="module")
def labelled(folder):
    x, codes = clusters(N, 0)
    return write_cache(folder / "old.h5", x, [class_target(codes, names=NAMES)])


@pytest.fixture(scope="module")
def new(folder):
    x, _ = clusters(90, 1)
    x[80:] = x[0]  # nearly copies of one, which the two overlapping classes share
    x[[0, *range(80, 90)]] = (CENTRES[1] + CENTRES[2]) / 2
    return write_cache(folder / "new.h5", x, [], folder="새")


@pytest.fixture(scope="module")
def result(labelled, new, folder):
    return suggest(labelled, new, n=12, output=folder / "to label.csv")


def test_undecided_images_are_named_each_once(result, new):
    images = [each["image"] for each in result.suggestions]
    assert len(set(images)) == len(images) == 12
    assert (result.engines, result.precisions) == ([], {result.node: "fp32"})  # the features were there
    assert len({"새/000.png", *(f"새/{i:03d}.png" for i in range(80, 90))} & set(images)) == 1
    scores = [each["score"] for each in result.suggestions]
    assert scores == sorted(scores, reverse=True)
    undecided = [each for each in result.suggestions[:5] if each["predicted"] in NAMES[1:]]
    assert len(undecided) >= 4
    first = result.suggestions[0]
    assert first["margin"] < 0.3
    assert first["reason"].startswith(f"{first['predicted']} {first['confidence']:.2f} or ")


def test_the_list_goes_through_labelling_and_merging_to_a_head(result, labelled, new, folder):
    path = result.files["output"]
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows[:12]] == [each["image"] for each in result.suggestions]
    assert all(row["label"] == "" for row in rows[:12])
    assert len(rows) == 12 + N
    for row in rows[:12]:
        row["label"] = row["predicted"]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    merge([labelled, new], folder / "merged.h5")
    (head,) = fit_heads(
        folder / "merged.h5", labels=path, targets=["label"], output=folder / "heads", C=0.1
    ).heads
    assert head["n"] == N + 12


def test_the_outlook_extends_the_curve(result):
    assert [each["labels"] for each in result.outlook["expected"]] == [2 * N, 5 * N]
    for each in result.outlook["expected"]:
        low, high = each["interval"]
        assert 0 <= low <= each["accuracy"] <= high <= 1


def test_samples_of_the_cache_without_a_label_are_candidates_but_those_of_test(folder):
    x, codes = clusters(N, 2)
    codes[120:] = -1
    split = np.array(["train"] * 150 + ["test"] * 30, object)
    path = write_cache(folder / "partly.h5", x, [class_target(codes, names=NAMES)], split=split)
    found = suggest(path, n=100)
    assert found.candidates == 30
    assert found.labelled == 120
    assert {each["image"] for each in found.suggestions} <= {f"그림/{i:03d}.png" for i in range(120, 150)}
    assert {"test-not-suggested", "fewer-suggestions"} <= {note.code for note in found.notes}


def test_the_proposed_command_learns_from_the_list_whatever_the_names(folder, monkeypatch):
    monkeypatch.chdir(folder)
    x, codes = clusters(N, 2)
    codes[150:] = -1
    names = ("0.5", "1.25", "2.75")
    write_cache(folder / "{} 표.h5", x, [class_target(codes, "the {kind}", names=names)])
    words = ["suggest", "./{} 표.h5", "--n", "5", "-o", "to_{label}.csv"]
    shown = CliRunner().invoke(group, words)
    assert shown.exit_code == 0, shown.output
    (line,) = re.findall("^Next: bottleneck (.*)", shown.stdout, re.MULTILINE)
    learnt = CliRunner().invoke(group, [*shlex.split(line), "--C", "1", "--cv", "2", "--json"])
    assert learnt.exit_code == 0, learnt.output
    (head,) = json.loads(learnt.stdout)["heads"]
    assert (head["target_kind"], head["n"]) == ("class", 150)


def test_images_that_the_cache_has_are_left_out(labelled, folder):
    x, codes = clusters(N + 20, 0)
    both = write_cache(folder / "both.h5", x, [class_target(codes, names=NAMES)])
    found = suggest(labelled, both, n=5)
    assert found.candidates == 20
    assert {"copies-left-out", "labels-not-used"} <= {note.code for note in found.notes}


def test_few_labels_give_a_list_and_no_backtest(folder, new):
    x, codes = clusters(21, 3)
    found = suggest(write_cache(folder / "few.h5", x, [class_target(codes, names=NAMES)]), new, n=5)
    assert not found.backtest["done"]
    assert "21 labelled samples" in found.backtest["verdict"]
    assert found.backtest["gain"] is None
    assert len(found.suggestions) == 5


def refused_caches(folder):
    x, codes = clusters(60, 4)
    numbers = Target("age", "regression", x[:, 0].astype(float))
    bits = Target("tags", "multilabel", np.eye(3, dtype=np.uint8)[codes], NAMES)
    label = class_target(codes, names=NAMES)
    yield [], FitError, "no labels"
    yield [class_target(codes * 0, names=("one",))], FitError, "one class"
    yield [numbers], FitError, "regression"
    yield [bits], FitError, "multilabel"
    yield [label, class_target(codes, "other")], FitError, "--target"
    yield [label], FitError, "outside test have a label"


@pytest.mark.parametrize("number", range(6))
def test_what_cannot_be_learnt_is_refused_in_one_sentence(number, folder):
    targets, kind, said = list(refused_caches(folder))[number]
    path = write_cache(folder / f"bad{number}.h5", clusters(60, 4)[0], targets)
    with pytest.raises(kind) as error:
        suggest(path)
    assert said in str(error.value)


def test_other_features_the_cache_itself_and_a_wrong_number_are_refused(labelled, folder):
    other = write_cache(folder / "half.h5", clusters(30, 5)[0], [], dtype="float16", folder="h")
    with pytest.raises(FingerprintError, match="another dtype of node 'bottleneck'"):
        suggest(labelled, other)
    with pytest.raises(CacheError, match="itself"):
        suggest(labelled, labelled)
    with pytest.raises(BottleneckError, match="n is 0"):
        suggest(labelled, n=0)


def test_the_command_says_the_verdict_and_prints_one_object(labelled, new, result):
    shown = CliRunner().invoke(group, ["suggest", str(labelled), str(new), "--n", "12"])
    assert shown.exit_code == 0, shown.output
    assert result.backtest["verdict"].split(":")[0] in shown.stdout
    assert "새/" in shown.stdout
    framed = [line for line in shown.stdout.splitlines() if line and line[0] in "┏┃┡│└"]
    assert max(map(cell_len, framed)) <= 80
    printed = json.loads(
        CliRunner().invoke(group, ["suggest", str(labelled), str(new), "--n", "12", "--json"]).stdout
    )
    assert printed["suggestions"] == result.suggestions
    assert printed["backtest"]["gain"] == pytest.approx(result.backtest["gain"])
    with FeatureCache(labelled) as cache:
        assert printed["labelled"] == len(cache.samples)
