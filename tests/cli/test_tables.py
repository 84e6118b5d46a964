"""Tables for people fit 80 columns, whatever they hold: measured by wcwidth's rule for wide characters."""

import ast
import unicodedata
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import bottleneck
from bottleneck.cli.main import group
from bottleneck.cli.terminal import FILE_WIDTH, Terminal, link_to, table, told_apart
from bottleneck.errors import Note
from bottleneck.report import figures
from bottleneck.studies.drift.drift import DriftResult
from bottleneck.studies.study_config import StudyConfig
from bottleneck.studies.suggest.suggest import SuggestResult
from bottleneck.studies.train.result import TrainResult
from bottleneck.studies.transfer_study.study import TransferStudy
from tests.helpers.advice import advice
from tests.helpers.study_runs import results

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
    names = [*(f"measure {number}" for number in range(12)), "mark"]
    shown = printed(table("Wide", names, [[*(f"value{number}" for number in range(12)), ""]]))
    assert "mark" not in shown
    assert not shown.rstrip().endswith(";")
    assert not set(shown) & set(FRAMES)
    for number in range(1, 12):
        assert f"measure {number} value{number}" in shown
    assert "value0" in shown


def test_a_long_text_is_broken_beside_whole_numbers():
    name = "features.block4@avg2+" * 4 + "끝"
    shown = printed(table("Heads", ("node", "C", "accuracy"), [(name, 1e-6, 0.9755)]))
    assert any("1e-06" in line and "0.9755" in line for line in shown.splitlines())
    assert "".join(line.split("│")[1].strip() for line in shown.splitlines() if "│" in line) == name


def test_names_that_differ_only_in_white_space_are_in_quotes():
    assert told_apart(["ant", "bee", "ant ", "벌 ", "a nt"]) == ['"ant"', "bee", '"ant "', "벌 ", '"a nt"']


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


def test_a_demo_ends_with_a_sentence_and_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("bottleneck.demo"), "demo", lambda *_, **__: demonstrated(tmp_path))
    result = CliRunner().invoke(group, ["demo"], catch_exceptions=False)
    *_, note, sentence, page = result.stdout.splitlines()
    assert note == "Note: The grid was extended."
    assert "97.6% of 123,456 test images" in sentence
    assert page == f"Report: {tmp_path / NAMES[0] / 'report.html'}"


def test_a_page_has_a_link_on_a_terminal_where_its_path_is_what_it_shows(tmp_path):
    def linked(path, **terminal):
        console = Console(width=80, soft_wrap=True, **terminal)
        with console.capture() as capture:
            console.print(link_to("Report", path, " (1 MB)."))
        return capture.get()

    page = str(tmp_path / "보고서 [1].html")
    assert linked(page) == f"Report: {page} (1 MB).\n"
    assert Path(page).as_uri() in linked(page, force_terminal=True)
    hidden = linked("a\x1b]8;;http://x\x1b\\b.html", force_terminal=True)
    assert "\x1b" not in hidden
    assert "\\x1b]8;;http://x" in hidden


def test_all_tables_are_made_here():
    for path in PACKAGE.rglob("*.py"):
        named = [
            node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        ]
        assert "rich.table" not in named or path.name == "terminal.py", path


def test_a_file_gets_80_columns():
    assert Terminal(as_json=False).out.width == FILE_WIDTH == 80


def framed_lines(text):
    """The lines of tables; sentences and paths are left to the terminal, so that they can be copied."""
    return [line for line in text.splitlines() if line[:1] in FRAMES]


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
        ["explain", head, "사진/val", "--because", "c.h5"],
        ["predict", head, "사진/val", "--reject", "0.1", "--coverage", "0.9"],
        ["evaluate", head, "c.h5", "--reject", "0.1", "--coverage", "0.9", "--unknown", "사진/val"],
        ["train", "사진", "--plan", *small[:4]],
        ["doctor"],
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
        framed = framed_lines(result.stdout)
        sentences = not {"compare", "export", "merge", "report", "verify"}.isdisjoint(arguments[:2])
        assert framed or "none." in result.stdout or sentences, arguments
        assert all(columns_of(line) <= 80 for line in framed), arguments


NAMES = ("대한민국에서 찍은 아주 긴 이름의 개미 사진들", "a-class-whose-name-has-no-blank-and-goes-on-" * 2)
IMAGE = f"사진/{NAMES[0]}/아주 긴 이름의 사진 파일 1.png"
NODE = "features.denseblock3.denselayer24.conv2@avg2"


def trained(folder):
    """A result of `train` with two networks, a candidate of several nodes and one of an earlier run."""
    figures = {"cv_accuracy": 0.97551, "val_accuracy": None, "pooled": 0.97551, "seconds": 12345.6}
    what = f"linear head on {NODE}+bottleneck"
    rows = [
        {"chosen": first, "what": what, "backbone": f"timm/tf_efficientnetv2_{number}", **figures}
        | {"earlier": not first}
        for number, first in enumerate((True, False))
    ]
    split = {"n": 123456, "accuracy": 0.97551, "accuracy_ci95": (0.9744, 0.9766)}
    counts = {name: {"train": 12345, "val": 1234} for name in NAMES}
    data = {"splits": {"train": 1, "val": 1}, "columns": {}, "ignored": {}, "failures": {}}
    data |= {"targets": {"label": {"kind": "class", "unlabelled": 0}}, "classes": {"label": counts}}
    return TrainResult(
        model=str(folder / "사진.safetensors"),
        target="label",
        metric="accuracy",
        chosen=rows[0],
        candidates=rows,
        accuracy={},
        accuracy_ci95={},
        metrics={"train": split, "val": split, "test": split},
        rule=[],
        samples={},
        images={"computed": 1, "reused": 2},
        files={"card": "card.md"},
        seconds=1.0,
        cross_validation=split,
        data=data,
    )


def demonstrated(folder):
    head = {"node": NODE, "C": 1e-6, "cv_accuracy": 0.97551, "path": "a", "accuracy": {"test": 0.97551}}
    head |= {"accuracy_ci95": {"test": (0.9744, 0.9766)}}
    row = {"sample": IMAGE, "image": IMAGE, "label": NAMES[1], "confidence": 0.99, "top": [], "error": None}
    return {
        "heads": [head, head | {"path": "b"}],
        "chosen": head,
        "evaluation": {"accuracy": 0.97551, "n": 123456},
        "predictions": [row],
        "report": str(folder / NAMES[0] / "report.html"),
        "files": {"confusion": str(folder / NAMES[0] / "confusion.png")},
        "images": 123456,
        "seconds": 1.0,
        "notes": [Note("c-grid-extended", "The grid was extended.")],
    }


def suggested(folder):
    rounds = [{"labels": number, "random": 0.81234, "selector": 0.9} for number in (100, 200000)]
    expected = [{"factor": 5, "accuracy": 0.91234, "interval": (0.9, 0.95)}]
    listed = {"image": IMAGE, "predicted": NAMES[1], "score": 0.12345}
    return SuggestResult(
        cache="c.h5",
        features="c.h5",
        target="label",
        node=NODE,
        labelled=100,
        candidates=123456,
        suggestions=[listed | {"reason": f"between {NAMES[0]} and {NAMES[1]}"}],
        backtest={"done": True, "verdict": "Choosing helps.", "rounds": rounds},
        curve={},
        outlook={"labels": 123456, "miss": 0.01, "expected": expected},
        failed=[{"image": IMAGE, "error": f"{IMAGE} is no image: its first bytes are those of a text."}],
        seed=0,
    )


def drifted(folder):
    shares = {"old": 0.51234, "new": 0.1, "difference": -0.4, "interval": (-0.43210, -0.38), "flag": True}
    return DriftResult(
        cache="c.h5",
        features="d.h5",
        node=NODE,
        target="label",
        verdict="The images differ.",
        auc=0.9,
        auc_ci95=(0.8, 0.95),
        p_value=0.001,
        chance=0.5,
        classes=[{"class": name, **shares} for name in NAMES],
        foreign=[{"image": IMAGE, "score": 0.912345, "beyond": 0.00012}],
        foreign_share=0.1,
        old=123456,
        new=1000,
        copies=1,
        failed=[{"image": IMAGE, "error": "It is no image."}],
        permutations=200,
        seed=0,
    )


def studied(folder):
    parts = tuple("abcdefgh"), (*NAMES, *"cdefgh"), results(2, 0.2), folder
    return TransferStudy(StudyConfig(seeds=2), *parts, trained=0, failed=0, seconds=1.0)


def advised(folder):
    found = advice(similarity=True, tmp_path=folder)
    attempts = [replace(each, what=f"linear head on {NODE}") for each in found.attempts]
    heads = [{**head, "node": NODE} for head in found.heads]
    return replace(found, attempts=attempts, heads=heads, scores={NODE: found.scores["bottleneck"]})


@pytest.mark.parametrize(
    ("arguments", "where", "made"),
    [
        (["train", "사진", "--no-report"], "train.train.train", trained),
        (["advise", "c.h5"], "advise.advise.advise", advised),
        (["transfer-study", "사진"], "transfer_study.study.transfer_study", studied),
        (["suggest", "c.h5"], "suggest.suggest.suggest", suggested),
        (["drift", "c.h5", "d.h5"], "drift.drift.drift", drifted),
        (["demo"], "demo", demonstrated),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_tables_of_long_runs_fit_80_columns(arguments, where, made, tmp_path, monkeypatch):
    module, _, name = where.rpartition(".")
    module = f"bottleneck.studies.{module}" if module else "bottleneck.demo"
    monkeypatch.setattr(import_module(module), name, lambda *_, **__: made(tmp_path))
    monkeypatch.setattr(figures, "_characters", lambda: frozenset(range(0x2100)))
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    framed = framed_lines(result.stdout)
    assert len(framed) > 4
    assert all(columns_of(line) <= 80 for line in framed), result.stdout
    assert ("Note: Figures show U+" in result.stdout) == (arguments[0] == "advise")
