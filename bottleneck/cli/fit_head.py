"""`bottleneck fit-head`: heads on cached features."""

from __future__ import annotations

import click

from bottleneck.cli.terminal import Terminal, shows_results, table


class Strength(click.ParamType):
    """A positive number, or the word auto."""

    name = "number|auto"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if value == "auto" or isinstance(value, float):
            return value
        try:
            number = float(str(value))
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            self.fail(f"{value!r} is neither a positive number nor auto.", param, ctx)
        return number


@click.command()
@click.argument("cache", type=click.Path())
@click.option("--target", "targets", multiple=True, help="May be repeated. [default: all in the cache]")
@click.option("--node", "nodes", multiple=True, help="May be repeated. [default: all vectors in the cache]")
@click.option("--C", "C", type=Strength(), default="auto", help="Inverse penalty. [default: cross-validated]")
@click.option("--cv", type=click.IntRange(2, 100), default=5, show_default=True, help="Folds.")
@click.option("--class-weight", type=click.Choice(["balanced"]), help="Let rare classes count as much.")
@click.option(
    "-o", "--output", type=click.Path(), default="heads", show_default=True, help="Folder for heads."
)
@click.option("--seed", type=int, default=0, show_default=True)
@shows_results
def command(terminal: Terminal, cache: str, **options: object) -> None:
    """Fit a head for each target and node of CACHE on its train split."""
    from bottleneck.fitting import fit_heads

    result = fit_heads(cache, progress=terminal.progress, **options)
    splits = [s for s in ("train", "val", "test") if any(s in head["accuracy"] for head in result.heads)]
    rows = [
        [head["target"], head["node"], head["head"], head["C"], head["cv_accuracy"]]
        + [head["accuracy"].get(split) for split in splits]
        for head in result.heads
    ]
    terminal.result(
        result.to_json(),
        table("Heads", ("target", "node", "head", "C", "cv accuracy", *splits), rows),
        *(f"Next: bottleneck evaluate {head['path']} {cache}" for head in result.heads[:1]),
    )
