"""The model card: what a model is, what it was made from and how good it is, in Markdown.

The sections follow Mitchell et al. 2019, "Model Cards for Model Reporting", as far as this program knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from typing import Any

from bottleneck.heads.artifact import HeadArtifact

MOST_CLASSES_LISTED = 50


def model_card(
    head: HeadArtifact, file_name: str, training: Mapping[str, Any], notes: tuple[str, ...] = ()
) -> str:
    """Markdown text.

    Parameters
    ----------
    head : with metrics by split
    file_name : of the model
    training : what was done, shown as a table
    notes : what a reader must know of the figures
    """
    names = [f"`{_cell(name)}`" for name in head.class_names[:MOST_CLASSES_LISTED]]
    if len(head.class_names) > MOST_CLASSES_LISTED:
        names.append(f"… {len(head.class_names) - MOST_CLASSES_LISTED} more")
    M = head.images_per_sample
    inputs = "images" if M == 1 else f"samples of {M} images"
    if head.covariate_names:
        inputs += f" with the numbers {', '.join(f'`{_cell(name)}`' for name in head.covariate_names)}"
    preprocess = head.preprocess
    parts = [
        f"# {file_name}",
        f"Classifies {inputs} by `{_cell(head.target)}` into {len(head.class_names)} classes.",
        "## Classes\n\n" + ", ".join(names),
        "## Use\n\n```sh\n" + f"bottleneck predict {quote(file_name)} IMAGES\n```",
        "## How good it is\n\n" + _metrics(head),
        *(f"> {note}" for note in notes),
        "## Training\n\n" + _table(("what", "value"), training.items()),
        "## Network and preprocessing\n\n"
        + _table(
            ("what", "value"),
            [
                *((f"backbone {name}", value) for name, value in head.backbone.items()),
                *((f"image {name}", value) for name, value in preprocess.items()),
                ("features", head.node),
                ("temperature", f"{head.temperature:.4g}"),
                ("fingerprint of the cache", head.fingerprint),
                ("made with", f"bottleneck {head.version}"),
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _metrics(head: HeadArtifact) -> str:
    rows = []
    for split, values in head.metrics.items():
        if "accuracy" not in values:
            continue
        low, high = values["accuracy_ci95"]
        rows.append(
            (
                f"{split} (chose the model)" if split in head.settings.get("chosen_on", ()) else split,
                values["n"],
                f"{values['accuracy']:.4f}",
                f"{low:.4f} … {high:.4f}",
                f"{values['log_loss']:.4f}",
            )
        )
    return _table(("split", "samples", "accuracy", "95 % interval", "log loss"), rows)


def _table(columns: tuple[str, ...], rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    """Text that cannot break out of a table or a line."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
