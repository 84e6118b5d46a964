"""Tables for people fit 80 columns, whatever they hold: measured by wcwidth's rule for wide characters."""

import ast
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import bottleneck
from bottleneck.cli.main import group
from bottleneck.cli.terminal import FILE_WIDTH, Terminal, table

PACKAGE = Path(bottleneck.__file__).parent
FRAMES = "┃┏┡┗│└├━─"


def columns_of(line):
    """Columns that a terminal gives to a line: two for wide characters, none for marks that join others."""
    seen = [one for one in line if not unicodedata.combining(one)]
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in seen)


def printed(drawn, width=80):
    console = Console(width=width, soft_wrap=True, force_terminal=False)
    with console.capture() as capture:
        console.print(drawn, markup=False, highlight=False)
    return capture.get()


CELLS = st.one_of(
    st.none(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False),
    st.text("개미벌 사진abc/._-é漢", max_size=120),
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14).flatmap(lambda n: st.lists(st.tuples(*[CELLS] * n), min_size=1, max_size=4)))
def test_no_line_is_wider_than_the_terminal(rows):
    names = [f"column {number}" for number in range(len(rows[0]))]
    lines = printed(table("개미와 벌의 사진 " * 9, names, rows)).splitlines()
    assert max(map(columns_of, lines)) <= 80


def test_nothing_is_lost_where_rows_become_paragraphs():
    names = [f"measure {number}" for number in range(12)]
    shown = printed(table("Wide", names, [[f"value{number}" for number in range(12)]]))
    assert not set(shown) & set(FRAMES)
    for number in range(1, 12):
        assert f"measure {number} value{number}" in shown
    assert "value0" in shown


def test_a_long_text_is_broken_beside_whole_numbers():
    name = "features.block4@avg2+" * 4 + "끝"
    shown = printed(table("Heads", ("node", "C", "accuracy"), [(name, 1e-6, 0.9755)]))
    assert any("1e-06" in line and "0.9755" in line for line in shown.splitlines())
    assert "".join(line.split("│")[1].strip() for line in shown.splitlines() if "│" in line) == name


def test_a_table_without_rows_is_a_sentence():
    assert printed(table("Misclassified", ("image", "label"), [])) == "Misclassified: none.\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (909_123.4, "909,123"),
        (0.99999, "> 0.9999"),
        (1.0, "1"),
        (1e-6, "1e-06"),
        (12345, "12,345"),
    ],
)
def test_numbers_mean_what_they_show(value, shown):
    assert shown in printed(table("t", ("name", "value"), [("x", value)]))


def test_all_tables_are_made_here():
    for path in PACKAGE.rglob("*.py"):
        named = [
            node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        ]
        assert "rich.table" not in named or path.name == "terminal.py", path


def test_a_file_gets_80_columns():
    assert Terminal(as_json=False).out.width == FILE_WIDTH == 80


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A cache and a head of images whose folders have long names in Hangul."""
    folder = tmp_path_factory.mktemp("wide")
    names = ("대한민국에서 찍은 아주 긴 이름의 개미 사진들", "여러 나라에서 찍은 매우 긴 이름의 꿀벌 사진들")
    for number in range(16):
        where = folder / "사진" / ("train", "val")[number % 8 > 5] / names[number % 2]
        where.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number * 9, 100, 60 * (number % 2))).save(
            where / f"아주 긴 이름 {number}.png"
        )
    return folder


def test_commands_fit_80_columns(project, monkeypatch):
    """All lines of tables; sentences and paths are left to the terminal, so that they can be copied."""
    monkeypatch.chdir(project)
    head = "heads/c--label--features.block1@avg2_features.block2--logistic.safetensors"
    nodes = ["--node", "features.block1@avg2", "--node", "features.block2", "--node", "bottleneck"]
    top = "heads/c--label--bottleneck--logistic.safetensors"
    small = ["--backbone", "small_cnn", "--image-size", "64", "--engine", "torch"]
    commands = [
        ["extract", "사진", "-o", "c.h5", *nodes, *small],
        ["fit-head", "c.h5", "--node", "features.block1@avg2+features.block2", "--cv", "2", "--shots", "1,2"],
        ["evaluate", head, "c.h5"],
        ["predict", head, "사진/val"],
        ["explain", head, "사진/val"],
        ["similar", "c.h5", "--all", "--node", "features.block2", "--threshold", "0.5"],
        ["audit", "c.h5", "--node", "features.block2", "--cv", "2"],
        ["fit-head", "c.h5", "--node", "bottleneck", "--cv", "2"],
        ["finetune", "c.h5", "--head", top, "--epochs", "1"],
        ["scratch", "사진", "--image-size", "32", "--depth", "1", "--epochs", "1"],
        ["compare", "c.h5", "--unfreeze", "1", "--epochs", "1", "--seeds", "1"],
        ["export", top, "--format", "torch", "-o", "m.pt2"],
        ["report", "c.h5", top],
        ["cache", "export", "c.h5", "-o", "c.npz"],
        ["cache", "merge", "c.h5", "c.h5", "-o", "d.h5"],
        ["cache", "info", "c.h5"],
        ["cache", "verify", "c.h5"],
        ["rank", "c.h5", "--node", "features.block2"],
        ["inspect", "densenet121", "--modules"],
        ["backbones", "timm/*patch1*"],
    ]
    for arguments in commands:
        result = CliRunner().invoke(group, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        framed = [line for line in result.stdout.splitlines() if line[:1] in FRAMES]
        sentences = arguments[0] in ("compare", "export", "report") or arguments[1] in (
            "verify",
            "export",
            "merge",
        )
        assert framed or "none." in result.stdout or sentences, arguments
        assert all(columns_of(line) <= 80 for line in framed), arguments
