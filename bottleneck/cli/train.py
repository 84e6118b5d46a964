"""`bottleneck train`: from a folder of images to the best classifier that they allow."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from bottleneck.cli.options import (
    decoding_option,
    engine_options,
    flags_of,
    input_options,
    reading_options,
    strict_option,
    trust_code_option,
)
from bottleneck.cli.terminal import Command, Terminal, data_sheet_lines, link_to, shows_results, table
from bottleneck.data.config import ReadConfig
from bottleneck.errors import BottleneckError, Note, counted
from bottleneck.extraction.config import ExtractConfig
from bottleneck.files import readable
from bottleneck.names import DEFAULT_BACKBONE, DTYPES
from bottleneck.progress import duration
from bottleneck.records import config_from
from bottleneck.studies.study_config import FINETUNING, TrainConfig

if TYPE_CHECKING:
    from bottleneck.studies.train.plan import TrainPlan
    from bottleneck.studies.train.result import TrainResult

REPORT_SECONDS = 20.0  # that are kept for the report where minutes are given
flag, extraction_flag = flags_of(TrainConfig), flags_of(ExtractConfig)


@click.command(cls=Command)
@click.argument("source", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    show_default="models/SOURCE.safetensors",
    help="Model file to write.",
)
@click.option(
    "--backbone",
    multiple=True,
    show_default=DEFAULT_BACKBONE,
    help="Network, as in extract; repeat the flag to compare several, the preferred one first.",
)
@flag(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    show_default="as many as it needs",
    help="Time that the run may take; what is left out to keep to it is told.",
)
@flag(
    "--finetune",
    type=click.Choice(FINETUNING),
    help="Fine-tune from the cache: where the evidence says that it may pay, never, or always.",
)
@click.option(
    "--report/--no-report",
    default=True,
    show_default=True,
    help="Write a page on the model and its data beside the model at the end.",
)
@click.option("--plan", is_flag=True, help="Show what would be tried and what it would cost, and do nothing.")
@flag("--target", show_default="the first", help="Target (column of labels) to learn.")
@click.option(
    "--cache",
    type=click.Path(),
    show_default="MODEL.work/",
    help="Cache (.h5) of the one backbone, or a folder for the caches of several.",
)
@flag("--cv", type=click.IntRange(2, 100), help="Number of folds of the cross-validation.")
@extraction_flag(
    "--weights",
    show_default="the published ones",
    help="Weights of the network: an id, a .pth or .safetensors file, or none for random ones.",
)
@extraction_flag(
    "--dtype", type=click.Choice(DTYPES), show_default=DTYPES[0], help="Type in which features are stored."
)
@extraction_flag(
    "--flip",
    is_flag=True,
    help="Extract the mirror image of each image too, and average both where cross-validation gains.",
)
@input_options(ExtractConfig.in_channels)
@decoding_option
@flag("--seed", type=int, help="Seed of folds, of random weights and of splits that are set aside.")
@trust_code_option
@strict_option
@engine_options
@reading_options
@shows_results
def command(terminal: Terminal, source: str, plan: bool, report: bool, **options: Any) -> None:
    """Train the best classifier that the images of SOURCE allow, and write it as one model file.

    SOURCE is what `extract` takes. Features of every stage are extracted in one pass and heads are tried on
    each; cross-validation and val together choose; test is read once. A second run computes only what is new.
    """
    from bottleneck.studies.train.train import plan_training, train

    if plan:
        planned = plan_training(
            source,
            options["output"],
            backbone=options["backbone"],
            cache=options["cache"],
            config=config_from(TrainConfig, options),
            extraction=config_from(ExtractConfig, options, backbone=None),
            reading=config_from(ReadConfig, options),
            strict=options["strict"],
        )
        terminal.result(planned.to_json(), *_plan_lines(planned))
        return
    result = train(source, reporter=terminal, **options)
    page, seconds, notes = _report(terminal, result, options) if report else (None, 0.0, [])
    metric, several = result.metric, len({each["backbone"] for each in result.candidates}) > 1
    columns = ("", "tried", *(["backbone"] if several else []), "cv", "val", "pooled", "seconds")
    tried = [
        (
            "→" if each["chosen"] else "",
            each["what"] + (" (earlier run)" if each.get("earlier") else ""),
            *([each["backbone"]] if several else []),
            each[f"cv_{metric}"],
            each[f"val_{metric}"],
            each["pooled"],
            round(each["seconds"], 1),
        )
        for each in result.candidates
    ]
    measured: list[tuple[object, ...]] = []
    for name, values in {"cross-validation": result.cross_validation, **result.metrics}.items():
        # The interval is of new samples, which those that the model was fitted on are not.
        interval = "" if name == "train" else _interval(values.get("accuracy_ci95"))
        if values:
            measured.append((name, values["n"], values[metric], interval, MEANS.get(name, "")))
    shown: list[RenderableType] = [
        *data_sheet_lines(result.data),
        table(f"Tried ({metric})", columns, tried),
        table(f"Model: {result.chosen['what']}", ("", "samples", metric, "95 % interval", ""), measured),
        f"{counted(result.images['computed'], 'image')} computed, {result.images['reused']:,} reused; "
        f"{result.seconds + seconds:.1f} s in all. Card: {result.files['card']}",
        *([link_to("Report", page)] if page else []),
        f"Next: bottleneck predict {quote(result.model)} IMAGES",
    ]
    values = result.to_json()
    values |= {"report": page, "seconds": result.seconds + seconds, "notes": [*values["notes"], *notes]}
    terminal.result(values, *shown)


def _report(
    terminal: Terminal, result: TrainResult, options: dict[str, Any]
) -> tuple[str | None, float, list[dict[str, Any]]]:
    """Write the page of the model beside it. Return its path, the seconds that took, and notes."""
    output = Path(result.model).with_suffix(".html")
    paths = [result.model, *(path for name, path in result.files.items() if name.startswith("cache "))]
    if options["minutes"] is not None and result.seconds + REPORT_SECONDS > 60 * options["minutes"]:
        again = shlex.join(["bottleneck", "report", *paths, "-o", str(output)])
        text = f"The report was left out to keep to the minutes: {again} makes it."
        return None, 0.0, [Note("report-left-out", text).to_json()]
    from bottleneck.report.page.report import write_report

    called = shlex.join(["bottleneck", *sys.argv[1:]])
    try:
        page = write_report(
            paths,
            output=output,
            weights=options["weights"],
            trust_code=options["trust_code"],
            command=called,
            reporter=terminal,
        )
    except (BottleneckError, OSError) as error:  # the model is written; it must not seem to have failed
        return None, 0.0, [Note("report-not-written", f"There is no report: {error}").to_json()]
    told = [replace(note, message=f"In the report: {note.message}") for note in page.notes]
    return page.path, page.seconds, [note.to_json() for note in told]


MEANS = {
    "cross-validation": "each sample by a fit without it",
    "train": "learnt from, says nothing of new images",
    "val": "by a fit on train alone",
}


def _plan_lines(plan: TrainPlan) -> list[RenderableType]:
    """Return the plan for people."""
    from bottleneck.studies.train.plan import DEGRADED

    rows: list[tuple[object, ...]] = [
        (f"extract {cost}", duration(cost.seconds), readable(cost.bytes), cost.known_by)
        for cost in plan.extraction
    ]
    fits = (
        f"{counted(plan.heads, 'head')} on single nodes, up to {plan.combinations} on several; the final fit"
    )
    rows.append((fits, duration(plan.head_seconds), "", plan.known_by["heads"]))
    start = "load libraries and networks, build engines, write the model"
    rows.append((start, duration(plan.startup_seconds), "", plan.known_by["start"]))
    rows.append(("all of that", duration(plan.seconds), readable(plan.bytes), ""))
    if plan.finetuning:
        what = "tune a block, where the best head leaves errors: at most"
        size = readable(plan.tuning_bytes)
        rows.append((what, duration(plan.tuning_seconds), size, plan.known_by["tuning"]))
    lines: list[RenderableType] = [table("Would do", ("what", "about", "disk", "known by"), rows)]
    lines.append(f"Samples: {plan.samples:,} of {plan.samples_of:,}. Model: {plan.model}")
    if plan.not_finetuned:
        lines.append(f"Nothing is fine-tuned: {plan.not_finetuned}.")
    if plan.minutes is not None:
        lines.append(
            f"To keep to {duration(60 * plan.minutes)}, these are saved first: {', '.join(DEGRADED)}."
        )
    return lines


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.4f} … {bounds[1]:.4f}"
