"""A linear head on one node as a candidate: fitted on train with folds, judged on held-out samples and val.

Shapes: n samples, D features, K classes or labels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bottleneck.fitting.calibrated import conformal_of
from bottleneck.fitting.head_files import blockwise, describe_head
from bottleneck.fitting.training_set import folds_of
from bottleneck.heads.artifact import HeadArtifact, apply_link
from bottleneck.heads.config import DEFAULT, SweepConfig
from bottleneck.heads.cross_validation import judge_of
from bottleneck.heads.fit import fit_kind
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.metrics import fit_temperature, measure
from bottleneck.heads.prediction_sets import Conformal
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
from bottleneck.progress import SILENT, Reporter
from bottleneck.store.spec import fingerprint
from bottleneck.threads import trim_memory
from bottleneck.trials.evidence import Evidence
from bottleneck.trials.task import Records, Task

SUMMARY = ("accuracy", "accuracy_ci95", "balanced_accuracy", "log_loss", "r2", "mae", "rmse", "n")
KIND = "logistic"  # of the heads; of a regression it is ridge


@dataclass(frozen=True)
class Tried:
    """A candidate that was tried.

    metrics : {"cv": {…}, "val": {…}} of those that exist, the figures of `SUMMARY`.
    seconds : of fitting and judging, also where the result was read from disk.
    settings : what it takes to do it again, such as C.
    conformal : of sets of classes, from the samples of `metrics`; None for other targets.
    """

    evidence: Evidence
    metrics: dict[str, dict[str, Any]]
    seconds: float
    settings: dict[str, Any]
    conformal: Conformal | None = None


def try_head(task: Task, node: str, records: Records, name: str, reporter: Reporter = SILENT) -> Tried:
    """Fit a head on train with cross-validation and judge it; a finished trial is read from `records`.

    name : of the record.
    """
    inputs = head_fingerprint(task, node)
    if stored := stored_trial(task, records, name, inputs):
        return stored
    started = time.perf_counter()
    fit = fit_on(task, node, task.rows["train"], task.problem(), reporter=reporter)
    index, evidence, metrics, conformal, temperature = _judged(task, node, fit)
    settings = {"C": fit.C, "temperature": temperature, "scales": fit.settings.get("scales", {})}
    tried = Tried(evidence, metrics, time.perf_counter() - started, settings, conformal)
    store_trial(records, name, inputs, tried, index)
    return tried


def stored_trial(task: Task, records: Records, name: str, inputs: str) -> Tried | None:
    """Return the finished trial `name` of these inputs, or None."""
    stored = records.read(name, inputs)
    if stored is None:
        return None
    values, arrays = stored
    if task.target.kind == "class" and "conformal" not in arrays:  # of an earlier release
        return None
    evidence = Evidence(task.samples.key[arrays["index"]], arrays["score"], arrays["loss"])
    conformal = Conformal(arrays["conformal"]) if "conformal" in arrays else None
    return Tried(evidence, **values, conformal=conformal)


def store_trial(records: Records, name: str, inputs: str, tried: Tried, index: np.ndarray) -> None:
    """Store a finished trial. index : (n,) rows of the samples that its evidence is on."""
    values = {"metrics": tried.metrics, "seconds": tried.seconds, "settings": tried.settings}
    scores = {"index": index, "score": tried.evidence.score, "loss": tried.evidence.loss}
    if tried.conformal:
        scores["conformal"] = tried.conformal.scores
    records.write(name, inputs, values, scores)


def head_fingerprint(task: Task, node: str) -> str:
    """Return the fingerprint of everything that a head's trial depends on."""
    rows = task.cache.vector_fingerprint(node)
    return fingerprint({"trial": 2, "kind": KIND, "node": node, "rows": rows, "task": task.digest})


def fit_on(
    task: Task,
    node: str,
    rows: np.ndarray,
    problem: TargetProblem,
    C: str | float | Sequence[float] = "auto",
    scales: Mapping[str, float] | None = None,
    reporter: Reporter = SILENT,
    config: SweepConfig = DEFAULT,
) -> HeadFit:
    """Fit a head on the samples `rows` (n,), which `problem` is on.

    C, scales : to be chosen by cross-validation, or those that were chosen before. Nodes side by side have
        equal scales, since choosing one for each of ten nodes takes longer than all the rest.
    """
    alone = task.samples.image.shape[1] == 1 and not task.samples.covariate_names
    if scales is None and alone:
        scales = {}
    (fit,) = fit_kind(
        KIND,
        task.cache.sample_rows(node, rows),
        [problem],
        C,
        config=config,
        scales=scales,
        seed=task.seed,
        reporter=reporter,
    )
    trim_memory()
    return fit


def outputs_of(task: Task, head: HeadArtifact, rows: np.ndarray) -> np.ndarray:
    """Return the head's logits (n, K), or values (n, 1), for the samples `rows` (n,)."""
    return blockwise(task.cache.sample_rows(head.node, rows), head.decision)


def evidence_of(task: Task, rows: np.ndarray, outputs: np.ndarray) -> Evidence:
    """Judge outputs (n, K) for the samples `rows` (n,), none of which the model was fitted on."""
    score, loss = judge_of(task.problem())(task.target.values[rows], outputs)
    return Evidence(task.samples.key[rows], np.asarray(score, np.float64), np.asarray(loss, np.float64))


def measured(
    task: Task, rows: np.ndarray, outputs: np.ndarray, link: str, temperature: float
) -> dict[str, Any]:
    """Return the metrics of outputs (n, K) for the samples `rows` (n,)."""
    answers = task.target.take(rows)
    predicted = apply_link(outputs, link, temperature)
    return measure(answers.kind, answers.values, predicted, answers.class_names)


def artifact_of(
    task: Task, node: str, rows: np.ndarray, fit: HeadFit, problem: TargetProblem
) -> HeadArtifact:
    """Return the head fitted on the samples `rows` (n,), with the temperature of its held-out logits."""
    held, logits = fit.held_out()
    temperature = 1.0
    if fit.link != "identity":
        temperature = fit_temperature(problem.target.values[held], logits, fit.link)
    description = describe_head(task.cache, task.samples, task.target, node, np.sort(rows), seed=task.seed)
    return fit.artifact(description, temperature=temperature, n_train=int(problem.target.labelled.sum()))


def head_on(
    task: Task,
    node: str,
    rows: np.ndarray,
    C: str | float = "auto",
    scales: Mapping[str, float] | None = None,
    reporter: Reporter = SILENT,
) -> HeadArtifact:
    """Return a head fitted on the samples `rows` (n,) alone; "auto" finds C there by cross-validation."""
    target, fold = task.target.take(rows), np.full(len(rows), NO_FOLD, np.int16)
    if C == "auto":
        fold = folds_of(target, task.samples, rows, task.cv, task.seed, [])
    problem = TargetProblem(target, fold)
    return artifact_of(task, node, rows, fit_on(task, node, rows, problem, C, scales, reporter), problem)


def head_as_tried(
    task: Task, node: str, settings: Mapping[str, Any], rows: np.ndarray, reporter: Reporter = SILENT
) -> HeadArtifact:
    """Fit a head on the samples `rows` (n,). settings : C, scales and temperature, as of `Tried`."""
    head = head_on(task, node, rows, settings["C"], settings["scales"], reporter)
    return replace(head, temperature=settings["temperature"])


def _judged(
    task: Task, node: str, fit: HeadFit
) -> tuple[np.ndarray, Evidence, dict[str, dict[str, Any]], Conformal | None, float]:
    """Return what `judged` does of the head on its held-out samples and on val, and the temperature."""
    head = artifact_of(task, node, task.rows["train"], fit, task.problem())
    held, logits = fit.held_out()
    parts = [("cv", task.rows["train"][held], logits)] if len(held) else []
    if "val" in task.rows:
        parts.append(("val", task.rows["val"], outputs_of(task, head, task.rows["val"])))
    return *judged(task, parts, head.link, head.temperature), head.temperature


def judged(
    task: Task, parts: Sequence[tuple[str, np.ndarray, np.ndarray]], link: str, temperature: float
) -> tuple[np.ndarray, Evidence, dict[str, dict[str, Any]], Conformal | None]:
    """Return the judged samples as indices of the table, evidence on them, metrics by name, and `Conformal`.

    parts : (name, rows (m,), outputs (m, K)), none of which the model was fitted on; those of one name belong
        together.
    """
    metrics = {}
    for name in sorted({name for name, _, _ in parts}):
        rows, outputs = (
            np.concatenate([part[index] for part in parts if part[0] == name]) for index in (1, 2)
        )
        found = measured(task, rows, outputs, link, temperature)
        metrics[name] = {figure: found[figure] for figure in SUMMARY if figure in found}
    index = np.concatenate([rows for _, rows, _ in parts])
    logits = np.concatenate([part[2] for part in parts])
    conformal = conformal_of(task.target.kind, link, temperature, task.target.values[index], logits)
    return index, evidence_of(task, index, logits), metrics, conformal
