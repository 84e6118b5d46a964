"""What reaches a terminal or a spreadsheet is inert; streams that are narrow, closed or full cost nothing."""

import json
import os
import subprocess
import sys

import pytest

from bottleneck.cli.terminal import Terminal, table
from bottleneck.progress import printable
from bottleneck.report.glyphs import take_note

HOSTILE = "a\x1b[2J\x07\r\n\x9b31m\u202egpj\u2066\u2028\x7f\x85\ud800z"


def spawn(*arguments, **options):
    command = [sys.executable, "-m", "bottleneck", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, timeout=240, **options)


def test_escaped_as_python_writes_it():
    assert printable(HOSTILE) == r"a\x1b[2J\x07\r\n\x9b31m\u202egpj\u2066\u2028\x7f\x85\ud800z"
    words = "개미 🐜 👩\u200d🔬 می\u200cخواهم é"  # joiners are part of words and emojis
    assert printable(words) == words


def test_tables_notes_messages_and_progress_are_inert(capsys):
    take_note()  # of figures that other tests drew in this process
    terminal = Terminal(as_json=False)
    with terminal.step(HOSTILE, total=1):
        pass
    terminal.tell(HOSTILE)
    terminal.result({"notes": [HOSTILE]}, table(HOSTILE, [HOSTILE], [[HOSTILE]]), f"Written to {HOSTILE}")
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not set(text) & set("\x1b\x07\r\x9b\u202e\u2066\u2028\x7f\x85\ud800")
    assert [line for line in out.splitlines() if line.startswith("Note")] == [f"Note: {printable(HOSTILE)}"]


def test_json_is_ascii_and_gives_the_names_back(capsys):
    Terminal(as_json=True).result({"name": HOSTILE + "개미"})
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.rstrip("\n").isprintable()
    assert json.loads(out)["name"] == HOSTILE + "개미"


@pytest.mark.parametrize("name", ["no\x1b[31m\nsuch\u202e", "no\rsuch"])
def test_an_error_is_one_line(name):
    result = spawn("cache", "info", name + ".h5")
    assert result.returncode == 1
    (line,) = result.stderr.decode().split("\n")[:-1]
    assert printable(name) in line
    usage = spawn("backbones", "--nonsense" + name)
    assert usage.returncode == 2
    assert b"\x1b" not in usage.stderr


WORK = """
import sys, types, click
from pathlib import Path
from bottleneck.cli import main
from bottleneck.cli.terminal import shows_results, table

@click.command()
@click.argument("path")
@shows_results
def command(terminal, path):
    with terminal.step("Working", total=2) as advance:
        terminal.tell("told …")
        advance(2)
    Path(path).write_text("done")
    terminal.result({"name": "개미 …"}, table("개미 …", ("é",), [("☃",)] * 3000))

sys.modules["work"] = types.SimpleNamespace(command=command)
main.COMMANDS["work"] = ("work", "works")
main.main()
"""


@pytest.mark.parametrize("json_flag", ["", "--json"])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
def test_any_encoding_carries_the_result(tmp_path, encoding, json_flag):
    environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"}
    command = [sys.executable, "-c", WORK, "work", str(tmp_path / "f"), *json_flag.split()]
    result = subprocess.run(command, capture_output=True, env=environment, timeout=240, check=False)
    assert (result.returncode, b"Traceback" in result.stderr) == (0, False)
    shown = json.loads(result.stdout)["name"] if json_flag else result.stdout.decode(encoding)
    assert ("개미 …" if json_flag else r"\uac1c\ubbf8") in shown


@pytest.mark.parametrize(
    ("streams", "code"),
    [(">&-", 0), (">&- 2>&-", 0), (">&- <&-", 0), ("2>/dev/full", 0), ("| true", 0), (">/dev/full", 1)],
)
def test_closed_and_full_streams(tmp_path, streams, code):
    """The work is finished; only a result that could not be written is a failure, and says so."""
    (tmp_path / "work.py").write_text(WORK, encoding="utf-8")
    line = f"set -o pipefail; '{sys.executable}' '{tmp_path}/work.py' work '{tmp_path}/f' {streams}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, timeout=240, check=False)
    assert result.returncode == code, result.stderr.decode()[-300:]
    assert b"Traceback" not in result.stderr
    assert (b"could not be printed: No space left" in result.stderr) == bool(code)
    assert (tmp_path / "f").read_text() == "done"
