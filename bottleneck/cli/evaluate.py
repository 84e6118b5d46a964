"""`bottleneck evaluate`: measure a head or model on a cache or on images."""

from __future__ import annotations

import click

from bottleneck.cli.options import engine_options, reading_options
from bottleneck.cli.terminal import Terminal, shows_results, table


@click.command()
@click.argument("model", type=click.Path())
@click.argument("source")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="[default: test, else val]")
@click.option("--errors", type=click.Path(), help="Write the misclassified samples to this CSV file.")
@click.option("--confusion", type=click.Path(), help="Draw the confusion matrix to this PNG file.")
@click.option("--weights", type=click.Path(), help="The weights file of the backbone, if it came from one.")
@click.option(
    "--trust-code", is_flag=True, help="Import a backbone that the model names as package.module:function."
)
@engine_options
@reading_options
@shows_results
def command(terminal: Terminal, model: str, source: str, confusion: str | None, **options: object) -> None:
    """Measure MODEL, a head or a model file, on SOURCE: a feature cache, or images with labels."""
    from bottleneck.evaluation import evaluate

    result = evaluate(model, source, progress=terminal.progress, **options)
    if confusion:
        from bottleneck.report.figures import confusion_matrix

        confusion_matrix(result["confusion"], result["classes"], confusion, title=f"{result['split']} split")
    low, high = result["accuracy_ci95"]
    summary = {
        "accuracy": f"{result['accuracy']:.4f}  (95 % interval {low:.4f} … {high:.4f})",
        **{name: result[name] for name in ("balanced_accuracy", "top5", "log_loss", "ece", "n")},
    }
    classes = [
        (name, row["n"], row["precision"], row["recall"], row["f1"])
        for name, row in zip(result["classes"], result["per_class"], strict=True)
    ]
    terminal.result(
        result,
        table(f"On the {result['split']} split", ("measure", "value"), summary.items()),
        table("By class", ("class", "n", "precision", "recall", "f1"), classes),
        *(f"Note: {note}" for note in result["notes"]),
    )
