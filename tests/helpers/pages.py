"""The pages for users, their blocks and headings, and the command lines in them."""

import re
import shlex
from pathlib import Path

import click

from bottleneck.cli.main import group

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


def text_of(path):
    return (ROOT / path).read_text("utf-8")


def blocks(text):
    """Fenced blocks of a page as (language, text)."""
    return FENCE.findall(text)


def headings(text):
    """(level, title) of the headings outside of code."""
    return [(len(marks), title) for marks, title in HEADING.findall(FENCE.sub("", text))]


def words_of(line):
    """Arguments of each call of `bottleneck` in a line of a shell, without comments."""
    calls, call = [], []
    for word in [*shlex.split(line.removeprefix("$ "), comments=True), "&&"]:
        if word in ("&&", "|", ";"):
            calls, call = [*calls, call], []
        else:
            call.append(word)
    return [call[1:] for call in calls if call[:1] == ["bottleneck"]]


def commands_in(text):
    """(arguments, whether they are a whole command) of all calls in blocks and within sentences."""
    for _, code in blocks(text):
        for line in code.replace("\\\n", " ").splitlines():
            if re.search(r"(^|&& )(\$ )?bottleneck ", line):
                yield from ((call, True) for call in words_of(line))
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        if code.startswith("bottleneck "):
            yield from ((call, False) for call in words_of(" ".join(code.split())))


def command_of(arguments):
    """The command, or the group, that a call names; its own arguments; and the context that it has."""
    context, command = click.Context(group, info_name="bottleneck"), group
    arguments = list(arguments)
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name, command, arguments = command.resolve_command(context, arguments)
        context = click.Context(command, context, name)
    return command, arguments, context


def parse(arguments, whole):
    """Let click parse a call as far as it can without running it. Raises UsageError."""
    command, arguments, context = command_of(arguments)
    if isinstance(command, click.Group) or not (arguments or whole):
        return
    try:
        command.make_context(context.info_name, list(arguments), parent=context.parent)
    except click.MissingParameter:
        if whole:
            raise
    except click.exceptions.Exit:  # --help
        pass
