"""The `bottleneck` command: a table of lazily loaded subcommands; errors become exit codes here.

A command lives in the module that the table names, as `command`. Nothing here imports torch, so that
`bottleneck --help` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import warnings

import click

from bottleneck import __version__
from bottleneck.errors import BottleneckError, first_line

COMMANDS = {
    "demo": ("bottleneck.cli.demo", "Run the whole chain on digits that scikit-learn ships, offline."),
    "extract": (
        "bottleneck.cli.extract",
        "Run the backbone once over images and keep its features in a cache.",
    ),
    "fit-head": (
        "bottleneck.cli.fit_head",
        "Fit heads on cached features, C chosen by cross-validation.",
    ),
    "finetune": ("bottleneck.cli.finetune", "Unfreeze blocks below a head and train them from the cache."),
    "scratch": ("bottleneck.cli.scratch", "Train a network from nothing: the baseline of transfer."),
    "compare": ("bottleneck.cli.compare", "Try how deep to unfreeze, and whether transfer is worth it."),
    "evaluate": ("bottleneck.cli.evaluate", "Measure a head or model on a cache or on images."),
    "predict": ("bottleneck.cli.predict", "Classify images with a head or model."),
    "export": ("bottleneck.cli.export", "Write a head or model as ONNX or as a torch.export program."),
    "similar": ("bottleneck.cli.similar", "Find the images nearest to an image by cached features."),
    "advise": ("bottleneck.cli.advise", "Say which transfer suits your data, and why."),
    "rank": ("bottleneck.cli.rank", "Rank backbones for your data by scores that need no training."),
    "transfer-study": ("bottleneck.cli.transfer_study", "Ask how transferable each layer is."),
    "inspect": ("bottleneck.cli.inspect", "Open a backbone up: blocks, shapes, parameters, costs."),
    "backbones": ("bottleneck.cli.backbones", "List the backbones that can be had."),
    "cache": ("bottleneck.cli.cache", "Look into caches, verify, export and merge them."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; its help reads only the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(COMMANDS[name][0]).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bottleneck")
def group() -> None:
    """Transfer learning from cached ConvNet features.

    Run a frozen network once over your images, keep its bottleneck features, and fit heads in seconds.
    Start with `bottleneck demo`, then `bottleneck extract FOLDER`.
    """


def main() -> None:
    """Entry point of the console command: 0 done, 1 failed, 2 wrong usage, 128 + signal when interrupted."""
    debug = "--debug" in sys.argv
    signal.signal(signal.SIGTERM, _raise_interrupt)
    # scikit-learn imports pandas where it is installed, and pandas takes us for PyData's bottleneck.
    warnings.filterwarnings("ignore", message="Pandas requires version", category=UserWarning)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        sys.exit(group.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort) as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        click.echo(
            "Interrupted. What was committed is kept: run the same command again to continue.", err=True
        )
        sys.exit(128 + int(number))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except BottleneckError as error:
        if debug:
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        if debug:
            raise
        click.echo(f"Error: {_of_the_system(error)}", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        what = f"Error: unexpected {type(error).__name__}: {first_line(error)}."
        click.echo(f"{what} Run again with --debug to see where.", err=True)
        sys.exit(1)


def _of_the_system(error: OSError) -> str:
    """What the system refused, for users: a folder that cannot be written, a disk that is full."""
    place = f"{error.filename}: " if error.filename else ""
    return (
        f"{place}{error.strerror or error}. Look at the paths of this command and at the disk's free space, "
        "then run it again."
    )


def _raise_interrupt(number: int, frame: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: contexts close, committed work stays."""
    raise KeyboardInterrupt(number)
