"""The `bottleneck` command: subcommands, which are imported when called, and the exit codes of errors.

The function `command` of the module in the table is the subcommand. Nothing here imports torch, so
`bottleneck --help` is fast. A signal ends a run once: contexts close and committed work is saved, whatever
signals follow.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress

import click

from bottleneck import __version__
from bottleneck.cli.streams import protect_streams
from bottleneck.errors import BottleneckError, first_line
from bottleneck.progress import printable
from bottleneck.threads import wait_without_spinning

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
AGAIN = 0.02  # seconds
AT_ONCE, SECONDS = 3, 1.0  # so many signals within this time leave without waiting for the commit
COMMANDS = {
    "demo": ("bottleneck.cli.demo", "Run the whole chain on digits that scikit-learn ships, offline."),
    "train": ("bottleneck.cli.train", "Train the best classifier that images allow, in one command."),
    "extract": (
        "bottleneck.cli.extract",
        "Run the backbone once over images and keep its features in a cache.",
    ),
    "fit-head": (
        "bottleneck.cli.fit_head",
        "Fit heads on cached features, C chosen by cross-validation.",
    ),
    "finetune": ("bottleneck.cli.finetune", "Train a head and the blocks below it, from the cache."),
    "scratch": ("bottleneck.cli.scratch", "Train a network from random weights, the baseline of transfer."),
    "compare": ("bottleneck.cli.compare", "Compare how deep to unfreeze, and whether transfer is worth it."),
    "evaluate": ("bottleneck.cli.evaluate", "Measure a head or model on a cache or on images."),
    "predict": ("bottleneck.cli.predict", "Classify images with a head or model."),
    "explain": ("bottleneck.cli.explain", "Show which places of images speak for a class."),
    "export": ("bottleneck.cli.export", "Write a model as ONNX or torch.export program, a cache as a map."),
    "similar": ("bottleneck.cli.similar", "Find the images nearest to an image by cached features."),
    "audit": ("bottleneck.cli.audit", "Find wrong labels, copies, leaks and outliers in a cache."),
    "suggest": ("bottleneck.cli.suggest", "Say which images to label next, and whether choosing helps."),
    "drift": ("bottleneck.cli.drift", "Say whether new images are like those of a cache."),
    "advise": ("bottleneck.cli.advise", "Recommend a way of transfer for your data, with reasons."),
    "rank": ("bottleneck.cli.rank", "Rank backbones for your data by scores that need no training."),
    "transfer-study": ("bottleneck.cli.transfer_study", "Measure how transferable each layer is."),
    "report": ("bottleneck.cli.report", "Write one page of caches, heads, models and studies."),
    "inspect": ("bottleneck.cli.inspect", "Show the blocks of a backbone: shapes, parameters, costs."),
    "backbones": ("bottleneck.cli.backbones", "List the available backbones."),
    "cache": ("bottleneck.cli.cache", "Show, verify, export and merge feature caches."),
    "doctor": ("bottleneck.cli.doctor", "Show what a bug report needs: versions, engines, folders."),
}


class Interruption:
    """The first signal raises KeyboardInterrupt in the main thread; later ones are counted.

    Python drops an error that is raised while it runs a finaliser. Then the signal is sent once more.

    number : the first signal, None before it; it gives the exit code.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._stopping = False  # whether its error is on its way
        self._times: list[float] = []

    def begin(self) -> None:
        """Handle the signals from now on."""
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup, a job in the background
                signal.signal(number, self._handle)
        sys.unraisablehook = self._unraisable

    def _unraisable(self, dropped: sys.UnraisableHookArgs) -> None:
        if self.number is None or not isinstance(dropped.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(dropped)
            return
        self._stopping, self._times = False, self._times[:-1]
        again = threading.Timer(AGAIN, os.kill, (os.getpid(), self.number))  # after the finaliser
        again.daemon = True
        again.start()

    def _handle(self, number: int, frame: object) -> None:
        self._times = [*self._times, time.monotonic()][-AT_ONCE:]
        if len(self._times) == AT_ONCE and self._times[-1] - self._times[0] <= SECONDS:
            with suppress(OSError):
                os.write(2, b"Stopped at once. What was committed is saved.\n")
            os._exit(128 + (self.number or number))  # HDF5 may be at work in another thread
        if self.number is None:
            self.number = number
        if not self._stopping:
            self._stopping = True
            raise KeyboardInterrupt(number)

    def end(self) -> None:
        """Raise nothing from now on: the work has ended."""
        self._stopping = True


class LazyGroup(click.Group):
    """A group whose commands are imported when called; its help needs only the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bottleneck")
def group() -> None:
    """Transfer learning from cached ConvNet features.

    Run a frozen network once over your images, store its bottleneck features, and fit heads in seconds.
    Start with `bottleneck demo`, then `bottleneck extract FOLDER`.
    """


def main() -> None:
    """Entry point of the console command: 0 done, 1 failed, 2 wrong usage, 128 + signal when interrupted.

    The code is that of the work: it stays 0 where nobody reads the result (stdout is closed, a pager left),
    and is 1 where the result could not be written.
    """
    out, _ = protect_streams()
    wait_without_spinning()
    # scikit-learn imports pandas where it is installed, and pandas mistakes us for PyData's bottleneck.
    warnings.filterwarnings("ignore", message="Pandas requires version", category=UserWarning)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    interruption = Interruption()
    try:  # around everything that a signal can reach, also before the command and while its error is printed
        interruption.begin()
        code = _run(interruption)
        interruption.end()
    except KeyboardInterrupt:
        interruption.end()
        code = _interrupted(interruption.number or signal.SIGINT)
    sys.stdout.flush()
    sys.stderr.flush()
    if not code and out.error is not None and not isinstance(out.error, BrokenPipeError):
        _say(f"Error: the work is finished, but its result could not be printed: {_reason(out.error)}.")
        code = 1
    if interruption.number is not None:
        os._exit(code)  # threads of libraries may still be at work, and the end of Python would abort them
    sys.exit(code)


def _run(interruption: Interruption) -> int:
    """Run the command and print its error, if there is one; return the exit code."""
    debug = "--debug" in sys.argv
    try:
        return group.main(standalone_mode=False) or 0
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            print(error.ctx.get_usage(), file=sys.stderr)
            print(f"Try '{error.ctx.command_path} --help' for help.\n", file=sys.stderr)
        lines = error.format_message().replace("\n\t", " ").splitlines()
        _say(f"Error: {' '.join(line.strip() for line in lines)}")
        return error.exit_code
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:  # what click makes of a KeyboardInterrupt
        return _interrupted(interruption.number or signal.SIGINT)
    except Exception as error:
        if debug:
            raise
        if interruption.number is not None:  # a library made another error of the KeyboardInterrupt
            return _interrupted(interruption.number)
        if isinstance(error, BottleneckError):
            _say(f"Error: {error}")
        elif isinstance(error, OSError):
            _say(f"Error: {_system_error(error)}")
        else:
            what = f"Error: unexpected {type(error).__name__}: {first_line(error)}."
            _say(f"{what} Run again with --debug to see where.")
        return 1


def _interrupted(number: int) -> int:
    _say("Interrupted. Finished work is saved: run the same command again to continue.")
    return 128 + number


class _OneLine(logging.Formatter):
    """Formats a record without raw control characters; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


def _say(line: str) -> None:
    """Print one line on stderr."""
    print(printable(line), file=sys.stderr, flush=True)


def _system_error(error: OSError) -> str:
    """Return a message for an error of the system: a folder that cannot be written, a full disk."""
    path = f"{error.filename}: " if error.filename else ""
    return (
        f"{path}{_reason(error)}. Check the paths of this command and the free disk space, then run it again."
    )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
