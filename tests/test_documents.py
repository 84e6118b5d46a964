"""The pages for users are true: command lines parse, tests that they name exist, translations agree.

The commands are parsed and not run; that every page's output is what it shows is not checked.
"""

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import bottleneck
from bottleneck.cli.main import COMMANDS, group

ROOT = Path(__file__).parents[1]
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


def parse(arguments, whole):
    """Let click parse a call as far as it can without running it. Raises UsageError."""
    context, command = click.Context(group, info_name="bottleneck"), group
    arguments = list(arguments)
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name, command, arguments = command.resolve_command(context, arguments)
        context = click.Context(command, context, name)
    if isinstance(command, click.Group) or not (arguments or whole):
        return
    try:
        command.make_context(context.info_name, list(arguments), parent=context.parent)
    except click.MissingParameter:
        if whole:
            raise
    except click.exceptions.Exit:  # --help
        pass


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_parses(page):
    wrong = []
    for arguments, whole in commands_in(page.read_text("utf-8")):
        try:
            parse(arguments, whole)
        except click.UsageError as error:
            wrong.append(f"bottleneck {' '.join(arguments)}: {error.format_message()}")
    assert wrong == []


def test_a_wrong_command_line_is_found():
    page = "```sh\nbottleneck extract photos --valfraction 0.2\n```\n"
    page += "`bottleneck fit-heads`, `bottleneck rank --by x a`"
    for arguments, whole in commands_in(page):
        with pytest.raises(click.UsageError):
            parse(arguments, whole)
    assert len(list(commands_in(page))) == 3
    with pytest.raises(click.MissingParameter):
        parse(["extract", "--flip"], True)


def test_the_start_page_and_readme_have_command_lines():
    assert len(list(commands_in(text_of("docs/index.md")))) >= 8
    used = {arguments[0] for arguments, _ in commands_in(text_of("README.md"))}
    assert set(COMMANDS) <= used


def test_promises_name_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text_of("docs/promises.md"))
    assert len(named) >= 12
    missing = []
    for path, name in named:
        functions = {
            node.name for node in ast.walk(ast.parse(text_of(path))) if isinstance(node, ast.FunctionDef)
        }
        missing += [f"{path}::{name}"] * (name not in functions)
    assert missing == []


@pytest.mark.parametrize("page", ["index.md", "concepts.md"])
def test_the_korean_page_agrees(page):
    english, korean = text_of(f"docs/{page}"), text_of(f"docs/ko/{page}")
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(korean)]
    assert blocks(english) == blocks(korean)
    assert list(commands_in(english)) == list(commands_in(korean))
    assert all(re.search("[가-힣]", title) for _, title in headings(korean))


def test_the_korean_readme_agrees():
    english, korean = text_of("README.md"), text_of("README.ko.md")
    titles = [title for _, title in headings(english)]
    assert [title for _, title in headings(korean) if title.split(" · ")[0] not in titles] == []
    calls = [call for call, _ in commands_in(english)]
    assert [call for call, _ in commands_in(korean) if call not in calls] == []


def test_the_citation_has_the_version_of_the_package():
    assert f"version: {bottleneck.__version__}\n" in text_of("CITATION.cff")
