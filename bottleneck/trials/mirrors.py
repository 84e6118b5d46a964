"""The mean over an image and its mirror image as a candidate: the same heads, judged on the mean of both.

The mirrored views are in the cache. Every held-out sample is judged by a head that was fitted without it, at
the C, the scales and the temperature that the trial of the plain head found.

Shapes: n samples, K classes or labels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.metrics import TINY
from bottleneck.models.classifier import mean_scores
from bottleneck.models.scoring import cached_inputs
from bottleneck.progress import SILENT, Reporter
from bottleneck.store.spec import fingerprint
from bottleneck.trials.heads import Tried, head_as_tried, head_fingerprint, judged, store_trial, stored_trial
from bottleneck.trials.task import Records, Task


def try_mirrored(
    task: Task, node: str, plain: Tried, records: Records, name: str, reporter: Reporter = SILENT
) -> Tried:
    """Judge the head of the trial `plain` on the mean of image and mirror image; `name` is of the record.

    The cache has mirrored views of `node` (`models.scoring.has_mirrors`).
    """
    inputs = fingerprint({"mirrored": 1, "head": head_fingerprint(task, node), **plain.settings})
    if stored := stored_trial(task, records, name, inputs):
        return stored
    started = time.perf_counter()
    parts = [("cv", *part) for part in mirrored_folds(task, node, plain.settings, reporter)]
    if "val" in task.rows:
        head = head_as_tried(task, node, plain.settings, task.rows["train"], reporter)
        parts.append(("val", task.rows["val"], mirrored_outputs(task, head, task.rows["val"])))
    index, evidence, metrics, conformal = judged(task, parts, task.problem().link, 1.0)
    settings = {**plain.settings, "flip": True}
    tried = Tried(evidence, metrics, time.perf_counter() - started, settings, conformal)
    store_trial(records, name, inputs, tried, index)
    return tried


def mirrored_folds(
    task: Task, node: str, settings: Mapping[str, Any], reporter: Reporter
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the samples (m,) of each fold and their `mirrored_outputs` (m, K) by a head without them.

    settings : of these heads, as `head_as_tried` takes them.
    """
    train = task.rows["train"]
    for fold in range(int(task.fold.max()) + 1):
        held = task.fold == fold
        if held.any():
            head = head_as_tried(task, node, settings, train[~held], reporter)
            yield train[held], mirrored_outputs(task, head, train[held])


def mirrored_outputs(task: Task, head: HeadArtifact, rows: np.ndarray) -> np.ndarray:
    """Return outputs (n, K) whose probabilities at temperature 1 are means over image and mirror image."""
    blocks = cached_inputs(task.cache, head.node, rows, flip=True)
    scores = np.concatenate([mean_scores(head, block) for block in blocks])
    if head.link == "identity":
        return scores[:, None]
    logs = np.log(np.maximum(scores, TINY))
    return logs if head.link == "softmax" else logs - np.log(np.maximum(1 - scores, TINY))
