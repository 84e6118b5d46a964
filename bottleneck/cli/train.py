"""`bottleneck train`: from a folder of images to the best classifier that they allow."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from bottleneck.cli.options import (
    engine_options,
    flags_of,
    input_options,
    reading_options,
    strict_option,
    trust_code_option,
)
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.data.config import ReadConfig
from bottleneck.extraction.config import ExtractConfig
from bottleneck.files import readable
from bottleneck.names import DEFAULT_BACKBONE, DTYPES
from bottleneck.progress import duration
from bottleneck.records import config_from
from bottleneck.studies.study_config import FINETUNING, TrainConfig

if TYPE_CHECKING:
    from bottleneck.studies.train.plan import TrainPlan

flag, extraction_flag = flags_of(TrainConfig), flags_of(ExtractConfig)


@click.command(cls=Command)
@click.argument("source")
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
@input_options(ExtractConfig.in_channels)
@flag("--seed", type=int, help="Seed of folds, of random weights and of splits that are set aside.")
@trust_code_option
@strict_option
@engine_options
@reading_options
@shows_results
def command(terminal: Terminal, source: str, plan: bool, **options: Any) -> None:
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
    metric, several = result.metric, len({each["backbone"] for each in result.candidates}) > 1
    columns = ("", "tried", *(["backbone"] if several else []), "cv", "val", "pooled", "seconds")
    tried = [
        (
            "→" if each["chosen"] else "",
            each["what"],
            *([each["backbone"]] if several else []),
            each[f"cv_{metric}"],
            each[f"val_{metric}"],
            each["pooled"],
            round(each["seconds"], 1),
        )
        for each in result.candidates
    ]
    measured: list[tuple[object, ...]] = [("cross-validation", None, result.chosen[f"cv_{metric}"], "", "")]
    for split, values in result.metrics.items():
        # The interval is of new samples, which those that the model was fitted on are not.
        interval = "" if split == "train" else _interval(values.get("accuracy_ci95"))
        measured.append((split, values["n"], values[metric], interval, LEARNT.get(split, "")))
    shown: list[RenderableType] = [
        table(f"Tried ({metric})", columns, tried),
        table(f"Model: {result.chosen['what']}", ("", "samples", metric, "95 % interval", ""), measured),
        f"{result.images['computed']:,} images computed, {result.images['reused']:,} reused; "
        f"{result.seconds:.1f} s in all. Card: {result.files['card']}",
        f"Next: bottleneck predict {quote(result.model)} IMAGES",
    ]
    terminal.result(result.to_json(), *shown)


LEARNT = {"train": "learnt from, says nothing of new images"}


def _plan_lines(plan: TrainPlan) -> list[RenderableType]:
    """Return the plan for people."""
    from bottleneck.studies.train.plan import DEGRADED

    rows = [(f"extract {cost}", duration(cost.seconds), readable(cost.bytes)) for cost in plan.extraction]
    fits = f"{plan.heads} heads on single nodes, up to {plan.combinations} on several; the final fit"
    rows.append((fits, duration(plan.head_seconds), ""))
    rows.append(("all", duration(plan.seconds), readable(plan.bytes)))
    lines: list[RenderableType] = [table("Would do", ("what", "about", "disk"), rows)]
    lines.append(f"Samples: {plan.samples:,} of {plan.samples_of:,}. Model: {plan.model}")
    if plan.minutes is not None:
        lines.append(
            f"To keep to {duration(60 * plan.minutes)}, these are saved first: {', '.join(DEGRADED)}."
        )
    return lines


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.4f} … {bounds[1]:.4f}"
