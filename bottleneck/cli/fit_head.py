"""`bottleneck fit-head`: heads on cached features."""

from __future__ import annotations

import re
import sys
from shlex import quote
from typing import Any

import click
from rich.console import RenderableType

from bottleneck.cli.completion import complete_node
from bottleneck.cli.options import (
    DEVICES,
    Memory,
    classes_option,
    flags_of,
    labels_options,
    regression_option,
    strict_option,
)
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.errors import FitError, counted
from bottleneck.fitting.config import FitConfig
from bottleneck.heads.config import AUTO_C
from bottleneck.names import CLASS_WEIGHTS, HEAD_KINDS, HEADS_FOLDER, MULTI_CLASS, SCALES, SPLITS


class Strength(click.ParamType):
    """A positive number, several separated by commas, or the word auto."""

    name = "auto|number[,number…]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...] | str:
        if value == "auto" or isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).encode("ascii").decode().split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(0 < number < float("inf") for number in numbers):
            self.fail(f"{value!r} is neither auto nor positive numbers.", param, ctx)
        return numbers


class Counts(click.ParamType):
    """Whole numbers of 1 or more, separated by commas."""

    name = "number[,number…]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", str(value), re.ASCII):
            self.fail(f"{value!r} is not a list of whole numbers such as 1,2,5,10.", param, ctx)
        return tuple(sorted({int(part) for part in str(value).split(",")}))


NOT_CONVERGED = " *"  # beside a head in the table; a note says more

flag = flags_of(FitConfig)


@click.command(cls=Command)
@click.argument("cache", type=click.Path())
@click.option(
    "--target",
    "targets",
    multiple=True,
    show_default="all",
    help="Target (column of labels) to fit heads for; may be repeated.",
)
@labels_options
@click.option(
    "--without",
    type=click.Path(allow_dash=True),
    help="List of images, samples or groups to leave out: a name a line, a table, or - for stdin.",
)
@click.option(
    "--check",
    type=click.Path(),
    help="Fit nothing; say whether this head has seen an image of --without, by the digests in its file.",
)
@classes_option
@regression_option
@click.option(
    "--node",
    "nodes",
    shell_complete=complete_node,
    multiple=True,
    show_default="all vectors in the cache",
    help="Node whose cached features heads are fitted on, or A+B for several side by side; may be repeated.",
)
@flag("--head", multiple=True, type=click.Choice(HEAD_KINDS), help="Kind of head to fit; may be repeated.")
@flag(
    "--C",
    "C",
    type=Strength(),
    help=f"Inverse strength of the penalty: numbers to choose from, or auto for {len(AUTO_C)} values.",
)
@flag("--cv", type=click.IntRange(2, 100), help="Number of folds of the cross-validation.")
@flag(
    "--one-standard-error",
    is_flag=True,
    help="Choose the smallest C whose score is within one standard error of the best.",
)
@flag(
    "--scales",
    type=click.Choice(SCALES),
    help="How much each block of inputs counts (nodes of A+B, images, covariates): chosen, or equal.",
)
@flag(
    "--class-weight",
    type=click.Choice(CLASS_WEIGHTS),
    help="balanced gives every class the same total weight in the loss.",
)
@flag(
    "--multi-class",
    type=click.Choice(MULTI_CLASS),
    help="How several classes are predicted: by one softmax, or by one sigmoid per class (ovr).",
)
@flag(
    "--shots",
    type=Counts(),
    help="Train images per class for a curve of accuracy by their number, such as 1,2,5,10.",
)
@flag("--repeats", type=click.IntRange(1, 1000), help="Random draws for each number of --shots.")
@flag("--views", is_flag=True, help="Train on the cached views, validate on plain features.")
@flag(
    "--memory",
    type=Memory(),
    help="Memory for features and the work on them, such as 512MiB; more is read in blocks.",
)
@flag("--device", help=f"Device that fits the heads: {DEVICES}")
@click.option(
    "-o", "--output", type=click.Path(), default=HEADS_FOLDER, show_default=True, help="Folder for the heads."
)
@flag("--seed", type=int, help="Seed of the folds, of the draws of shots and of networks.")
@strict_option
@shows_results
def command(
    terminal: Terminal,
    cache: str,
    labels: str | None,
    without: str | None,
    check: str | None,
    **options: Any,
) -> None:
    """Fit a head for each target, node and kind on the train split of CACHE, C chosen by cross-validation."""
    from bottleneck.fitting.fit_heads import fit_heads
    from bottleneck.fitting.head_files import score_of

    listed = sys.stdin.read().splitlines() if without == "-" else without
    if check is not None:
        if listed is None:
            raise click.UsageError("--check needs the list: --without LIST.")
        return _checked(terminal, check, cache, listed)
    result = fit_heads(cache, labels=labels, without=listed, reporter=terminal, **options)
    files = dict(result.files)
    if files:  # matplotlib takes a second of a core to import
        from bottleneck.report.curves import head_curves

        files |= head_curves(result)
    splits = [split for split in SPLITS if any(score_of(head, split) is not None for head in result.heads)]
    measured = "test" if "test" in splits else splits[-1] if splits else ""
    bounded = [f"{measured} 95 %"] * any(measured in head["accuracy_ci95"] for head in result.heads)
    targets = sorted({head["target"] for head in result.heads})
    several = ("target",) if len(targets) > 1 else ()
    shown: list[RenderableType] = [
        table(
            "Heads" if several else f"Heads of target {targets[0]}",
            (*several, "node", "head", "C", "n", "cv", *splits, *bounded),
            [
                (
                    *(head[name] for name in several),
                    head["node"],
                    head["head"] + ("" if head["converged"] else NOT_CONVERGED),
                    head["C"],
                    head["n"],
                    *(_score(score_of(head, split), head) for split in ("cv", *splits)),
                    *(_interval(head["accuracy_ci95"].get(measured)) for _ in bounded),
                )
                for head in result.heads
            ],
        )
    ]
    for curve in result.curves.get("shots", ()):
        columns = (curve["shots"], curve["mean"], curve["low"], curve["high"])
        title = f"{curve['target']} on {curve['node']}: accuracy by images per class"
        shown.append(table(title, ("shots", "mean", "2.5 %", "97.5 %"), zip(*columns, strict=True)))
    shown += [f"Wrote {path}" for path in files.values()]
    values = result.to_json() | {"files": files}
    again = f"{quote(result.heads[0]['path'])} {quote(cache)}"
    if labels is not None:
        again += f" --labels {quote(labels)}"
        if separator := options["label_separator"]:
            again += f" --label-separator {quote(separator)}"
    terminal.result(values, *shown, f"Next: bottleneck evaluate {again}")


def _checked(terminal: Terminal, head: str, cache: str, listed: str | list[str]) -> None:
    """Print whether a head has seen an image of the list; FitError unless it is proven that it has not."""
    from bottleneck.fitting.left_out import seen_images

    found = seen_images(head, cache, listed)
    seen, images = len(found["seen"]), found["images"]
    line = (
        f"{head} was fitted on {counted(found['trained_on'], 'image')}; none is among the {images:,} listed."
    )
    if not found["proven"]:
        line = f"{head} has seen {seen:,} of the {counted(images, 'image')} of the list"
        line += f", such as {found['seen'][0]}" if seen else ""
        line += f"; of {found['undecided']:,} its file cannot tell." if found["undecided"] else "."
    terminal.result(found, *([line] if found["proven"] else []))
    if not found["proven"]:
        raise FitError(line, f"Fit it again: bottleneck fit-head {quote(cache)} --without LIST")


def _score(value: float | None, head: dict[str, Any]) -> float | str | None:
    """Return an accuracy as it is, and R² as text that says so."""
    return value if value is None or "r2" not in head else f"R² {value:.4g}"


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.4f} … {bounds[1]:.4f}"
