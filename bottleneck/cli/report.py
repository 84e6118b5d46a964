"""`bottleneck report`: one page of caches, heads, models and studies."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click
from rich.console import RenderableType

from bottleneck.cli.options import Memory, flags_of, loading_options
from bottleneck.cli.terminal import Command, Terminal, link_to, shows_results
from bottleneck.errors import counted
from bottleneck.files import readable
from bottleneck.report.page.config import ReportConfig

flag = flags_of(ReportConfig)


@click.command(cls=Command)
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@flag("-o", "--output", type=click.Path(), help="HTML file to write.")
@flag(
    "--max-size",
    type=Memory(),
    show_default="5MB",
    help="Size of the page, such as 5MB; thumbnails of images are left out first.",
)
@flag("--figures", type=click.Path(), help="Also write every figure as PNG and as SVG to this folder.")
@flag("--seed", type=int, help="Seed of the draw of samples for the map, and of t-SNE.")
@loading_options
@shows_results
def command(terminal: Terminal, paths: tuple[str, ...], **options: Any) -> None:
    """Write one page that shows what PATHS contain: caches, heads, models and studies.

    PATHS are caches (.h5), heads and models (.safetensors), results of commands (--json to a .json file),
    pictures (.png), and folders of compare, of transfer-study or of heads. The page is one file that opens
    from disk and sends nothing.
    """
    from bottleneck.report.page.report import write_report

    called = shlex.join(["bottleneck", *sys.argv[1:]])
    result = write_report(paths, command=called, reporter=terminal, **options)
    shown = f"{result.thumbnails:,} of {counted(result.images, 'thumbnail')}" if result.images else "no image"
    if result.overlays:
        images = result.images - result.overlays
        shown += (
            f": {counted(images, 'image')}, {counted(result.overlays, 'overlay')} of where the model looked"
        )
    lines: list[RenderableType] = [link_to("Report", result.path, f" ({readable(result.bytes)}, {shown}).")]
    if result.figures:
        lines.append(f"Figures: {counted(len(result.figures), 'file')} in {options['figures']}")
    terminal.result(result.to_json(), *lines)
