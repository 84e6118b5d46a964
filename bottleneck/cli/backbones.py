"""`bottleneck backbones`: list the available networks."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.console import RenderableType

from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.errors import counted


@click.command(cls=Command)
@click.argument("pattern", required=False)
@shows_results
def command(terminal: Terminal, pattern: str | None) -> None:
    """List backbones whose name contains PATTERN, or matches it as a wildcard (`timm/vit*`)."""
    from bottleneck.backbones.listing import MOST_OPENED, available, timm_count

    matches = available(pattern)
    rows = [(b.name, b.weights, b.accuracy, b.parameters, b.features) for b in matches]
    shown: list[RenderableType] = [
        table("Backbones", ("name", "weights", "ImageNet top-1 %", "parameters", "features"), rows),
        "Use one with --backbone NAME, other weights with --backbone NAME:WEIGHTS (timm/NAME.WEIGHTS).",
    ]
    if not pattern:
        more = counted(timm_count(), "more architecture comes", "more architectures come")
        shown.append(f"{more} with timm: bottleneck backbones 'timm/*'.")
    if matches[0].features is None:
        shown.append(
            f"Feature widths are shown for up to {MOST_OPENED} architectures: give a narrower PATTERN."
        )
    terminal.result({"backbones": [asdict(backbone) for backbone in matches]}, *shown)
