"""The page of figures: only what stands between the marks is written; machines are never mixed or lost."""

import json

import pytest

from tests.benchmarks.machine import Machine, this_machine
from tests.benchmarks.measurement import FEWER, Row
from tests.benchmarks.page import BEGIN, END, keep, outside, write

ONE = Machine("Some EPYC (family 26, model 2)", 2, ("avx2", "avx512f"), "")
OTHER = Machine("Some EPYC (family 25, model 1)", 2, ("avx2",), "")


def found(*rows, form="short", date="2030-01-01"):
    return {
        "form": form,
        "date": date,
        "load": [0.1, 2.5],
        "seconds": 12.3,
        "processor_seconds": 20.1,
        "versions": {"torch": "9.9"},
        "rows": [row.to_json() for row in rows],
    }


@pytest.fixture
def docs(tmp_path):
    (tmp_path / "measured.md").write_text(
        f"# Measured\n\nFirst.\n\n{BEGIN}\nold\n{END}\n\n## Kept\n", "utf-8"
    )
    return tmp_path


def text(docs):
    write(docs)
    return (docs / "measured.md").read_text("utf-8")


def test_rows_become_a_table_between_the_marks_and_the_rest_stays(docs):
    row = Row(
        "extract", "s", (1.0, 2.0, 4.0), (8.0, 8.0, 8.0), "loop | eager", FEWER, 5.0, conditions="9 images"
    )
    keep(docs, ONE, "extraction", found(row))
    page = text(docs)
    assert page.startswith(f"# Measured\n\nFirst.\n\n{BEGIN}\n")
    assert page.endswith(f"{END}\n\n## Kept\n")
    assert "old" not in page
    assert (
        "| extract | s | 2 (1 … 4) | loop \\| eager: 8 | peer / ours | 4 (2 … 8) × | ≥ 5: missed | 9 images |"
        in page
    )
    assert (
        "--short --only extraction`, 2030-01-01: 12 s by the clock, 20 s of cores; load 0.1 to 2.5;" in page
    )
    assert text(docs) == page  # writing again changes nothing


def test_machines_have_tables_of_their_own_and_none_is_lost(docs):
    keep(docs, ONE, "heads", found(Row("a", "s", (1.0,))))
    keep(docs, OTHER, "heads", found(Row("a", "s", (7.0,))))
    keep(docs, ONE, "heads", found(Row("a", "s", (2.0,))))
    page = text(docs)
    first, second = sorted(
        (page.index(f"## {machine.processor}, 2 cores"), machine) for machine in (ONE, OTHER)
    )
    sections = {first[1]: page[first[0] : second[0]], second[1]: page[second[0] :]}
    assert "| a | s | 2 |" in sections[ONE]
    assert "| a | s | 7 |" in sections[OTHER]
    assert "| a | s | 1 |" not in page
    assert len(list((docs / "measured").glob("*.json"))) == 2


@pytest.mark.parametrize("field", ["processor", "cores", "units", "gpu"])
def test_machines_that_differ_in_anything_have_files_of_their_own(field):
    other = {"processor": "Other", "cores": 3, "units": ["avx2"], "gpu": "H"}[field]
    assert Machine.from_json({**ONE.to_json(), field: other}).slug != ONE.slug


def test_a_machine_survives_json():
    assert Machine.from_json(json.loads(json.dumps(this_machine().to_json()))) == this_machine()
    assert this_machine().slug.isascii()


def test_the_short_form_does_not_replace_the_long_one(docs):
    keep(docs, ONE, "heads", found(Row("a", "s", (1.0,)), form="long"))
    keep(docs, ONE, "heads", found(Row("a", "s", (2.0,))))
    page = text(docs)
    assert "Sweep of heads (long form)" in page
    assert "Sweep of heads (short form)" in page


def test_a_row_without_a_figure_gives_its_reason(docs):
    keep(
        docs,
        ONE,
        "heads",
        found(Row("fastai", reason="not installed"), Row("z", reason="no room", failed=True)),
    )
    page = text(docs)
    assert "| fastai |  | – | – |  | – | : not measured | not installed |" not in page
    assert "| fastai |  | – | – |  | – | not measured | not installed |" in page
    assert "| z |  | – | – |  | – | failed | no room |" in page


@pytest.mark.parametrize(
    "broken", ["", f"{END} {BEGIN}", BEGIN, f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"]
)
def test_a_page_without_its_marks_is_not_written(docs, broken):
    (docs / "measured.md").write_text(broken, "utf-8")
    with pytest.raises(ValueError, match="once, in this order"):
        write(docs)
    assert (docs / "measured.md").read_text("utf-8") == broken


def run_of(machine, *seconds):
    rows = found(Row("a", "s", (1.0,) * 3, seconds, "peer", FEWER))
    return {"machine": machine.to_json(), "parts": {"heads": rows}}


def test_ratios_outside_of_the_spread_of_an_earlier_run_are_named():
    earlier = run_of(ONE, 1.9, 2.0, 2.1)
    assert list(outside(earlier, run_of(ONE, 1.0, 2.1, 9.0))) == []
    assert list(outside(earlier, run_of(ONE, 1.0, 2.2, 9.0))) == ["heads: a: 2.2, before 1.9 … 2.1"]


def test_runs_of_different_machines_are_not_compared():
    assert list(outside(run_of(ONE, 2.0, 2.0, 2.0), run_of(OTHER, 9.0, 9.0, 9.0))) == [
        "The two files are of different machines: nothing is compared."
    ]
