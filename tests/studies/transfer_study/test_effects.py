"""Effects: found where they are, not found in noise, and drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bottleneck.report.studies import transfer_figure
from bottleneck.studies.study_config import StudyConfig
from bottleneck.studies.transfer_study.effects import Curves, Estimate, find_effects
from bottleneck.studies.transfer_study.protocol import PUBLISHED, PUBLISHED_BASE
from bottleneck.studies.transfer_study.study import TransferStudy
from tests.helpers.study_runs import results


def by_key(runs):
    return {effect.key: effect for effect in find_effects(Curves(runs))}


def test_the_published_effects_are_found_in_the_published_curves():
    effects = by_key(results(4, 0.2))
    for key in ("co-adaptation", "recovery", "fine-tuned selffer", "specificity", "gain", "size of A"):
        assert effects[key].shown == 1, effects[key].verdict
    assert effects["co-adaptation"].where == (4, 5)
    assert 7 in effects["specificity"].where
    assert effects["gain"].estimate.mean == pytest.approx(0.017, abs=0.003)


def test_levels_of_seeds_are_no_noise_because_runs_are_paired():
    """Seeds differ by 1.5 points, the gain is 1.7: only pairs can show it."""
    effect = by_key(results(4, 0.05))["gain"]
    assert effect.estimate.mean - effect.estimate.margin > 0.012


def test_flat_curves_show_nothing():
    flat = dict.fromkeys(PUBLISHED, (PUBLISHED_BASE,) * 7)
    effects = by_key(results(3, 0.5, flat))
    for key in ("co-adaptation", "recovery", "gain", "specificity"):
        assert effects[key].shown == 0, effects[key].verdict
        assert "beyond the noise" in effects[key].verdict


def test_the_opposite_of_an_effect_is_said():
    worse = PUBLISHED | {"AnB+": (60.0,) * 7}
    effect = by_key(results(4, 0.2, worse))["gain"]
    assert effect.shown == -1
    assert "opposite" in effect.verdict


def test_one_seed_gives_means_but_claims_nothing():
    effects = by_key(results(1, 0.0))
    assert all(effect.shown == 0 and effect.estimate.margin is None for effect in effects.values())
    assert effects["gain"].estimate.mean > 0


def test_an_unfinished_study_says_what_it_has():
    runs = [run for run in results(2, 0.1) if run.kind != "random" and run.share == 1]
    keys = by_key(runs)
    assert "learnt filters" not in keys
    assert "size of A" not in keys
    assert "gain" in keys


def test_an_estimate_is_students_interval():
    estimate = Estimate.of({seed: np.full(10, seed + 1.0) for seed in range(3)})
    assert estimate.mean == 2.0
    assert estimate.margin == pytest.approx(4.302653 / np.sqrt(3), abs=1e-5)
    assert estimate.sign == 0
    assert Estimate.of({seed: np.full(10, value) for seed, value in enumerate((1.0, 1.1, 0.9))}).sign == 1


def test_seeds_that_agree_by_chance_on_few_images_prove_nothing():
    """Each seed: one image of ten better, none worse. The seeds' own spread would be 0."""
    better = np.zeros(10)
    better[0] = 1.0
    assert Estimate.of(dict.fromkeys(range(3), better)).sign == 0
    assert Estimate.of(dict.fromkeys(range(3), np.tile(better, 100))).sign == 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_figure_is_drawn(tmp_path, seeds):
    runs = results(seeds, 0.2)
    study = TransferStudy(
        StudyConfig(seeds=seeds),
        tuple("abcdefgh"),
        ("x",) * 8,
        runs,
        Path(),
        trained=0,
        failed=0,
        seconds=1.0,
    )
    with Image.open(transfer_figure(study, tmp_path / "figure.png")) as picture:
        assert min(picture.size) > 800
