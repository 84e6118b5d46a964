"""The chosen head, fitted again on train and val together, and measured: the one time that test is read.

Shapes: n samples, K classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bottleneck.fitting.calibrated import novelty_on
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.progress import SILENT, Reporter
from bottleneck.trials.heads import Tried, artifact_of, fit_on, head_as_tried, measured, outputs_of
from bottleneck.trials.mirrors import mirrored_outputs
from bottleneck.trials.task import Task


def final_head(task: Task, node: str, tried: Tried, reporter: Reporter = SILENT) -> HeadArtifact:
    """Return the head of the trial `tried`, with its metrics.

    Without val, the samples are those of the trial, whose C and temperature are taken. With val, both are
    found again; on val a head that learnt from train alone, as in the trial, is measured.
    """
    alone = head_as_tried(task, node, tried.settings, task.rows["train"], reporter)
    flip = bool(tried.settings.get("flip", False))
    head, metrics = alone, {name: each for name, each in tried.metrics.items() if name == "cv"}
    if "val" in task.rows:
        rows, problem = task.refit_problem()
        fit = fit_on(task, node, rows, problem, reporter=reporter)
        head, (held, logits) = artifact_of(task, node, rows, fit, problem), fit.held_out()
        if len(held) and not flip:
            metrics["cv"] = measured(task, rows[held], logits, head.link, head.temperature)
    for split, indices in task.rows.items():
        metrics[split] = _measured(task, alone if split == "val" else head, indices, flip)
    fitted_on = [split for split in ("train", "val") if split in task.rows]
    settings = {**head.settings, "fitted_on": fitted_on, **({"flip": True} if flip else {})}
    novelty = novelty_on(task.cache, task.samples, node, np.sort(task.judged))
    return replace(head, metrics=metrics, settings=settings, novelty=novelty, conformal=tried.conformal)


def _measured(task: Task, head: HeadArtifact, rows: np.ndarray, flip: bool) -> dict[str, Any]:
    """Return the metrics of the head on the samples `rows` (n,)."""
    if flip:
        return measured(task, rows, mirrored_outputs(task, head, rows), head.link, 1.0)
    return measured(task, rows, outputs_of(task, head, rows), head.link, head.temperature)
