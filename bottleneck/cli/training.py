"""How the commands that train show their result."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from bottleneck.cli.terminal import Terminal, table

if TYPE_CHECKING:
    from bottleneck.training.result import Result


def show_result(terminal: Terminal, result: Result, title: str) -> None:
    """Draw the curves beside the model and print the result."""
    from bottleneck.report.history import training_curves

    figure = training_curves(
        result.epochs,
        Path(result.model).with_suffix(".history.png"),
        result.best_epoch,
        title,
        result.head_accuracy.get("val"),
    )
    rows = []
    for split, accuracy in result.finetuned_accuracy.items():
        low, high = result.accuracy_ci95[split]
        mark = "chose the epoch" if split == result.chosen_on else ""
        head = result.head_accuracy.get(split)
        rows.append((split, result.n[split], head, accuracy, f"{low:.4f} … {high:.4f}", mark))
    kept = {
        "finetuned": f"Kept: the network of epoch {result.best_epoch}.",
        "head": "Kept: the head. No epoch of training was better on val.",
        "scratch": f"Kept: the network of epoch {result.best_epoch}.",
    }[result.kept]
    terminal.result(
        {**result.to_json(), "figure": str(figure)},
        table(title, ("split", "samples", "head", "kept", "95 % interval", ""), rows),
        kept,
        *(f"Note: {note}" for note in result.notes),
        f"{len(result.epochs) - 1} epochs at {result.images_per_second:.0f} images/s. Curves: {figure}",
        f"Model: {result.model}. Next: bottleneck predict {quote(result.model)} IMAGES",
    )
