"""The strategies of transfer learning, each tried on the trial: its accuracy, its seconds, its command.

    linear head on top · linear head on earlier features · fine-tuned blocks · a network from scratch

Cross-validation on train chooses among earlier features; val chooses the epoch of a network. Strategies are
compared on val; test is only reported.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.names import BOTTLENECK
from bottleneck.progress import Reporter
from bottleneck.studies.advise.recommendation import EARLY, FINETUNE, HEAD, SCRATCH, Attempt
from bottleneck.studies.advise.trial import Trial
from bottleneck.training.finetune import finetune
from bottleneck.training.results import TrainingResult
from bottleneck.training.scratch import scratch

EPOCHS = 10
UNFROZEN = (1, 2)  # blocks below the head on top
SCRATCH_EPOCHS = 20
SCRATCH_SIZE = 64  # pixels a side
# Gain in cross-validated accuracy from which the block below the best earlier features is fine-tuned, too.
WORTH_TUNING = 0.01

Head = dict[str, Any]  # one of `FitResult.heads`


def try_strategies(trial: Trial, folder: Path, reporter: Reporter) -> tuple[list[Attempt], list[Head]]:
    """Try every strategy, the cheapest first.

    Returns
    -------
    The attempts in their order, and the linear heads of all nodes (the probe curve) in the network's order.
    """
    fitted = fit_heads(
        trial.path,
        targets=[trial.user.target],
        nodes=trial.nodes,
        output=folder / "heads",
        reporter=reporter,
    )
    heads = sorted(fitted.heads, key=lambda head: trial.nodes.index(head["node"]))
    seconds = fitted.seconds / len(heads)
    top = next(head for head in heads if head["node"] == BOTTLENECK)
    early = max(
        (head for head in heads if head is not top), key=lambda head: head["cv_accuracy"], default=None
    )
    attempts = [_head_attempt(HEAD, trial, top, seconds)]
    if early is not None:
        attempts.append(_head_attempt(EARLY, trial, early, seconds))
    for unfreeze in UNFROZEN[: len(trial.nodes) - 1]:
        attempts.append(_finetune(trial, top, unfreeze, folder, reporter))
    if early is not None and early["cv_accuracy"] > top["cv_accuracy"] + WORTH_TUNING:
        attempts.append(_finetune(trial, early, 1, folder, reporter))
    attempts.append(_scratch(trial, folder, reporter))
    return attempts, heads


def _head_attempt(strategy: str, trial: Trial, head: Head, seconds: float) -> Attempt:
    return Attempt(
        strategy=strategy,
        what=f"linear head on {head['node']}",
        accuracy=head["accuracy"],
        ci95=head["accuracy_ci95"],
        seconds=seconds,
        command=trial.user.fit_command(head["node"]),
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
    return _network_attempt(FINETUNE, what, result, trial.user.finetune_command(head, unfreeze))


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
    command = f"bottleneck scratch {quote(trial.user.root)} --image-size {SCRATCH_SIZE}"
    return _network_attempt(SCRATCH, what, result, command)


def _network_attempt(strategy: str, what: str, result: TrainingResult, command: str) -> Attempt:
    return Attempt(
        strategy=strategy,
        what=what,
        accuracy=result.finetuned_accuracy,
        ci95=result.accuracy_ci95,
        seconds=result.seconds,
        command=command,
        notes=tuple(
            replace(note, message=f"{what[0].upper()}{what[1:]}: {note.message}")
            for note in result.notes
            if note.changes_result
        ),
    )
