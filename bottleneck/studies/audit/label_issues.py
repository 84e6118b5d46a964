"""The judged labels as `audit` lists them, the flagged ones with their nearest samples of train."""

from __future__ import annotations

from typing import Any

import numpy as np

from bottleneck.progress import Reporter
from bottleneck.studies.audit.copies import Issue
from bottleneck.studies.audit.images import centred, neighbourhood
from bottleneck.studies.audit.judged import Judged
from bottleneck.studies.audit.label_errors import LabelQuality

SHOWN_NEIGHBOURS = 3


def label_issues_of(judged: Judged, quality: LabelQuality, reporter: Reporter) -> Issue:
    """Return the judged labels, the most suspicious first; the flagged ones with their nearest samples."""
    answers, samples = judged.answers, judged.task.samples
    keys, splits, names = samples.key[judged.rows], samples.split[judged.rows], answers.class_names
    items = []
    order = np.argsort(quality.score, axis=None, kind="stable")
    for at in zip(*np.unravel_index(order, quality.score.shape), strict=True):
        item: dict[str, Any] = {"sample": keys[at[0]], "split": splits[at[0]]}
        given, suggested = answers.values[at], quality.suggested[at]
        if answers.kind == "class":
            item |= {"given": names[given], "suggested": names[suggested]}
        else:
            name = names[at[1]]
            given, suggested = (name if bit else f"not {name}" for bit in (given, suggested))
            item |= {"label": name, "given": given, "suggested": suggested}
        item["score"], item["wrong"] = float(quality.score[at]), float(quality.wrong[at])
        items.append(item | {"flag": bool(quality.flag[at])})
    flagged = [item for item in items if item["flag"]]
    _add_neighbours(judged, flagged, reporter)
    return {
        "flag": len(flagged),
        "score": float(quality.score.mean()),
        "share": float(quality.share.mean()),
        "expected_wrong": sum(item["wrong"] for item in flagged),
        "items": items,
    }


def _add_neighbours(judged: Judged, flagged: list[dict[str, Any]], reporter: Reporter) -> None:
    """Add to each flagged item the samples of train that are nearest to it, with their labels."""
    if not flagged:
        return
    task, train = judged.task, judged.task.rows["train"]
    row_of = {key: row for row, key in enumerate(task.samples.key)}
    rows = np.array([row_of[item["sample"]] for item in flagged])
    both, place = np.unique(np.concatenate([rows, train]), return_inverse=True)
    features = centred(task.cache.sample_rows(judged.node, both))
    near = neighbourhood(features, place[len(rows) :], reporter, of=place[: len(rows)])
    for item, found in zip(flagged, near.index, strict=True):
        nearest = [both[i] for i in found[:SHOWN_NEIGHBOURS] if i >= 0]
        item["neighbours"] = [
            {"sample": task.samples.key[row], "given": task.target.answer(row)} for row in nearest
        ]
