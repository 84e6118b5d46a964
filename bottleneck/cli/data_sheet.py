"""Show a data sheet (`extraction/data_sheet.py`) as tables and lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType

from bottleneck.cli.terminal import table
from bottleneck.names import SPLITS

MOST_CLASSES = 12  # shown in full; of more, the largest and the smallest


def data_sheet_lines(data: dict[str, Any]) -> Iterator[RenderableType]:
    """Yield the table of classes by split of each target, then lines on columns, files and failures."""
    splits = [name for name in SPLITS if data["splits"].get(name)]
    for name, target in data["targets"].items():
        if target["kind"] == "regression":
            low, high = target.get("range", (None, None))
            yield f"Target {name}: numbers from {low} to {high}, {target['labelled']:,} labelled."
        else:
            yield _class_table(name, target, data["classes"][name], splits)
        if target["unlabelled"]:
            yield f"Target {name}: {target['unlabelled']:,} samples without a label."
    if not data["targets"]:
        yield "Targets: none. Samples: " + ", ".join(f"{data['splits'][name]:,} {name}" for name in splits)
    used = {role: names for role, names in data["columns"].items() if names}
    if used:
        yield "Columns: " + "; ".join(f"{role} {', '.join(names)}" for role, names in used.items())
    if data["ignored"]:
        yield "Ignored files: " + ", ".join(
            f"{count:,} {suffix}" for suffix, count in data["ignored"].items()
        )
    for reason, count in list(data["failures"].items())[:5]:
        yield f"Failed: {count:,} × {reason}"


def _class_table(
    name: str, target: dict[str, Any], classes: dict[str, dict[str, int]], splits: list[str]
) -> RenderableType:
    """Return samples by class and split; of many classes the largest and the smallest half of what fits."""
    ranked = list(classes.items())
    what = "classes" if target["kind"] == "class" else "labels"
    title = f"Target {name}: {target['kind']}, {len(ranked):,} {what}"
    if len(ranked) > MOST_CLASSES:
        ranked.sort(key=lambda item: -sum(item[1].values()))
        half = MOST_CLASSES // 2
        title += f"; the largest {half} and the smallest {half}"
        ranked = ranked[:half] + ranked[-half:]
    rows = [(label, *(counts[split] for split in splits)) for label, counts in ranked]
    return table(title, ("class", *splits), rows)
