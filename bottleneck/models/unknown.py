"""How well a head tells samples of unknown classes from those of known ones, for `evaluate --unknown`.

Shapes: n samples of known classes, u of unknown ones, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bottleneck.data.source import Source
from bottleneck.errors import BottleneckError, Note, listed
from bottleneck.heads.metrics import wilson_interval
from bottleneck.heads.trained_on import TrainedOn
from bottleneck.models.classifier import Classifier, Outputs
from bottleneck.models.scoring import score
from bottleneck.models.trust import Trust
from bottleneck.progress import Reporter
from bottleneck.store.reader import FeatureCache

TPR = 0.95  # of the unknown samples, at which the share of rejected known ones is measured
DRAWS, SEED = 200, 0  # of the bootstrap
CHANCE = 0.5  # AUROC of a score that tells nothing


def measure_unknown(
    classifier: Classifier,
    opened: FeatureCache | Source,
    known: Outputs,
    flip: bool,
    trust: Trust,
    reporter: Reporter,
) -> tuple[dict[str, Any], dict[str, str], list[Note]]:
    """Return figures of the samples of `opened` beside the `known` ones, failed images by key, and notes.

    The figures are those of `separation`, `unknown_rejected` (share) with `unknown_rejected_ci95`, and
    `unknown_n`. Labels are read to warn of known classes alone.
    """
    head, notes, rows = classifier.head, list[Note](), np.arange(len(opened.samples.image))
    if isinstance(opened, FeatureCache):
        opened.require_rows()
        opened.samples.require_finished(str(opened.path))
    else:
        notes += opened.notes
    if not len(rows):
        raise BottleneckError(
            "What is given as unknown has no samples.", "Give images, or the main file of a cache."
        )
    scored = score(classifier, opened, rows, flip, reporter, trust)
    if known.novelty is None or scored.novelty is None or not len(scored.rows):
        raise BottleneckError("None of the images given as unknown could be read.")
    measured = len({bytes(each) for each in known.digests} & {bytes(each) for each in scored.digests})
    fitted = 0
    if head.trained_on:
        fitted, _, _ = TrainedOn.from_json(head.trained_on).shared_with(scored.digests)
    if fitted or measured:
        text = (
            f"Of the images given as unknown, the head was fitted on {fitted:,}, and {measured:,} are among "
            "the measured ones. Take them out: they are known."
        )
        details = {"fitted_on": fitted, "measured": measured}
        notes.append(Note("unknown-images-known", text, True, details))
    if classes := sorted(set(head.class_names) & _classes_in(opened, head.target)):
        text = f"Images given as unknown are of classes that the head knows: {listed(classes)}."
        notes.append(Note("unknown-images-of-known-classes", text, True, {"classes": classes}))
    out = trust.rejected(scored.novelty)
    figures = {
        **separation(known.novelty, scored.novelty, known.scores, scored.scores),
        "unknown_rejected": float(out.mean()),
        "unknown_rejected_ci95": list(wilson_interval(int(out.sum()), len(out))),
        "unknown_n": len(out),
    }
    if figures["auroc_ci95"][1] < CHANCE:
        text = (
            f"The unknown images are nearer to those of training than the known ones are (AUROC "
            f"{figures['auroc']:.3f}): novelty does not tell them."
        )
        notes.append(Note("unknown-nearer-than-known", text))
    return figures, scored.failed, notes


def _classes_in(opened: FeatureCache | Source, name: str) -> set[str]:
    """Return the classes that samples of target `name` have; none where there is no such target."""
    target = opened.samples.targets.get(name)
    if target is None or target.kind != "class":
        return set()
    return {target.class_names[code] for code in np.unique(target.values[target.labelled])}


def separation(
    known: np.ndarray, unknown: np.ndarray, known_scores: np.ndarray, unknown_scores: np.ndarray
) -> dict[str, Any]:
    """Return how well novelty tells u unknown samples from n known ones, with 95 % intervals (bootstrap).

    Unknown is the positive answer, as in OpenOOD 1.5 (Zhang et al. 2023): `fpr_at_95_tpr` is the share of
    known samples that is rejected where 95 % of the unknown ones are.

    Parameters
    ----------
    known, unknown : (n,) and (u,) novelty.
    known_scores, unknown_scores : probabilities (n, K) and (u, K) of classes, or others.
    """
    found: dict[str, Any] = {"auroc": _auroc(known, unknown), "fpr_at_95_tpr": _fpr(known, unknown)}
    random = np.random.default_rng(SEED)
    draws = [(random.choice(known, len(known)), random.choice(unknown, len(unknown))) for _ in range(DRAWS)]
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"auroc": _auroc, "fpr_at_95_tpr": _fpr}
    for name, measure in measures.items():
        found[f"{name}_ci95"] = np.quantile([measure(*draw) for draw in draws], (0.025, 0.975)).tolist()
    # Draws of known samples of which none is rejected have no spread: Wilson's interval has.
    low, high = wilson_interval(found["fpr_at_95_tpr"] * len(known), len(known))
    drawn = found["fpr_at_95_tpr_ci95"]
    found["fpr_at_95_tpr_ci95"] = [min(low, drawn[0]), max(high, drawn[1])]
    if known_scores.ndim == 2:
        found["auroc_of_largest_probability"] = _auroc(-known_scores.max(axis=1), -unknown_scores.max(axis=1))
    return found


def _answers(known: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat([0, 1], [len(known), len(unknown)]), np.concatenate([known, unknown])


def _auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_answers(known, unknown)))


def _fpr(known: np.ndarray, unknown: np.ndarray) -> float:
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(*_answers(known, unknown), drop_intermediate=False)
    return float(fpr[np.argmax(tpr >= TPR)])
