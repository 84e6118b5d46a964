"""What commands print: JSON that any parser takes, tables that show text as it is."""

import io
import json
from types import SimpleNamespace

import click
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from bottleneck.cli.main import COMMANDS, group
from bottleneck.cli.options import Crop
from bottleneck.cli.terminal import Terminal, _Rate, shows_results, table
from bottleneck.records import plain


def test_plain_makes_numpy_and_what_is_not_finite_json():
    value = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        "c": (float("nan"), np.inf),
        3: np.bool_(True),
        "d": None,
    }
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "a": 0.5,
        "b": [0, 1],
        "c": [None, None],
        "3": True,
        "d": None,
    }


def test_json_is_the_only_thing_on_stdout():
    @click.command()
    @shows_results
    def command(terminal: Terminal) -> None:
        with terminal.step("Working", total=2) as advance:
            advance(2)
        terminal.result({"name": "개미 [bold]"}, "shown to people")

    result = CliRunner().invoke(command, ["--json"])
    assert json.loads(result.stdout) == {"name": "개미 [bold]"}
    assert "Working" in result.stderr


def test_tables_show_markup_as_text(capsys):
    Terminal(as_json=False).out.print(table("[red]t", ("a", "b"), [("[bold]x", 1234), (None, 0.25)]))
    printed = capsys.readouterr().out
    assert "[bold]x" in printed
    assert "1,234" in printed


@pytest.mark.parametrize(("given", "value"), [("0.5", 0.5), ("1", 1.0), ("squash", "squash")])
def test_crop_takes_a_share_or_squash(given, value):
    assert Crop().convert(given, None, None) == value


@pytest.mark.parametrize("given", ["0", "1.5", "middle", "nan"])
def test_other_crops_are_wrong_usage(given):
    with pytest.raises(click.BadParameter, match="neither"):
        Crop().convert(given, None, None)


def test_every_command_loads_and_has_json_help(monkeypatch):
    for name in COMMANDS:
        command = group.get_command(None, name)
        leaves = command.commands.values() if isinstance(command, click.Group) else [command]
        for leaf in leaves:
            assert leaf.help, name
            assert "--json" in [flag for option in leaf.params for flag in option.opts], name


def test_unknown_command_is_wrong_usage():
    assert CliRunner().invoke(group, ["nonsense"]).exit_code == 2


def test_what_is_told_is_shown_as_it_is(capsys):
    Terminal(as_json=True).tell("Fit it anew: bottleneck fit-head '[bold] photos [/x].h5' " + "--C 1 " * 40)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("Fit it anew: bottleneck fit-head '[bold] photos [/x].h5' --C 1")
    assert len(told.err.splitlines()) == 1


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_what_is_being_done_is_shown_on_a_terminal_alone(on_a_terminal, monkeypatch):
    """While it loads, and whenever nothing else is reported."""
    terminal, stream = Terminal(as_json=False), io.StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=stream, force_terminal=on_a_terminal, width=80))
    with terminal.loading("report"):
        terminal.tell("One line.")
        with terminal.step("Drawing", total=1) as advance:
            advance(1)
    shown = ("report: loading libraries", "report: working", "report: after “Drawing”, working on")
    assert [text in stream.getvalue() for text in shown] == [on_a_terminal] * 3
    assert "One line." in stream.getvalue()


@pytest.mark.parametrize(("elapsed", "shown"), [(0.2, ""), (2.0, "50 images/s")])
def test_a_step_below_a_second_has_no_rate(elapsed, shown):
    task = SimpleNamespace(finished_speed=50.0, speed=None, elapsed=elapsed)
    assert str(_Rate("images").render(task)) == shown
