"""`bottleneck cache`: show, verify, export and merge caches."""

from __future__ import annotations

from pathlib import Path

import click

from bottleneck.cli.terminal import Command, Terminal, data_sheet_lines, shows_results, table, views_text
from bottleneck.errors import CacheError, counted


@click.group()
def command() -> None:
    """Show, verify, export and merge feature caches."""


@command.command(cls=Command)
@click.argument("cache", type=click.Path())
@shows_results
def info(terminal: Terminal, cache: str) -> None:
    """Show what CACHE contains: backbone, nodes, images, samples, targets, failures."""
    from bottleneck.extraction.data_sheet import data_sheet
    from bottleneck.store.reader import FeatureCache, describe

    values = describe(cache)
    with FeatureCache(cache) as opened:
        values["notes"] = [note.to_json() for note in opened.samples.part_notes()]
        values["data"] = data_sheet(opened.samples, opened.failures, opened.samples.columns)
    shown = {
        "backbone": values["backbone"].get("name", "not recorded"),
        "weights": values["backbone"].get("weights", "not recorded"),
        "decoding": values["decoding"],
        "source": values["source"],
        "images": values["images"],
        "samples": ", ".join(f"{count:,} {split}" for split, count in values["splits"].items()) or 0,
        "failures": len(values["failures"]),
        "fingerprint": values["fingerprint"],
        "created with": values["created_with"],
    }
    for name, node in values["nodes"].items():
        if (measured := node["decoding_agreement"]) and measured.get("cosine") is not None:
            shown[f"{name}: cosine with exact decoding"] = f"{measured['cosine']:.4f}"
        calibration = node["calibration"]
        cosines = calibration.get("cosine") if isinstance(calibration, dict) else None
        if isinstance(cosines, list) and cosines and all(isinstance(each, float | int) for each in cosines):
            shown[f"{name}: least cosine with float32"] = f"{min(cosines):.4f}"
    if not values["finished"]:
        shown["state"] = "unfinished: the rows that were committed so far"
    nodes = [
        (
            name,
            "×".join(map(str, node["shape"])),
            node["dtype"],
            node["precision"],
            ", ".join(engine or "not recorded" for engine in node["engines"]),
            node["pool"],
            views_text(node["recipe"]),
        )
        for name, node in values["nodes"].items()
    ]
    terminal.result(
        values,
        table(str(cache), ("what", "value"), shown.items()),
        table("Nodes", ("node", "row", "dtype", "precision", "engine", "pool", "views"), nodes),
        *data_sheet_lines(values["data"]),
    )


@command.command(cls=Command)
@click.argument("cache", type=click.Path())
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    show_default="a minute, and more for large files",
    help="Seconds after which a file that is still being read counts as damaged.",
)
@shows_results
def verify(terminal: Terminal, cache: str, timeout: float | None) -> None:
    """Check every checksum, key, label and count of CACHE in a child process."""
    from bottleneck.store.verify import verify as verify_cache

    report = verify_cache(Path(cache), timeout=timeout)
    problems = table("Problems", ("problem",), [(problem,) for problem in report.problems])
    terminal.result(vars(report), "Sound." if report.ok else problems)
    if not report.ok:
        anew = "Restore it, or delete it and run `bottleneck extract` again: all is computed anew."
        raise CacheError(f"{cache} is damaged: {report.problems[0]}", report.mend or anew)


@command.command(cls=Command)
@click.argument("cache", type=click.Path())
@click.option("-o", "--output", type=click.Path(), required=True, help="A .npz or .parquet file to write.")
@shows_results
def export(terminal: Terminal, cache: str, output: str) -> None:
    """Write the features, keys, labels and splits of CACHE for other tools."""
    from bottleneck.store.convert import export as export_cache

    values = export_cache(Path(cache), Path(output))
    terminal.result(values, f"Written to {output}")


@command.command(cls=Command)
@click.argument("caches", type=click.Path(), nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    required=True,
    help="Cache to write: a new one, or one of CACHES to extend.",
)
@click.option("--dry-run", is_flag=True, help="Compare the caches and name missing shards; write nothing.")
@shows_results
def merge(terminal: Terminal, caches: tuple[str, ...], output: str, dry_run: bool) -> None:
    """Join CACHES that have one fingerprint into a new one, or into one of them."""
    from bottleneck.store.merge import merge as merge_caches

    values = merge_caches(caches, output, dry_run, terminal.tell)
    images = counted(values["images"], "image")
    done = f"Would write {images} to {output}" if dry_run else f"Written to {output}: {images}"
    terminal.result(values, done)
