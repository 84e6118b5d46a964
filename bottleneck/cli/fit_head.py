"""`bottleneck fit-head`: heads on cached features."""

from __future__ import annotations

import re
from shlex import quote

import click

from bottleneck.cli.options import Memory, labels_options
from bottleneck.cli.terminal import Terminal, shows_results, table

SPLITS = ("train", "val", "test")


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


@click.command()
@click.argument("cache", type=click.Path())
@click.option("--target", "targets", multiple=True, help="May be repeated. [default: all there are]")
@labels_options
@click.option(
    "--regression", multiple=True, help="Target whose whole numbers are quantities, not classes; repeatable."
)
@click.option("--node", "nodes", multiple=True, help="May be repeated. [default: all vectors in the cache]")
@click.option(
    "--head",
    multiple=True,
    type=click.Choice(["logistic", "ridge", "nearest-mean", "knn", "mlp"]),
    default=["logistic"],
    help="May be repeated. [default: logistic]",
)
@click.option("--C", "C", type=Strength(), default="auto", help="Inverse penalty. [default: cross-validated]")
@click.option("--cv", type=click.IntRange(2, 100), default=5, show_default=True, help="Folds.")
@click.option("--one-standard-error", is_flag=True, help="Take the simplest head as good as the best one.")
@click.option("--class-weight", type=click.Choice(["balanced"]), help="Let rare classes count as much.")
@click.option(
    "--multi-class",
    type=click.Choice(["multinomial", "ovr"]),
    default="multinomial",
    show_default=True,
    help="One softmax, or one sigmoid per class.",
)
@click.option("--shots", type=Counts(), help="Images per class for the k-shot curve, such as 1,2,5,10.")
@click.option(
    "--repeats", type=click.IntRange(1, 1000), default=20, show_default=True, help="Draws per shot."
)
@click.option("--views", is_flag=True, help="Train on the cached views, validate on plain features.")
@click.option("--memory", type=Memory(), help="For rows and work; more is streamed. [default: 4GiB]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option(
    "-o", "--output", type=click.Path(), default="heads", show_default=True, help="Folder for heads."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of folds, shots and networks.")
@shows_results
def command(terminal: Terminal, cache: str, **options: object) -> None:
    """Fit a head for each target, node and kind on the train split of CACHE, C chosen by cross-validation."""
    from bottleneck.fitting.fit_heads import fit_heads
    from bottleneck.report.head_curves import head_curves

    result = fit_heads(cache, reporter=terminal, **options)
    files = result.files | head_curves(result)
    splits = [split for split in SPLITS if any(split in head["accuracy"] for head in result.heads)]
    measured = "test" if "test" in splits else splits[-1] if splits else ""
    shown = [
        table(
            "Heads",
            ("target", "node", "head", "C", "n", "cv", *splits, f"{measured} 95 %"),
            [
                (
                    head["target"],
                    head["node"],
                    head["head"],
                    head["C"],
                    head["n"],
                    _first(head["cv_accuracy"], head, "cv"),
                    *(_first(head["accuracy"].get(split), head, split) for split in splits),
                    _interval(head["accuracy_ci95"].get(measured)),
                )
                for head in result.heads
            ],
        )
    ]
    for curve in result.curves.get("shots", ()):
        columns = (curve["shots"], curve["mean"], curve["low"], curve["high"])
        title = f"{curve['target']} on {curve['node']}: accuracy by images per class"
        shown.append(table(title, ("shots", "mean", "2.5 %", "97.5 %"), zip(*columns, strict=True)))
    shown += [f"Note: {note}" for note in result.notes]
    shown += [f"Wrote {path}" for path in files.values()]
    values = result.to_json() | {"files": files}
    again = f"{quote(result.heads[0]['path'])} {quote(cache)}"
    if options["labels"] is not None:
        again += f" --labels {quote(options['labels'])}"
    terminal.result(values, *shown, f"Next: bottleneck evaluate {again}")


def _first(accuracy: float | None, head: dict, split: str) -> float | str | None:
    """Accuracy, or R² where the target is a number."""
    if accuracy is not None or "r2" not in head:
        return accuracy
    value = head["r2"].get(split)
    return None if value is None else f"R² {value:.4g}"


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.4f} … {bounds[1]:.4f}"
