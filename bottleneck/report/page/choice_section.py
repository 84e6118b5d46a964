"""The section on the choice: nodes and values of C, images per class, training, what was tried and its cost.

Shapes: G values of C, F folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bottleneck.errors import counted
from bottleneck.names import BOTTLENECK, SPLITS
from bottleneck.records import is_number
from bottleneck.report.page.blocks import Block, Chart, Interval, Prose, Section, Series, Table
from bottleneck.report.page.inputs import Fitted, Inputs

MOST_LINES = 8  # of a chart


def choice_section(inputs: Inputs, main: Fitted | None) -> Section:
    """Return the section."""
    blocks: list[Block] = []
    heads = [each for each in inputs.fitted if each.head.cv.get("C")]
    if heads:
        blocks.append(_penalty(heads, main))
    if len(inputs.fitted) > 1:
        blocks.append(_heads(inputs.fitted, main))
    if inputs.shots:
        blocks.append(_shots(inputs.shots))
    histories = [each for each in inputs.fitted if each.history.get("epochs")]
    for number, each in enumerate(histories):
        blocks += _training(each.history, each.path.name, f"-{number + 1}" if number else "")
    if not histories and (result := inputs.result("finetune")):
        blocks += _training(result, "the training", "")
    for each in inputs.fitted:
        if each.candidates:
            blocks.append(_candidates(each.candidates, each.path.name))
    if (result := inputs.result("train")) and not any(each.candidates for each in inputs.fitted):
        blocks.append(_candidates(result["candidates"], str(result.get("model", "train"))))
    if result := inputs.result("compare"):
        blocks.append(_comparison(result))
    if result := inputs.result("advise"):
        blocks.append(_advice(result))
    missing = "" if blocks else "No head, training or comparison is among the paths, so nothing was chosen."
    return Section("choice", "Choice", blocks, missing)


def _named(each: Fitted) -> str:
    return f"{each.head.node}, {each.head.kind}" + (
        "" if each.head.target == "label" else f", {each.head.target}"
    )


def _penalty(heads: Sequence[Fitted], main: Fitted | None) -> Chart:
    """Return the mean score of cross-validation by C for each head, with the spread over the folds."""
    shown = sorted(heads, key=lambda each: (each is not main, -each.score()))[:MOST_LINES]
    series = []
    for each in shown:
        cv = each.head.cv
        C, mean = (np.asarray(cv[name], float) for name in ("C", "mean"))
        low, high = _band(cv)
        series.append(Series(_named(each), C.tolist(), mean.tolist(), low, high))
    score = heads[0].head.cv.get("score", "accuracy")
    marks = [(main.head.C, "chosen")] if main is not None and main in shown and main.head.C else []
    more = f" The best {MOST_LINES} of {counted(len(heads), 'head')}." if len(heads) > MOST_LINES else ""
    text = f"Mean over the folds of cross-validation; the band is one standard error.{more}"
    return Chart(
        "penalty",
        "Nodes and C",
        text,
        x_label="C, the inverse strength of the penalty",
        y_label=f"{score}, held out",
        series=series,
        logarithmic=True,
        marks=marks,
    )


def _band(cv: Mapping[str, Any]) -> tuple[list[float] | None, list[float] | None]:
    """Return the mean less and plus one standard error over the folds, where the folds are recorded."""
    if not cv.get("folds"):  # a head of an earlier version
        return None, None
    scores = np.array([[np.nan if value is None else value for value in row] for row in cv["folds"]], float)
    mean = np.asarray(cv["mean"], float)
    if scores.shape[1] < 2:
        return None, None
    error = np.nanstd(scores, axis=1, ddof=1) / np.sqrt((~np.isnan(scores)).sum(axis=1))
    return (mean - error).tolist(), (mean + error).tolist()


def _heads(fitted: Sequence[Fitted], main: Fitted | None) -> Table:
    """Return the heads and models with their scores by split."""
    rows = []
    for each in sorted(fitted, key=lambda each: -each.score()):
        metrics = each.head.metrics
        cells = [_score(metrics.get(name, {})) for name in ("cv", "val", "test")]
        C = "–" if each.head.C is None else f"{each.head.C:.3g}"
        mark = "shown here" if each is main else ""
        rows.append([each.path.name, each.head.node, each.head.kind, C, *cells, mark])
    columns = ("file", "node", "kind", "C", "cross-validation", "val", "test", "")
    return Table("heads", "Heads and models", columns=columns, rows=rows)


def _score(metrics: Mapping[str, Any]) -> Any:
    accuracy, bounds = metrics.get("accuracy"), metrics.get("accuracy_ci95")
    if accuracy is not None and bounds:
        return Interval(float(accuracy), float(bounds[0]), float(bounds[1]))
    return metrics.get("r2")


def _shots(curves: Sequence[Mapping[str, Any]]) -> Chart:
    """Return accuracy by images per class, with the range of 95 % of the draws."""
    chosen = sorted(curves, key=lambda each: (each["node"] != BOTTLENECK, -each["mean"][-1]))[:MOST_LINES]
    series = [
        Series(f"{each['target']}, {each['node']}", each["shots"], each["mean"], each["low"], each["high"])
        for each in chosen
    ]
    last = chosen[0]
    text = "On samples that were not drawn; the band holds 95 % of the draws."
    if len(last["mean"]) > 1:
        gain = 100 * (last["mean"][-1] - last["mean"][-2])
        text += (
            f" From {last['shots'][-2]:g} to {last['shots'][-1]:g} images per class the accuracy of "
            f"{last['node']} rises by {gain:.1f} points."
        )
    return Chart(
        "shots",
        "Images per class",
        text,
        x_label="training images per class",
        y_label="accuracy",
        series=series,
        logarithmic=True,
    )


def _training(history: Mapping[str, Any], name: str, suffix: str) -> list[Block]:
    """Return loss and accuracy by epoch, with the epoch that is kept."""
    epochs = [each for each in history["epochs"] if isinstance(each, dict) and is_number(each.get("epoch"))]
    blocks: list[Block] = []
    for what in ("accuracy", "loss"):
        series = []
        for split, drawn in (("train", "dashes"), ("val", "line")):
            key = f"{split}_{what}"
            points = [(each["epoch"], float(each[key])) for each in epochs if is_number(each.get(key))]
            if points:
                label = f"{split}, while learning" if split == "train" else split
                series.append(Series(label, [p[0] for p in points], [p[1] for p in points], drawn=drawn))
        if series:
            best = history.get("best_epoch")
            marks = [(float(best), "kept")] if best is not None else []
            blocks.append(
                Chart(
                    f"training-{what}{suffix}",
                    f"Training: {what} by epoch",
                    name,
                    x_label="epoch",
                    y_label=what,
                    series=series,
                    marks=marks,
                )
            )
    cost = [
        (label, history.get(key))
        for label, key in (("seconds", "seconds"), ("images per second", "images_per_second"))
    ]
    told = ", ".join(f"{value:,.0f} {label}" for label, value in cost if is_number(value) and value)
    kept = {"head": "The head was kept: no epoch was better on val.", "finetuned": "The network was kept."}
    text = " ".join(filter(None, [kept.get(str(history.get("kept")), ""), f"Cost: {told}." if told else ""]))
    if text:
        blocks.append(Prose(f"training-cost{suffix}", text=text))
    return blocks


def _candidates(candidates: Sequence[Mapping[str, Any]], name: str) -> Table:
    """Return what `train` tried."""
    metric = "r2" if any("cv_r2" in each for each in candidates) else "accuracy"
    rows: list[list[Any]] = []
    several = len({each.get("backbone") for each in candidates}) > 1
    for each in candidates:
        backbone = [each.get("backbone")] if several else []
        cells = [each.get(f"cv_{metric}"), each.get(f"val_{metric}"), each.get("pooled"), each.get("seconds")]
        state = "chosen" if each.get("chosen") else "earlier run" if each.get("earlier") else ""
        rows.append([each.get("what"), *backbone, *cells, state])
    columns = ("tried", *(["network"] if several else []), "cross-validation", "val", "pooled", "seconds", "")
    seconds = sum(each["seconds"] for each in candidates if is_number(each.get("seconds")))
    note = (
        "Pooled is the evidence that chooses: each sample judged by a head that had not learnt from it. A "
        f"candidate replaces a simpler one only if it is better beyond the noise. All fits: {seconds:,.0f} s."
    )
    return Table("tried", f"Tried for {name} ({metric})", columns=columns, rows=rows, note=note)


def _comparison(result: Mapping[str, Any]) -> Table:
    """Return the rows of a comparison."""
    rows: list[list[Any]] = []
    chosen = result.get("chosen") or {}
    splits = [
        split for split in SPLITS[1:] if any(split in row.get("accuracy", {}) for row in result["rows"])
    ]
    for row in result["rows"]:
        same = all(row.get(name) == chosen.get(name) for name in ("name", "shots"))
        accuracies = [row.get("accuracy", {}).get(split) for split in splits]
        start = [row.get("name"), row.get("shots"), row.get("seeds")]
        rows.append([*start, *accuracies, row.get("seconds"), "chosen" if same else ""])
    columns = ("what", "samples per class", "seeds", *splits, "seconds a run", "")
    text = "How deep to unfreeze, and from which start. Val chose the epoch of each run, and the row."
    return Table("compared", "Fine-tuning compared", text, columns=columns, rows=rows)


def _advice(result: Mapping[str, Any]) -> Prose:
    recommended = result["recommendation"]
    if isinstance(recommended, dict):
        recommended = recommended.get("what") or recommended.get("text") or ""
    lines = " ".join(map(str, result["text"])) if isinstance(result.get("text"), list) else str(recommended)
    return Prose("advice", f"Advice: {result['scenario']}", lines)
