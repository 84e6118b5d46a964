"""Advice: scenarios, the rules as published, rules held against evidence, the curve over images per class."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from bottleneck.report.studies import advice_page
from bottleneck.studies.advise.recommendation import (
    EARLY,
    FINETUNE,
    HEAD,
    LARGE,
    RULES,
    SCENARIOS,
    SCRATCH,
    SOURCES,
    Attempt,
    Rule,
    best_attempt,
    judge,
    scenario,
)
from bottleneck.studies.shot_curve import PENALTIES, ShotCurve, ShotPoint, outlook, shot_curve
from bottleneck.trials.evidence import Evidence
from tests.helpers.advice import advice, attempt


@pytest.mark.parametrize(
    ("per_class", "similar", "expected"),
    [
        (20, True, "small-similar"),
        (LARGE - 1, False, "small-different"),
        (LARGE, True, "large-similar"),
        (5000, False, "large-different"),
    ],
)
def test_the_scenario_is_size_and_nearness(per_class, similar, expected):
    assert scenario(per_class, similar) == expected


def test_each_text_has_a_rule_for_each_scenario_and_they_differ():
    assert RULES.keys() == SOURCES.keys()
    assert len(RULES) == 2
    for rules in RULES.values():
        assert set(rules) == set(SCENARIOS)
    strategies = {name: {rules[name].strategy for rules in RULES.values()} for name in SCENARIOS}
    assert strategies["small-similar"] == {HEAD}  # where all agree
    assert strategies["small-different"] == {EARLY}
    assert strategies["large-similar"] == {FINETUNE}
    assert strategies["large-different"] == {FINETUNE, SCRATCH}


def test_a_costlier_strategy_is_recommended_only_beyond_the_noise_of_paired_samples():
    """At 0.953 against 0.950 about 182 of 2000 samples differ: 6 more right, and a noise of 13.5."""
    tried = [attempt(HEAD, 0.950), attempt(EARLY, 0.90), attempt(FINETUNE, 0.953)]
    assert best_attempt(tried).strategy == HEAD
    assert best_attempt([*tried, attempt(FINETUNE, 0.99)]).accuracy["val"] == 0.99


def test_cross_validation_counts_as_much_as_val():
    """Val alone, 100 samples, prefers the top; 900 samples of cross-validation know better."""
    right = {HEAD: (400, 60), EARLY: (500, 57)}
    tried = []
    for strategy, (cv, val) in right.items():
        score = np.concatenate([np.arange(900) < cv, np.arange(100) < val]).astype(float)
        evidence = Evidence(np.arange(1000).astype(str).astype(object), score, np.zeros(1000))
        tried.append(Attempt(strategy, strategy, {"val": val / 100}, {"val": (0, 1)}, 1.0, "…", evidence))
    assert best_attempt(tried).strategy == EARLY


def test_a_rule_is_contradicted_only_beyond_chance():
    tried = [attempt(HEAD, 0.93), attempt(EARLY, 0.97)]
    assert judge(Rule("on top", HEAD), tried, val=2000).contradicted is True
    few = judge(Rule("on top", HEAD), tried, val=50)
    assert few.contradicted is False
    assert few.lost == pytest.approx(0.04)
    assert "not beyond chance" in few.text
    assert judge(Rule("earlier", EARLY), tried, val=2000).contradicted is False


def test_a_rule_that_was_not_tried_is_neither():
    found = judge(Rule("from nothing", SCRATCH), [attempt(HEAD, 0.9)], val=100)
    assert found.contradicted is None
    assert found.text == "not tried here"


def gaussians(n, D=20, classes=4, seed=0, apart=0.35):
    """Classes that overlap, so that more images help."""
    centres = np.random.default_rng(7).normal(size=(classes, D)) * apart
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % classes
    return (centres[codes] + rng.normal(size=(n, D))).astype(np.float32), codes


def test_the_curve_rises_and_foretells_what_more_images_bring():
    held = gaussians(2000, seed=1)
    curve = shot_curve(*gaussians(400), *held)
    assert [point.shots for point in curve.points] == [1, 2, 5, 10, 20, 50, 100]
    means = [point.mean for point in curve.points]
    assert means[-1] > means[0] + 0.15
    twice = shot_curve(*gaussians(800), *held).points[-1].mean
    assert means[-1] + curve.doubling == pytest.approx(twice, abs=0.04)


def test_the_same_seed_draws_the_same_curve():
    data = (*gaussians(80), *gaussians(200, seed=1))
    assert shot_curve(*data, seed=3) == shot_curve(*data, seed=3)
    assert shot_curve(*data, seed=3) != shot_curve(*data, seed=4)


def test_too_few_images_for_a_law_say_so():
    curve = shot_curve(*gaussians(8), *gaussians(40, seed=1))
    assert [point.shots for point in curve.points] == [1, 2]
    assert curve.doubling is None
    assert "too few" in curve.text


def test_a_curve_that_ends_without_an_error_promises_nothing_above_it():
    curve = shot_curve(*gaussians(80, apart=3), *gaussians(40, seed=1, apart=3))
    assert curve.points[-1].mean == 1
    assert curve.doubling == 0
    assert curve.text.startswith("no error at 20 images per class")


@pytest.mark.parametrize("similarity", [True, False])
def test_advice_tells_scenario_rules_evidence_and_what_to_run(tmp_path, similarity):
    found = advice(similarity, tmp_path)
    values = found.to_json()
    assert set(values) >= {"scenario", "size", "similarity", "recommendation", "rules", "evidence"}
    assert values["recommendation"]["strategy"] == HEAD
    assert values["rules"]["CS231n notes"]["contradicted"] is True
    assert values["rules"]["Udacity, four main cases"]["contradicted"] is True
    assert values["rules"]["CS231n notes"]["source"] == "https://cs231n.github.io/transfer-learning/"
    text = "\n".join(found.text)
    assert "contradicts it: 0.930 on val, 4.0 points less" in text
    assert ("random weights" in text) is not similarity
    with Image.open(advice_page(found, Path(tmp_path) / "page.png")) as page:
        assert min(page.size) > 1000


def test_advice_says_when_nothing_beats_guessing(tmp_path):
    assert "commonest class" not in advice(True, tmp_path).text[-1]
    assert "commonest class (0.960)" in advice(True, tmp_path, guess=0.96).text[-1]


def test_the_curve_fits_as_scikit_learn_does():
    x, codes = gaussians(60)
    held_x, held = gaussians(80, seed=1)
    for wide in (np.eye(x.shape[1]), np.random.default_rng(0).normal(size=(x.shape[1], 200))):
        a, b = x @ wide, held_x @ wide
        scaler = StandardScaler().fit(a)
        model = RidgeClassifierCV(PENALTIES).fit(scaler.transform(a), codes)
        expected = (model.predict(scaler.transform(b)) == held).mean()
        assert shot_curve(a, codes, b, held).points[-1].mean == pytest.approx(expected, abs=0.02)


def test_the_outlook_finds_the_power_law_and_what_it_missed():
    def point(labels, error):
        right = np.tile(np.arange(1000) >= round(1000 * error), (3, 1))
        return ShotPoint(labels, 1 - error, (1 - error,) * 3, labels, right)

    law = [point(labels, 0.8 * labels**-0.5) for labels in (16, 64, 100, 400)]
    ahead = outlook(ShotCurve(tuple(law), None, None), 400)
    assert [each["labels"] for each in ahead.expected] == [800, 2000]
    assert ahead.expected[0]["accuracy"] == pytest.approx(1 - 0.8 * 800**-0.5, abs=2e-3)
    assert ahead.miss == pytest.approx(0, abs=2e-3)
    level = outlook(ShotCurve((*law[:3], point(400, 0.08)), None, None), 400)
    assert level.miss == pytest.approx(-0.04, abs=2e-3)
    widths = [each["interval"][1] - each["interval"][0] for each in (ahead.expected[1], level.expected[1])]
    assert widths[1] > 1.5 * widths[0]
    assert outlook(ShotCurve(tuple(law[:3]), None, None), 100) is None
