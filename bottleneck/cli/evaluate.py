"""`bottleneck evaluate`: measure a head or model on a cache or on images."""

from __future__ import annotations

from typing import Any

import click

from bottleneck.cli.options import (
    engine_options,
    flip_option,
    loading_options,
    reading_options,
    strict_option,
    trust_options,
)
from bottleneck.cli.terminal import Command, Terminal, shows_results, table, told_apart
from bottleneck.errors import BottleneckError
from bottleneck.names import ALL_SAMPLES, SPLITS

# Shown for a target that has them: classes, labels and numbers have different ones.
MEASURES = (
    "balanced_accuracy",
    "exact_match",
    "top5",
    "macro_f1",
    "mean_average_precision",
    "log_loss",
    "ece",
    "r2",
    "mae",
    "rmse",
    "n",
)

FEW = 5  # classes, of which the true one is always among the top 5


@click.command(cls=Command)
@click.argument("model", type=click.Path())
@click.argument("source", type=click.Path())
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    show_default="test, else val, else train",
    help="Split whose samples are measured.",
)
@click.option(
    "--labels",
    type=click.Path(),
    help="Table (.csv, .jsonl, .parquet) of labels by image or sample, in place of the source's labels.",
)
@click.option("--errors", type=click.Path(), help="Write the misclassified samples to this CSV file.")
@click.option(
    "--raw",
    is_flag=True,
    help="Write texts to CSV as they are, also those that a spreadsheet would execute.",
)
@click.option(
    "--unknown",
    metavar="SOURCE",
    help="Cache or images of none of MODEL's classes: how well they are told from the measured ones.",
)
@click.option("--confusion", type=click.Path(), help="Draw the confusion matrix to this PNG file.")
@flip_option
@trust_options
@strict_option
@loading_options
@engine_options
@reading_options
@shows_results
def command(terminal: Terminal, model: str, source: str, confusion: str | None, **options: Any) -> None:
    """Measure MODEL, a head or a model file, on SOURCE: a feature cache, or images with labels.

    Classes that MODEL does not know are left out, and counted.
    """
    from bottleneck.models.evaluate import evaluate

    result = evaluate(model, source, reporter=terminal, **options)
    if confusion:
        from bottleneck.report.figures import confusion_matrix

        if "confusion" not in result:
            raise BottleneckError(
                "--confusion needs a head of classes; this one predicts another kind of target."
            )
        confusion_matrix(result["confusion"], result["classes"], confusion, title=_measured(result))
    shown = [table(f"On {_measured(result)}", ("measure", "value"), _measures(result).items())]
    if doubts := _doubts(result):
        shown.append(table("What it does not know", ("measure", "value", "95 % interval"), doubts))
    if "per_class" in result:
        names = told_apart([row["name"] for row in result["per_class"]])
        classes = [
            (name, row["n"], row["precision"], row["recall"], row["f1"])
            for name, row in zip(names, result["per_class"], strict=True)
        ]
        shown.append(table("By class", ("class", "n", "precision", "recall", "f1"), classes))
    if result["failed"]:
        failed = [(row["image"], row["error"]) for row in result["failed"]]
        shown.append(table("Images that were not measured", ("image", "reason"), failed))
    terminal.result(result, *shown)


# Of `--reject`, `--coverage` and `--unknown`, with their names for people.
DOUBTS = {
    "rejected": "known images that are rejected",
    "unknown_rejected": "unknown images that are rejected",
    "auroc": "AUROC of novelty",
    "auroc_of_largest_probability": "AUROC of the largest probability",
    "fpr_at_95_tpr": "known rejected where 95 % of unknown are",
    "measured_coverage": "sets that contain the true class",
    "mean_set_size": "classes in a set, mean",
}


def _doubts(result: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return name, value and interval of the measures of `DOUBTS` that the result has, and what was asked."""
    asked = {"rejected": result.get("reject"), "measured_coverage": result.get("coverage")}
    rows: list[tuple[object, ...]] = []
    for key, name in DOUBTS.items():
        if key in result:
            low, high = result.get(f"{key}_ci95", (None, None))
            more = "" if asked.get(key) is None else f", asked {asked[key]:.4g}"
            rows.append((f"{name}{more}", result[key], "–" if low is None else f"{low:.4f} … {high:.4f}"))
    return rows


def _measured(result: dict[str, Any]) -> str:
    """Return what was measured, for a title."""
    return "all samples" if result["split"] == ALL_SAMPLES else f"the {result['split']} split"


def _measures(result: dict[str, Any]) -> dict[str, object]:
    """Return the measures that the target has; the accuracy comes first, with its interval."""
    measures = {name: result[name] for name in MEASURES if name in result}
    if len(result.get("classes", ())) <= FEW:
        measures.pop("top5", None)
    if "accuracy" not in result:
        return measures
    low, high = result["accuracy_ci95"]
    accuracy = f"{result['accuracy']:.4f}  (95 % interval {low:.4f} … {high:.4f})"
    return {"accuracy": accuracy} | measures
