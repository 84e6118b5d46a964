"""Messages count one thing as one: a number before the name of many things goes through `errors.counted`.

What is looked for is `{len(…)}` or `{…:,}` before a plural in an f-string. A number in a plain name
(`{n} rows`) cannot be told from a text here, and is for the reader of a change.
"""

import ast
import re
from itertools import pairwise
from pathlib import Path

import bottleneck
from bottleneck.errors import counted

THINGS = """
architectures attributes backbones batches blocks caches candidates cells chunks classes columns copies
covariates draws entries epochs features figures files folders folds groups heads images keys labels layers
lines maps members mistakes names nodes objects outputs overlays pages pairs parts pictures queries records
requests rows runs samples scores shards shots splits steps targets tensors thumbnails tokens values views
workers
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


def is_constant(shown: str) -> bool:
    return shown.rpartition(".")[2].isupper() or shown in TWO_OR_MORE


def test_numbers_of_things_are_counted():
    sources = sorted(Path(bottleneck.__file__).parent.rglob("*.py"))
    found = {(path.name, shown) for path in sources for shown in uncounted(path.read_text("utf-8"))}
    assert {each for each in found if not is_constant(each[1])} == set()


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
