"""The command lines of README and docs run, in order, and print what the pages show.

Each section of a page runs in a folder with the files that its commands name: generated images, tables of
labels, and the caches, heads and models made of them. What a command prints is compared with what the page
shows, line by line; numbers, classes and names of files may differ. The networks are those of the pages, on
smaller images, with fewer repeats where `FEWER` says so.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from click.testing import CliRunner

from bottleneck.cli.main import group
from tests.helpers.page_folder import lay_photos, make_folder, messy_folder, write_code
from tests.helpers.pages import FENCE, PAGES, ROOT, command_of, parse, words_of

# Flags that a command gets where it has them, to be quick; those that save repeats; other words for the same.
QUICK = {"engine": "torch", "image_size": "64"}
FEWER = {
    "compare": ["--epochs", "1", "--seeds", "1"],
    "finetune": ["--epochs", "1"],
    "scratch": ["--epochs", "1", "--depth", "1"],
    # Images of val and epochs enough for the study to see that its networks have learnt
    "transfer-study": ["--seeds=1", "--epochs=30", "--val-fraction=0.5", "--share=0.5", "--image-size=32"],
    "train": ["--cv", "2"],
}
INSTEAD = {"cuda:0": "cpu", "cuda:1": "cpu", "1,2,5,10,50": "1,2,3,5,10"}
# Why calls that have these words cannot be run here.
NOT_RUN = {
    "--ray": "needs a cluster, which tests/extraction/test_ray.py has",
    "demo": "tests/test_release.py runs it, from the wheel",
    "inspect NETWORK": "stands for any network",
    "--shard auto": "needs a job of Slurm or torchrun",
    "s3://bucket/photos": "needs a network",
    "s3://bucket/photos.h5": "needs a network",
    "https://host.example/list.csv": "needs a network",
}
# Calls that have these words take several seconds: they run with --long, or where their output is shown.
COSTLY = (
    "advise",
    "compare",
    "scratch",
    "transfer-study",
    "export --format onnx",
    "explain --because",
    "fit-head --head mlp",
    "train photos",
    "train labels.csv",
)
# Sections that show what a command says of the data of the page, which these are not.
OTHER_DATA = {
    "Which images are wrong? The confusion matrix": "here nothing is misclassified",
    "Which images should I label next? (active learning)": "the verdict of a backtest depends on the labels",
}

PLACES = re.compile(FENCE.pattern + "|`([^`]+)`", re.M | re.S)


class Call(NamedTuple):
    """arguments : of `bottleneck`, one text. shown : what the page shows below the command."""

    arguments: list[str]
    shown: str = ""

    def runs(self, long: bool) -> bool:
        """Whether the call is run in this form of the tests."""
        return not self._is_in(NOT_RUN) and (long or bool(self.shown) or not self._is_in(COSTLY))

    def _is_in(self, entries: Iterable[str]) -> bool:
        return any(set(entry.split()) <= set(self.arguments) for entry in entries)


def sections(text):
    """(title, text) of every section of a page."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.M)
    return zip(parts[1::2], parts[2::2], strict=True)


def calls_of(section, variables):
    """Calls of a section as they stand there; words such as $HEAD become what `variables` has for them."""
    found = []
    for language, code, inline in (place.groups() for place in PLACES.finditer(section)):
        if inline is not None:
            lines = [" ".join(inline.split())]
        elif language == "" and "$ bottleneck " not in code and found:  # output alone
            found[-1] = found[-1]._replace(shown=code)
            continue
        else:
            lines = code.replace("\\\n", " ").splitlines()
        for line in lines:
            if given := re.match(r"(\w+)=(\S+)", line):
                variables[f"${given[1]}"] = given[2]
            elif re.match(r"(.* && )?(\$ )?bottleneck ", line):
                called = [[variables.get(word, word) for word in call] for call in words_of(line)]
                found += [Call(call) for call in called if inline is None or not only_named(call)]
            elif inline is None and language == "" and found:
                found[-1] = found[-1]._replace(shown=f"{found[-1].shown}{line}\n")
    return found


def only_named(arguments):
    """Whether words in a sentence name a command and do not give what it needs."""
    try:
        parse(arguments, True)
    except click.MissingParameter:
        return True
    return False


def steps():
    """(page, title, calls) of every section with calls. Korean pages have those of the English ones."""
    for page in PAGES:
        variables = {}
        name = page.relative_to(ROOT).as_posix()
        if "/ko/" in name or name.endswith(".ko.md"):
            continue
        for title, text in sections(page.read_text("utf-8")):
            if calls := calls_of(text, variables):
                yield pytest.param(name, title, calls, id=f"{name}: {title}")


STEPS = list(steps())


def run(arguments):
    """What a call prints, with flags that make it quick."""
    command, _, context = command_of(arguments)
    options = {item.name: item.opts[-1] for item in command.params if isinstance(item, click.Option)}
    more = list(FEWER.get(context.info_name, []))
    for name, value in QUICK.items():
        given = any(word.startswith(options.get(name, name)) for word in [*arguments, *more])
        if name in options and not given and context.info_name != "inspect":
            more += [options[name], value]
    arguments = [*(there(INSTEAD.get(word, word)) for word in arguments), *more]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0, (arguments, result.output)
    return result.stdout


def there(word):
    """A word of a call; `heads/….safetensors` becomes a file of that form, the usual one of several."""
    if "…" not in word:
        return word
    found = map(str, Path().glob(word.replace("…", "*")))
    return min(found, key=lambda name: ("--bottleneck--logistic" not in name, len(name), name))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the files that the pages name."""
    folder = tmp_path_factory.mktemp("walkthrough") / "work"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_folder(folder, run)
    return folder.rename(folder.with_name("made"))


@pytest.fixture
def work(made, monkeypatch):
    """A copy of that folder, where it was made; the current folder."""
    folder = made.with_name("work")
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    yield folder
    os.chdir(made)
    shutil.rmtree(folder)


def start_with(folder, page, title):
    """Make the folder what a section starts with."""
    write_code(folder, (ROOT / page).read_text("utf-8"))
    if title == "A messy folder":
        shutil.rmtree(folder / "photos")
        messy_folder(folder / "photos")
    if title.startswith("A class was renamed"):
        for split in ("train", "val"):
            (folder / "photos" / split / "bees").rename(folder / "photos" / split / "wasps")


def run_step(call):
    """What a call prints, and the table of errors that it writes, beside the photographs that it expects."""
    name, words = call.arguments[0], call.arguments
    if name in ("extract", "train", "scratch", "transfer-study"):
        lay_photos(flat="--val-fraction" in words or name == "transfer-study")
    if "merge" in words or (name == "extract" and ("photos" not in words or "--keep-parts" in words)):
        Path(words[words.index("-o") + 1]).unlink(missing_ok=True)  # a new file, whatever was there
    printed = run([*words, *(["--finetune", "always"] if "one block tuned" in call.shown else [])])
    if name in ("scratch", "transfer-study"):
        lay_photos(flat=False)
    return printed + (Path(words[words.index("--errors") + 1]).read_text() if "--errors" in words else "")


@pytest.mark.parametrize(("page", "title", "calls"), STEPS)
def test_the_commands_of_a_section_run_and_print_what_it_shows(page, title, calls, work, long):
    if not any(call.runs(long) for call in calls):
        pytest.skip("no call is quick, or none can be run: see NOT_RUN and COSTLY")
    start_with(work, page, title)
    printed, complete = "", True
    for call in calls:
        complete &= call.runs(long)
        printed += run_step(call) if call.runs(long) else ""
        if call.shown:
            if complete and title not in OTHER_DATA:
                assert not_printed(call.shown, printed) == []
            printed, complete = "", True


MASKS = (
    (r"[━┃┏┓┗┛┡┩╇┳┻│└┘┴─┌┐├┤┼→]+", " "),
    (r"(?<!\S)/\S+/", ""),
    (r"\S+\.(jpg|png)\b", "FILE"),
    (r"\b[0-9a-f]{40,}\b", "HASH"),
    (r"\b(ants?|bees?|flies|wasps|unknown)\b", "CLASS"),
    (r"\b(torch|onnxruntime|openvino)\b", "ENGINE"),
    (r"\S+\+(?=\S*[a-z])\S+", "NODE+NODE"),
    (r"[-−+]?\d[\d,]*(\.\d+)?(e[-+]\d+)?", "#"),
)


def masked(text):
    """A text without frames and line ends, in which what may move has one name."""
    for pattern, name in MASKS:
        text = re.sub(pattern, name, text)
    return " ".join(text.split())


def not_printed(shown, printed):
    """Lines of a shown text that were not printed in that order. … stands for lines that are left out."""
    rest, missing = masked(printed), []
    for line in map(masked, shown.splitlines()):
        if line.strip("… "):
            _, found, after = rest.partition(line)
            rest, missing = (after, missing) if found else (rest, [*missing, line])
    return missing


def test_what_is_not_printed_is_found():
    printed = "│ → │ head on a │ 0.96 │\n│ head on b+c │ 1 │\n│ head on d │ 2 │\nDone in 3 s."
    assert not_printed("│ → │ head on a │ 0.8 │\n│ … │\n│ head on d │ 1,000 │\nDone in 4.5 s.", printed) == []
    assert not_printed("head on b@avg2+c@avg2 1", printed) == []
    for wrong in ("head on e 0.8", "head on d 2\n…\nhead on a 1", "head on a 1 0"):
        assert not_printed(wrong, printed) != []


def test_the_lists_of_exceptions_name_what_the_pages_have():
    calls = [call for step in STEPS for call in step.values[2]]
    for entry in [*NOT_RUN, *COSTLY]:
        assert any(set(entry.split()) <= set(call.arguments) for call in calls), entry
    assert OTHER_DATA.keys() <= {step.values[1] for step in STEPS}
    assert {call.arguments[0] for call in calls if call.runs(False)} >= {
        "train",
        "extract",
        "fit-head",
        "report",
    }
    assert sum(bool(call.shown) for call in calls) >= 3
