"""The strategies of transfer learning, each tried on the trial: its accuracy, its seconds, its command.

    linear head on top · linear head on earlier features · fine-tuned blocks · a network from scratch

Cross-validation on train and val together choose among earlier features, and among the strategies, sample by
sample (`trials.evidence`). Val also chooses the epoch of a network. Test is only reported.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from bottleneck.fitting.config import FitConfig
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.heads.artifact import load_head
from bottleneck.heads.metrics import TINY
from bottleneck.models.classifier import load_model
from bottleneck.names import BOTTLENECK
from bottleneck.progress import Reporter
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.advise.recommendation import EARLY, FINETUNE, HEAD, SCRATCH, Attempt
from bottleneck.studies.advise.trial import Trial
from bottleneck.training.finetune import finetune
from bottleneck.training.results import TrainingResult
from bottleneck.training.scratch import scratch
from bottleneck.trials.evidence import Evidence, difference
from bottleneck.trials.heads import evidence_of, outputs_of
from bottleneck.trials.task import is_bottleneck_map, task_of

EPOCHS = 10
UNFROZEN = (1, 2)  # blocks below the head on top
SCRATCH_EPOCHS = 20
SCRATCH_SIZE = 64  # pixels a side

Head = dict[str, Any]  # one of `FitResult.heads`


def try_strategies(trial: Trial, folder: Path, reporter: Reporter) -> tuple[list[Attempt], list[Head]]:
    """Try every strategy, the cheapest first.

    Returns
    -------
    The attempts in their order, and the linear heads of all nodes (the probe curve) in the network's order.
    """
    heads, seconds = list[Head](), 0.0  # of one head
    with reporter.step("Fitting heads", total=len(trial.nodes), unit="heads") as advance:
        for node in trial.nodes:
            fitted = fit_heads(trial.path, targets=[trial.user.target], nodes=[node], output=folder / "heads")
            heads += fitted.heads
            seconds += fitted.seconds / len(trial.nodes)
            advance(1)
    judged = _judged_heads(trial, heads)
    top, pooled, early = _candidates(trial, heads, judged)
    attempts = [_head_attempt(HEAD, trial, top, judged[top["node"]], seconds)]
    if pooled is not None and difference(judged[pooled["node"]], judged[BOTTLENECK]).beyond_noise:
        attempts.append(_head_attempt(HEAD, trial, pooled, judged[pooled["node"]], seconds))
    if early is not None:
        attempts.append(_head_attempt(EARLY, trial, early, judged[early["node"]], seconds))
    for unfreeze in UNFROZEN[: len(trial.nodes) - 1]:
        attempts.append(_finetune(trial, top, unfreeze, folder, reporter))
    if early is not None and difference(judged[early["node"]], judged[BOTTLENECK]).beyond_noise:
        attempts.append(_finetune(trial, early, 1, folder, reporter))
    attempts.append(_scratch(trial, folder, reporter))
    return attempts, heads


def _judged_heads(trial: Trial, heads: list[Head]) -> dict[str, Evidence]:
    """Return the evidence of each head, by node: held-out samples of train, and val."""
    judged = {}
    with FeatureCache(trial.path) as cache:
        task = task_of(cache, trial.user.target, cv=FitConfig.cv, seed=FitConfig.seed)
        for head in heads:
            with np.load(head["out_of_fold"]) as stored:
                logits = stored["logits"]
            held = np.flatnonzero(np.isfinite(logits).all(axis=1))
            rows = np.concatenate([task.rows["train"][held], task.rows["val"]])
            on_val = outputs_of(task, load_head(head["path"]), task.rows["val"])
            judged[head["node"]] = evidence_of(task, rows, np.concatenate([logits[held], on_val]))
    return judged


def _candidates(
    trial: Trial, heads: list[Head], judged: dict[str, Evidence]
) -> tuple[Head, Head | None, Head | None]:
    """Return the head on the bottleneck, the best on another pool of its map, the best on an earlier node."""
    top = next(head for head in heads if head["node"] == BOTTLENECK)
    of_map = [head for head in heads if is_bottleneck_map(trial.backbone, head["node"]) and head is not top]
    earlier = [head for head in heads if head not in of_map and head is not top]
    pooled, early = (
        max(some, key=lambda head: judged[head["node"]].mean, default=None) for some in (of_map, earlier)
    )
    return top, pooled, early


def _network_evidence(trial: Trial, model: str) -> Evidence:
    """Return how a trained network judges the val samples, from their images."""
    samples = trial.source.samples
    source = trial.source.take(np.flatnonzero(samples.split == "val"))
    load = trial.user.load
    classifier = load_model(model, weights=load.weights, trust_code=load.trust_code, engine="torch")
    outputs = classifier.outputs(source)
    target, names = source.samples.targets[trial.user.target], classifier.head.class_names
    code_of = {name: code for code, name in enumerate(names)}
    answers = [code_of.get(target.class_names[value], -1) for value in target.values[outputs.rows]]
    known = np.flatnonzero(np.array(answers) >= 0)
    rows, codes, shares = outputs.rows[known], np.array(answers)[known], outputs.scores[known]
    loss = -np.log(np.maximum(shares[np.arange(len(codes)), codes], TINY))
    return Evidence(source.samples.key[rows], (shares.argmax(axis=1) == codes).astype(float), loss)


def _head_attempt(strategy: str, trial: Trial, head: Head, evidence: Evidence, seconds: float) -> Attempt:
    return Attempt(
        strategy=strategy,
        what=f"linear head on {head['node']}",
        accuracy=head["accuracy"],
        ci95=head["accuracy_ci95"],
        seconds=seconds,
        command=trial.user.fit_command(head["node"]),
        evidence=evidence,
        cv_accuracy=head["cv_accuracy"],
    )


def _finetune(trial: Trial, head: Head, unfreeze: int, folder: Path, reporter: Reporter) -> Attempt:
    result = finetune(
        trial.path,
        head["path"],
        folder / "models" / f"{head['node']}-{unfreeze}.safetensors",
        unfreeze=unfreeze,
        epochs=EPOCHS,
        weights=trial.user.load.weights,
        trust_code=trial.user.load.trust_code,
        reporter=reporter,
    )
    what = f"{', '.join(result.unfrozen)} fine-tuned from the head on {head['node']}"
    return _network_attempt(FINETUNE, what, result, trial, trial.user.finetune_command(head, unfreeze))


def _scratch(trial: Trial, folder: Path, reporter: Reporter) -> Attempt:
    result = scratch(
        trial.source,
        folder / "models" / "scratch.safetensors",
        target=trial.user.target,
        image_size=SCRATCH_SIZE,
        epochs=SCRATCH_EPOCHS,
        reporter=reporter,
    )
    what = f"the small CNN from scratch at {SCRATCH_SIZE} pixels"
    names = f"{trial.user.source} --target {quote(trial.user.target)}"
    command = f"bottleneck scratch {names} --image-size {SCRATCH_SIZE}"
    return _network_attempt(SCRATCH, what, result, trial, command)


def _network_attempt(strategy: str, what: str, result: TrainingResult, trial: Trial, command: str) -> Attempt:
    return Attempt(
        strategy=strategy,
        what=what,
        accuracy=result.finetuned_accuracy,
        ci95=result.accuracy_ci95,
        seconds=result.seconds,
        command=command,
        evidence=_network_evidence(trial, result.model),
        notes=tuple(
            replace(note, message=f"{what[0].upper()}{what[1:]}: {note.message}")
            for note in result.notes
            if note.changes_result
        ),
    )
