"""`bottleneck demo`: the whole chain on digits that scikit-learn ships."""

from __future__ import annotations

import os
from typing import Any

import click

from bottleneck.cli.options import setting
from bottleneck.cli.terminal import Command, Terminal, link_to, shown_prediction, shows_results, table
from bottleneck.data.config import ReadConfig
from bottleneck.errors import counted
from bottleneck.names import DEMO_FOLDER


@click.command(cls=Command)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    default=DEMO_FOLDER,
    show_default=True,
    help="Folder for the images, the cache, the heads, the pictures and the report.",
)
@setting(ReadConfig, "--seed", type=int, help="Seed of the test split and of the folds.")
@shows_results
def command(terminal: Terminal, output: str, seed: int) -> None:
    """Run the whole chain on digits that scikit-learn ships, offline: extract to predict and report."""
    from bottleneck.demo import demo

    result = demo(output, seed=seed, reporter=terminal)
    rows = [
        (
            head["node"],
            head["C"],
            head["cv_accuracy"],
            head["accuracy"]["test"],
            "{:.4f} … {:.4f}".format(*head["accuracy_ci95"]["test"]),
            "chosen" if head["path"] == result["chosen"]["path"] else "",
        )
        for head in result["heads"]
    ]
    predictions = [shown_prediction(row) for row in result["predictions"]]
    terminal.result(
        result,
        table(
            "One head per node; cross-validation on train chooses, test is only reported",
            ("node", "C", "cv accuracy", "test accuracy", "95 % interval", ""),
            rows,
        ),
        table("Predictions of test images", ("image", "label", "confidence"), predictions),
        table("Files", ("what", "where"), result["files"].items()),
        f"Done in {result['seconds']:.0f} s. Next: bottleneck train YOUR_FOLDER",
        last=(_shown(result), link_to("Report", os.path.abspath(result["report"]))),
    )


def _shown(result: dict[str, Any]) -> str:
    """Return what the demo has shown, in one sentence."""
    evaluation = result["evaluation"]
    return (
        f"A network trained on photographs ran once over {counted(result['images'], 'image')} of digits; of "
        f"{len(result['heads'])} classifiers on what it computed, the one that cross-validation chose names "
        f"{evaluation['accuracy']:.1%} of {counted(evaluation['n'], 'test image')} correctly."
    )
