"""Classes that cannot be told apart, and classes with few samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from bottleneck.heads.metrics import wilson_interval
from bottleneck.studies.audit.copies import Issue
from bottleneck.studies.audit.judged import Judged
from bottleneck.studies.study_config import AuditConfig
from bottleneck.trials.task import Task


def confusable_classes(judged: Judged, config: AuditConfig) -> Issue:
    """Return pairs of classes whose samples are often held for the other one, the worst first."""
    answers, p = judged.answers, judged.probabilities
    if answers.kind != "class":
        return {"flag": 0, "score": 0.0, "items": []}
    counts, items = np.bincount(answers.values, minlength=p.shape[1]), list[dict[str, Any]]()
    top = np.zeros((p.shape[1],) * 2, np.int64)
    np.add.at(top, (answers.values, p.argmax(axis=1)), 1)
    for a, b in zip(*np.nonzero(np.triu(top + top.T, 1)), strict=True):
        n, wrong = int(counts[a] + counts[b]), int(top[a, b] + top[b, a])
        low, high = wilson_interval(wrong, n)
        items.append(
            {
                "classes": [answers.class_names[a], answers.class_names[b]],
                "score": wrong / n,
                "interval": [low, high],
                "samples": n,
                "flag": low > config.confusion,
            }
        )
    items.sort(key=lambda item: -item["score"])
    overall = float((p.argmax(axis=1) != answers.values).mean())
    return {"flag": sum(item["flag"] for item in items), "score": overall, "items": items}


def thin_classes(task: Task, config: AuditConfig) -> Issue:
    """Return the classes by the number of their samples in train, the fewest first."""
    names, values = task.target.class_names, task.target.values[task.rows["train"]]
    one_class = task.target.kind == "class"
    counts = np.bincount(values, minlength=len(names)) if one_class else values.sum(axis=0)
    items = [
        {"class": names[k], "score": int(counts[k]), "flag": bool(counts[k] < config.thin)}
        for k in np.argsort(counts, kind="stable")
    ]
    return {"flag": sum(item["flag"] for item in items), "score": int(counts.min()), "items": items}
