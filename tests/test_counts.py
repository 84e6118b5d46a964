"""Messages count one thing as one: a number before the name of many things goes through `errors.counted`.

What is looked for is `{len(…)}` or `{…:,}` before a plural in an f-string. A number in a plain name
(`{n} rows`) cannot be told from a text here, and is for the reader of a change. Of `{n} of {counted(…)}`, the
verb goes through `errors.verb`.
"""

import ast
import re
from itertools import pairwise
from pathlib import Path

import bottleneck
from bottleneck.errors import counted, verb

THINGS = """
answers architectures attributes backbones batches blocks caches candidates cells chunks classes columns
copies covariates draws entries epochs features figures files folders folds groups heads images keys labels
layers lines maps members mistakes names nodes objects outputs overlays pages pairs parts pictures
queries records requests rows runs samples scores shards shots splits steps targets tensors thumbnails
tokens values views workers
"""
PLURAL = re.compile(rf" (?:[a-z-]+ )?(?:{'|'.join(THINGS.split())})\b")
TWO_OR_MORE = {"len(AUTO_C)", "len(inputs.fitted)"}  # by a constant, and by the condition before it


def uncounted(text: str) -> list[str]:
    """The numbers before a plural in the f-strings of a source."""
    found = []
    for node in ast.walk(ast.parse(text)):
        values = node.values if isinstance(node, ast.JoinedStr) else []
        for value, after in pairwise(values):
            if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                continue
            shown = ast.unparse(value.value)
            grouped = value.format_spec is not None and ast.unparse(value.format_spec) == "f','"
            if (grouped or shown.startswith("len(")) and PLURAL.match(after.value):
                found.append(shown)
    return found


PLURAL_VERB = re.compile(r"(?<!that) (?:are|have|were|do|match|look|name)\b")


def disagreeing(text: str) -> list[str]:
    """The numbers of `{n} of {counted(…)}` in f-strings whose verb is that of several, whatever n is."""
    found = []
    for node in ast.walk(ast.parse(text)):
        values = node.values if isinstance(node, ast.JoinedStr) else []
        for at, (value, of, all_of_them) in enumerate(zip(values, values[1:], values[2:], strict=False)):
            if not isinstance(value, ast.FormattedValue) or not isinstance(of, ast.Constant):
                continue
            if of.value not in (" of ", " of the ") or "counted(" not in ast.unparse(all_of_them):
                continue
            rest = values[at + 3 :]
            until = next((i for i, each in enumerate(rest) if "verb(" in ast.unparse(each)), len(rest))
            said = "".join(each.value if isinstance(each, ast.Constant) else "…" for each in rest[:until])
            if PLURAL_VERB.search(re.split(r"[.;:,]", said)[0]):
                found.append(ast.unparse(value.value))
    return found


def is_constant(shown: str) -> bool:
    return shown.rpartition(".")[2].isupper() or shown in TWO_OR_MORE


def test_numbers_of_things_are_counted():
    sources = sorted(Path(bottleneck.__file__).parent.rglob("*.py"))
    found = {(path.name, shown) for path in sources for shown in uncounted(path.read_text("utf-8"))}
    assert {each for each in found if not is_constant(each[1])} == set()


def test_verbs_agree_with_the_number_before_of():
    sources = sorted(Path(bottleneck.__file__).parent.rglob("*.py"))
    found = {(path.name, shown) for path in sources for shown in disagreeing(path.read_text("utf-8"))}
    assert found == set()
    assert disagreeing("f\"{n} of {counted(m, 'row')} of {file} have no name\"") == ["n"]
    assert disagreeing("f\"{n} of {counted(m, 'row')} {verb(n)} left out, which are old\"") == []
    assert [verb(n) for n in (0, 1, 2)] == ["are", "is", "are"]
    assert [verb(n, "has", "have") for n in (1, 2)] == ["has", "have"]


def test_what_is_looked_for_is_found():
    assert uncounted('f"{len(x)} rows"') == ["len(x)"]
    assert uncounted('f"of {n:,} train samples are"') == ["n"]
    assert uncounted("f\"{counted(n, 'row')}, {n:,} bytes, {n:.1f} images a second, {name} rows\"") == []


def test_one_is_one():
    assert [counted(n, "class", "classes") for n in (0, 1, 2, 1000)] == [
        "0 classes",
        "1 class",
        "2 classes",
        "1,000 classes",
    ]
