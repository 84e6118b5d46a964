"""The pages for users are true: command lines parse, tests that they name exist, translations agree.

`tests/test_walkthrough.py` runs the commands.
"""

import ast
import re

import click
import pytest

import bottleneck
from bottleneck.cli.main import COMMANDS
from tests.helpers.pages import PAGES, ROOT, blocks, commands_in, headings, parse, text_of


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
