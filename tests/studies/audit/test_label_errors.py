"""Confident learning beside cleanlab, and by counting."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from bottleneck.studies.audit import label_errors, label_noise
from bottleneck.studies.audit.label_errors import confident_joint, label_quality, multilabel_quality
from tests.helpers.noisy_labels import drawn


def test_the_confident_joint_is_counted_by_hand():
    """Thresholds 0.75 and 0.65; the third sample is confidently of class 1, the fourth of neither."""
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])
    labels = np.array([0, 0, 0, 1, 1])
    thresholds = [np.mean([0.9, 0.9, 0.3]), np.mean([0.4, 0.9])]
    assert thresholds == pytest.approx([0.7, 0.65])
    joint = confident_joint(labels, p)
    np.testing.assert_allclose(joint, [[2, 1], [0, 2]])  # the row of class 1 is scaled from 1 sample to 2


def test_rows_of_the_joint_add_to_the_labels():
    labels, p, _ = drawn()
    np.testing.assert_allclose(confident_joint(labels, p).sum(axis=1), np.bincount(labels))


@pytest.mark.parametrize("flipped", [0.05, 0.1, 0.3])
def test_flipped_labels_are_found(flipped):
    labels, p, wrong = drawn(flipped=flipped)
    quality = label_quality(labels, p)
    assert quality.flag[wrong].mean() >= 0.8
    assert wrong[quality.flag].mean() >= 0.7
    truth = p.argmax(axis=1)
    np.testing.assert_array_equal(quality.suggested, truth)


def test_little_is_flagged_where_all_labels_are_right():
    labels, p, _ = drawn(flipped=0)
    assert label_quality(labels, p).flag.mean() <= 0.01


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_ranking_and_issues_are_cleanlab_s(spread):
    cleanlab = pytest.importorskip("cleanlab")
    labels, p, _ = drawn(spread=spread, seed=3)
    quality = label_quality(labels, p)
    scores = cleanlab.rank.get_label_quality_scores(labels, p)
    assert spearmanr(scores, quality.score)[0] >= 0.98
    theirs = cleanlab.filter.find_label_issues(labels, p, filter_by="low_self_confidence", n_jobs=1)
    assert theirs.any()
    assert quality.flag[theirs].all()
    joint = cleanlab.count.compute_confident_joint(labels, p, calibrate=True)  # whole numbers
    assert abs(quality.flag.sum() - (joint.sum() - np.trace(joint))) <= 1


def test_a_class_without_samples_and_one_class_that_nobody_predicts():
    labels, p, _ = drawn(classes=3)
    wide = np.concatenate([p * 0.99, np.full((len(p), 1), 0.01)], axis=1)
    a, b = label_quality(labels, p), label_quality(labels, wide)
    np.testing.assert_array_equal(a.flag, b.flag)
    labels[:5] = 2
    assert np.isfinite(confident_joint(np.where(labels == 2, 0, labels), p)).all()


def test_every_label_of_a_multilabel_target_is_judged_by_itself():
    draw = np.random.default_rng(0)
    truth = draw.random((400, 3)) < 0.4
    p = np.clip(np.where(truth, 0.9, 0.1) + draw.normal(size=truth.shape) * 0.03, 0.01, 0.99)
    given = truth.copy()
    given[:20, 1] ^= True
    quality = multilabel_quality(given.astype(np.uint8), p)
    assert np.flatnonzero(quality.flag[:, 1]).tolist() == list(range(20))
    assert not quality.flag[:, [0, 2]].any()
    np.testing.assert_array_equal(quality.suggested[:20, 1], truth[:20, 1])


def test_a_hesitant_head_s_hard_samples_are_not_wrong_labels():
    """Labels drawn from the probabilities themselves: none is wrong, a fifth are not the likeliest class."""
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.full(3, 0.4), size=600)
    labels = (p.cumsum(axis=1) > draw.random((600, 1))).argmax(axis=1)
    assert (p.argmax(axis=1) != labels).mean() > 0.15
    assert label_quality(labels, p).flag.sum() > 6
    assert label_quality(labels, p, doubt=0.2).flag.mean() <= 0.01


def test_the_probability_of_being_wrong_and_the_share_are_calibrated():
    labels, p, wrong = drawn(n=2000, flipped=0.1, spread=2.0)
    quality = label_quality(labels, p, doubt=0.2)
    assert quality.share == pytest.approx(wrong.mean(), abs=0.02)
    assert quality.wrong[quality.flag].mean() == pytest.approx(wrong[quality.flag].mean(), abs=0.06)
    assert quality.wrong.sum() == pytest.approx(wrong.sum(), rel=0.2)


def test_the_flagged_labels_are_wrong_with_the_precision_on_average():
    labels, p, wrong = drawn(n=2000, flipped=0.1, spread=3.0)
    loose, strict = (label_quality(labels, p, 0.2, precision) for precision in (0.0, 0.9))
    assert loose.wrong[loose.flag].mean() < 0.9 <= strict.wrong[strict.flag].mean()
    assert 0 < strict.flag.sum() < loose.flag.sum()
    assert not (strict.flag & ~loose.flag).any()
    assert strict.wrong[strict.flag].min() >= strict.wrong[loose.flag & ~strict.flag].max()
    assert wrong[strict.flag].mean() > wrong[loose.flag].mean()


def test_many_samples_are_judged_in_parts(monkeypatch):
    labels, p, _ = drawn(n=600)
    whole = label_quality(labels, p)
    monkeypatch.setattr(label_errors, "BLOCK", 250)
    np.testing.assert_array_equal(label_quality(labels, p).flag, whole.flag)
    monkeypatch.setattr(label_noise, "MOST", 4 * 400)  # the share is estimated from 400
    parts = label_quality(labels, p)
    np.testing.assert_allclose(parts.wrong, whole.wrong, atol=0.1)
    assert parts.wrong[400:].max() > 0.9
