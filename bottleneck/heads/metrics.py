"""Metrics of predictions with their uncertainty, and the temperature that calibrates probabilities.

The metrics are those of scikit-learn, which takes a second of a core to import; tests compare them.

Shapes: n samples, K classes, or K labels of a multi-label target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from bottleneck.errors import BottleneckError, Note, counted
from bottleneck.heads.artifact import apply_link
from bottleneck.heads.row_blocks import block_size

ECE_BINS = 15  # as in Guo et al. 2017
TINY = np.finfo(np.float64).tiny
BLOCK_BYTES = 1 << 20  # of logits; computing their probabilities takes ten times as much
SCORES = ("precision", "recall", "f1")  # of a class
NO_PART = 1e-4  # share of the variance of train that a head explains whose features play no part
LOG_RANGE = np.log(1e3)  # temperatures are searched between 1/1000 and 1000 times the logits' mean size
LOG_PRECISION = 1e-4  # of a temperature, relative
GOLDEN = (5**0.5 - 1) / 2


def wilson_interval(correct: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a share (Wilson 1927), also for few samples or shares near 0 or 1.

    correct : hits among `n` samples. Without samples the interval is (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # By rounding, the share itself may be slightly outside.
    return max(0.0, float(min(centre - half, share))), min(1.0, float(max(centre + half, share)))


def expected_calibration_error(correct: np.ndarray, confidence: np.ndarray, bins: int = ECE_BINS) -> float:
    """Return the mean distance of confidence from accuracy over equal bins of confidence (Guo et al. 2017).

    correct : (n,) bool, confidence : (n,) in 0 … 1.
    """
    if len(correct) == 0:
        return 0.0
    where = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
    gap = np.asarray(correct, float) - confidence
    return float(np.abs(np.bincount(where, weights=gap, minlength=bins)).sum() / len(gap))


def log_loss(codes: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean −log p of the true class, in nats. codes : (n,) int, probabilities : (n, K)."""
    true = probabilities[np.arange(len(codes)), codes].astype(np.float64)
    return float(-np.log(np.maximum(true, TINY)).mean())


def classification_metrics(
    codes: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the metrics of a class target.

    Parameters
    ----------
    codes : (n,) int, the true classes, 0 … K−1; n ≥ 1.
    probabilities : (n, K)
    class_names : K names

    Returns
    -------
    dict
        accuracy, accuracy_ci95, balanced_accuracy and macro_f1 (over classes that occur), top5, log_loss,
        ece, roc_auc (one against the rest, mean over classes that can be ranked; None where none can),
        per_class (`_by_class`), predicted (K counts), confusion (true × predicted), classes, n.
    """
    codes = _checked(codes, probabilities)
    K = len(class_names)
    predicted = probabilities.argmax(axis=1)
    hits = predicted == codes
    confusion = np.bincount(codes * K + predicted, minlength=K * K).reshape(K, K)
    support = confusion.sum(axis=1)
    precision, recall, f1 = _scores(np.diag(confusion), confusion.sum(axis=0), support)
    occurs = support > 0
    better = (probabilities > probabilities[np.arange(len(codes)), codes][:, None]).sum(axis=1)
    return {
        "accuracy": float(hits.mean()),
        "accuracy_ci95": wilson_interval(hits.sum(), len(hits)),
        "balanced_accuracy": float(recall[occurs].mean()),
        "top5": float((better < 5).mean()),
        "log_loss": log_loss(codes, probabilities),
        "macro_f1": float(f1[occurs].mean()),
        "roc_auc": _mean_auc(codes[:, None] == np.arange(K), probabilities),
        "ece": expected_calibration_error(hits, probabilities.max(axis=1)),
        "per_class": _by_class(class_names, precision, recall, f1, support),
        "predicted": confusion.sum(axis=0).tolist(),
        "confusion": confusion.tolist(),
        "classes": list(class_names),
        "n": len(codes),
    }


def multilabel_metrics(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the metrics of a multi-label target; a label is predicted if its probability exceeds one half.

    Parameters
    ----------
    labels : (n, K) of 0 and 1; n ≥ 1.
    probabilities : (n, K)
    class_names : K names

    Returns
    -------
    dict
        accuracy (share of all n × K answers that are right) with accuracy_ci95 (as of n answers, since
        those of one sample are dependent), exact_match, macro_f1, roc_auc, mean_average_precision, log_loss,
        per_class (`_by_class`), predicted (K counts), classes, n.
    """
    labels = np.asarray(labels).astype(bool)
    if len(labels) == 0:
        raise BottleneckError("No labelled sample is left to measure on.")
    predicted = probabilities > 0.5
    right = labels == predicted
    support = labels.sum(axis=0)
    precision, recall, f1 = _scores((labels & predicted).sum(axis=0), predicted.sum(axis=0), support)
    rankable = labels.any(axis=0)
    precisions = [_average_precision(labels[:, k], probabilities[:, k]) for k in np.flatnonzero(rankable)]
    true = np.where(labels, probabilities, 1 - probabilities).astype(np.float64)
    return {
        "accuracy": float(right.mean()),
        "accuracy_ci95": wilson_interval(right.mean() * len(right), len(right)),
        "exact_match": float(right.all(axis=1).mean()),
        "macro_f1": float(f1[rankable].mean()) if rankable.any() else None,
        "roc_auc": _mean_auc(labels, probabilities),
        "mean_average_precision": float(np.mean(precisions)) if precisions else None,
        "log_loss": float(-np.log(np.maximum(true, TINY)).mean()),
        "per_class": _by_class(class_names, precision, recall, f1, support),
        "predicted": predicted.sum(axis=0).tolist(),
        "classes": list(class_names),
        "n": len(labels),
    }


def _scores(hits: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> list[np.ndarray]:
    """Return precision, recall, F1 (K,) for counts (K,) of hits, predictions and samples; 0 where 0 / 0."""
    shares = ((hits, predicted), (hits, support), (2 * hits, predicted + support))
    return [np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0) for part, whole in shares]


def _average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return Σ (R_i − R_{i−1}) P_i over the thresholds i, which are the distinct scores from the highest on.

    truth : (n,) bool, one or more are True. scores : (n,).
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of each threshold
    found = np.cumsum(truth[order])[last]
    return float((np.diff(found, prepend=0) / found[-1] * (found / (last + 1))).sum())


def _by_class(class_names: Sequence[str], *columns: np.ndarray) -> list[dict[str, Any]]:
    """Return [{name precision recall f1 n}], the scores None for a class without samples.

    columns : precision, recall, f1 and n, (K,) each.
    """
    rows = []
    for name, *scores, n in zip(class_names, *columns, strict=True):
        shown = [float(score) if n else None for score in scores]
        rows.append({"name": name, **dict(zip(SCORES, shown, strict=True)), "n": int(n)})
    return rows


def one_answer_notes(
    which: str, split: str, metrics: Mapping[str, Any], why: str = "", **details: Any
) -> list[Note]:
    """Return a note if a head predicts one answer for all samples of `split`, which have several.

    which : the head, the beginning of the sentence. why : possible reasons, a sentence. metrics : as of
    `measure`. details : of the note. Of numbers, the train split alone tells: there, a head that uses its
    features beats the mean.
    """
    n = metrics["n"]
    details |= {"split": split, "n": n}
    if "per_class" not in metrics:
        r2 = metrics["r2"]
        if split != "train" or r2 is None or r2 > NO_PART:
            return []
        text = f"{which} predicts nearly the mean for all {counted(n, 'sample')} of {split}. {why}".strip()
        return [Note("one-answer", text, details=details)]
    rows = metrics["per_class"]
    varies = any(0 < row["n"] < n for row in rows)
    if not varies or any(0 < count < n for count in metrics["predicted"]):
        return []
    answer = [row["name"] for row, count in zip(rows, metrics["predicted"], strict=True) if count]
    shown, has = ", ".join(map(repr, answer)) or "no label", sum(row["n"] > 0 for row in rows)
    what = counted(has, "label") if "exact_match" in metrics else counted(has, "class", "classes")
    text = f"{which} predicts {shown} for all {counted(n, 'sample')} of {split}, with {what}. {why}".strip()
    return [Note("one-answer", text, details=details | {"answer": answer})]


def regression_metrics(values: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Return r2 (None if the values do not vary), mae, rmse and n. values, predicted : (n,) float; n ≥ 1."""
    values, predicted = np.asarray(values, float), np.asarray(predicted, float).reshape(len(values))
    if len(values) == 0:
        raise BottleneckError("No labelled sample is left to measure on.")
    varies = len(values) > 1 and np.ptp(values) > 0
    error = values - predicted
    return {
        "r2": float(1 - (error**2).sum() / ((values - values.mean()) ** 2).sum()) if varies else None,
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "n": len(values),
    }


def measure(
    kind: str, values: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the metrics of a target's kind ("class", "multilabel", "regression") on its n labelled samples.

    predicted : probabilities (n, K) or (n, K), or the predicted values (n,) of a regression.
    """
    if kind == "regression":
        return regression_metrics(values, predicted)
    report = multilabel_metrics if kind == "multilabel" else classification_metrics
    return report(values, predicted, class_names)


def _checked(codes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    codes = np.asarray(codes).astype(np.int64)
    if len(codes) == 0:
        raise BottleneckError("No labelled sample is left to measure on.")
    if codes.min() < 0 or codes.max() >= probabilities.shape[1]:
        raise BottleneckError(
            f"Classes {codes.min()} … {codes.max()} meet probabilities of "
            f"{counted(probabilities.shape[1], 'class', 'classes')}."
        )
    return codes


def _mean_auc(truth: np.ndarray, scores: np.ndarray) -> float | None:
    """Return the mean area under the curve of the columns that have both answers. truth, scores : (n, K)."""
    both = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    areas = [auc(truth[:, k], scores[:, k]) for k in both]
    return float(np.mean(areas)) if areas else None


def auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the curve (Mann and Whitney 1947).

    It is the share of (positive, negative) pairs in order; ties count half. The curve itself is not computed,
    which saves memory. truth, scores : (n,)
    """
    positives, negatives = scores[truth], np.sort(scores[~truth])
    below = np.searchsorted(negatives, positives, "left") + np.searchsorted(negatives, positives, "right")
    return float(below.mean() / (2 * len(negatives)))


def link_loss(
    values: np.ndarray, logits: np.ndarray, link: str, temperature: float = 1.0, smoothing: float = 0.0
) -> float:
    """Return the mean log loss in nats. logits : (n, K).

    values : (n,) codes, or (n, K) of 0 and 1 under "sigmoid". smoothing : share of each answer that is given
    to the other classes evenly, or to the opposite. The loss is computed block by block, since millions of
    probabilities in float64 need much memory.
    """
    size, total = block_size(logits.shape[1], BLOCK_BYTES), 0.0
    for start in range(0, len(values), size):
        answers, p = values[start : start + size], apply_link(logits[start : start + size], link, temperature)
        true = np.where(answers == 1, p, 1 - p) if link == "sigmoid" else p[np.arange(len(p)), answers]
        loss = (1 - smoothing) * np.log(np.maximum(true, TINY)).sum()
        if smoothing and link == "sigmoid":
            loss += smoothing * np.log(np.maximum(np.where(answers == 1, 1 - p, p), TINY)).sum()
        elif smoothing:
            others = np.log(np.maximum(p, TINY)).sum() - np.log(np.maximum(true, TINY)).sum()
            loss += smoothing * others / max(p.shape[1] - 1, 1)
        total -= loss / (true.size // len(true))
    return float(total / len(values))


def fit_temperature(values: np.ndarray, logits: np.ndarray, link: str) -> float:
    """Return a temperature that lowers the log loss of held-out logits (Guo et al. 2017); 1 for no samples.

    Where all n samples are right, the least loss is at a temperature near 0, and every later mistake would be
    made with certainty. Platt's smoothed targets (1999), of which 1 in n + 2 is another answer, have their
    least loss at a higher one. The result is the temperature nearest to 1 between the two: it is 1 where the
    samples do not tell on which side of 1 the temperature is.
    """
    if not len(values) or not logits.any():
        return 1.0
    exact = _best_temperature(values, logits, link, 0.0)
    smooth = _best_temperature(values, logits, link, 1 / (len(values) + 2))
    low, high = min(exact, smooth), max(exact, smooth)
    found = min(max(1.0, low), high)
    return found if link_loss(values, logits, link, found) < link_loss(values, logits, link) else 1.0


def least_loss(codes: np.ndarray, logits: np.ndarray) -> float:
    """Return the least loss of a softmax over all temperatures; it does not depend on the logits' scale."""
    temperature = _best_temperature(codes, logits, "softmax", 0.0) if logits.any() else 1.0
    return link_loss(codes, logits, "softmax", temperature)


def _best_temperature(values: np.ndarray, logits: np.ndarray, link: str, smoothing: float) -> float:
    """Return the temperature with the least `link_loss`.

    The loss is convex in 1/T (a log-sum-exp of linear functions of it), so that one search finds the minimum.
    The range of the search is relative to the logits' mean size, which is small at a small C.
    """
    middle = float(np.log(np.abs(logits).mean()))
    low, high = middle - LOG_RANGE, middle + LOG_RANGE

    def loss(log_temperature: float) -> float:
        return link_loss(values, logits, link, float(np.exp(log_temperature)), smoothing)

    # Golden-section search: of two points inside, the better one stays inside of the shorter range.
    inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
    losses = [loss(point) for point in inner]
    while high - low > LOG_PRECISION:
        if losses[0] < losses[1]:
            high = inner[1]
            inner = [high - GOLDEN * (high - low), inner[0]]
            losses = [loss(inner[0]), losses[0]]
        else:
            low = inner[0]
            inner = [inner[1], low + GOLDEN * (high - low)]
            losses = [losses[1], loss(inner[1])]
    return float(np.exp((low + high) / 2))
