"""A row compares round by round and says what was missed; a part that breaks keeps its rows."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.benchmarks import __main__ as runner
from tests.benchmarks.accuracy import interval_of_rounds, paired_interval
from tests.benchmarks.measurement import FEWER, LESS, Result, Row, collect, speed, told
from tests.benchmarks.process import run_child, take_turns


def test_contenders_are_compared_round_by_round():
    rates = Row("x", "images/s", (20.0, 30.0, 10.0), (10.0, 10.0, 10.0), "peer")
    assert rates.ratios == (2, 3, 1)
    assert (rates.to_json()["ratio"], rates.to_json()["spread"]) == (2, [1, 3])
    assert Row("x", "s", (2.0,), (6.0,), "peer", FEWER).ratios == (3,)
    assert Row("x", "%", (91.0,), (90.5,), "peer", LESS).ratios == (0.5,)


def test_nothing_is_divided_by_zero():
    row = Row("x", "files", (3.0,), (0.0,), "peer", at_least=1.0)
    assert row.ratios == ()
    assert row.verdict == "not measured"


@pytest.mark.parametrize(
    ("wanted", "verdict"),
    [
        ({}, ""),
        ({"at_least": 2.0}, "ok"),
        ({"at_least": 2.1}, "missed"),
        ({"at_most": 2.0}, "ok"),
        ({"at_most": 1.9}, "missed"),
        ({"at_least": 1.0, "failed": True}, "failed"),
    ],
)
def test_the_median_is_judged(wanted, verdict):
    assert Row("x", "s", (1.0, 2.0, 9.0), **wanted).verdict == verdict
    assert Row("x", "s", (2.0, 4.0, 18.0), (2.0, 2.0, 2.0), "peer", **wanted).verdict == verdict


@pytest.mark.parametrize(
    ("interval", "wanted", "verdict"),
    [
        ((-0.7, 0.2), {"at_least": -0.2}, "not shown"),
        ((-0.7, -0.3), {"at_least": -0.2}, "missed"),
        ((-0.1, 0.4), {"at_least": -0.2}, "ok"),
        ((-0.7, 0.2), {"at_most": 0.1}, "not shown"),
        ((-0.7, 0.2), {"at_most": 0.2}, "ok"),
        ((-0.7, 0.2), {"at_most": -0.8}, "missed"),
        ((-0.7, 0.2), {}, ""),
    ],
)
def test_an_interval_is_judged_and_not_the_median(interval, wanted, verdict):
    row = Row("x", "%", (90.0,), (90.3,), "peer", LESS, **wanted, interval=interval)
    assert row.verdict == verdict
    assert row.cells()[-1] == "95 % interval {:+.2f} … {:+.2f}".format(*interval)
    assert Row.from_json(json.loads(json.dumps(row.to_json()))).verdict == verdict


def test_intervals_are_of_the_paired_differences():
    assert interval_of_rounds((81.0, 82.0, 83.0), (80.0, 80.0, 80.0)) == pytest.approx(
        (-0.484, 4.484), abs=1e-3
    )
    right, base = np.array([1.0, 1, 1, 0]), np.array([1.0, 0, 1, 0])
    assert paired_interval(right, base) == pytest.approx((25 - 49, 25 + 49))


def test_a_row_survives_json():
    row = Row("x", "s", (1.0, 2.0), (3.0, 4.0), "peer", FEWER, 1.0, 9.0, "so", "because", True, (0.5, 1.5))
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_median_and_spread_are_told_where_they_differ():
    assert told((2.0, 1.0, 4.0)) == "2 (1 … 4)"
    assert told((2.0, 2.0001)) == "2"
    assert told((12345.6,)) == "12,346"
    assert told((0.5,), sign=True) == "+0.5"
    assert told(()) == "–"


def test_speed_is_by_the_clock_and_by_cores():
    ours = [{"images": 100, "seconds": 1.0, "processor_seconds": 2.0}]
    theirs = [{"images": 50, "seconds": 5.0, "processor_seconds": 5.0}]
    clock, cores = speed("extract", ours, theirs, "loop", at_least=5.0)
    assert (clock.ours, clock.ratios, clock.verdict) == ((100,), (10,), "ok")
    assert (cores.ours, cores.ratios) == ((20,), (5,))


def test_a_part_that_breaks_keeps_its_rows_and_gives_the_reason(tmp_path, capsys):
    def rows():
        yield Row("first", "s", (1.0,))
        raise ValueError("the disk\nis full")

    result = Result(tmp_path / "rows.json")
    assert not collect(rows(), result)
    first, rest = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    assert first["ours"] == [1.0]
    assert (rest["failed"], rest["reason"]) == (True, "ValueError: the disk")
    assert "first" in capsys.readouterr().out


def test_a_child_returns_what_its_function_does_and_fails_with_its_last_line():
    done = run_child("test_measurement", "doubled", value=21)
    assert done.found == {"value": 42}
    assert done.processor_seconds > 0
    assert done.megabytes > 5
    with pytest.raises(RuntimeError, match=r"test_measurement\.doubled ended with 1: ValueError: no value"):
        run_child("test_measurement", "doubled", value=0)
    with pytest.raises(subprocess.TimeoutExpired):
        run_child("test_measurement", "doubled", timeout=0.01, value=1)


def test_contenders_take_turns_each_in_one_process():
    contenders = {name: ("test_measurement", "repeated", {"name": name}) for name in "ab"}
    found = take_turns(contenders, 3, numbered="number")
    told = [each for name in "ab" for each in found[name]]
    assert [(each["name"], each["number"]) for each in told] == [(n, i) for n in "ab" for i in range(3)]
    assert len({each["process"] for each in found["a"]}) == 1
    assert found["a"][0]["process"] != found["b"][0]["process"]
    ends = [found[name][number]["at"] for number in range(3) for name in "ab"]
    assert ends == sorted(ends)


def doubled(value):
    if not value:
        raise ValueError("no value")
    return {"value": 2 * value}


def repeated(**arguments):
    print("what a library prints is no answer")
    return {**arguments, "process": os.getpid(), "at": time.monotonic()}


def part(code):
    """Run `code` as the command of a part; `file` is where its rows go."""
    words = (sys.executable, "-c", f"import sys, json\nfile = open(sys.argv[-1], 'w')\n{code}")
    return runner.run_part("x", True, words)


def test_a_part_that_dies_is_a_row_with_its_reason_after_those_it_gave():
    row = json.dumps([Row("first", "s", (1.0,)).to_json()])
    found = part(f"file.write({row!r}); file.close(); sys.exit('no room')")
    assert [(each["what"], each["failed"]) for each in found["rows"]] == [
        ("first", False),
        ("the rest of this part", True),
    ]
    assert found["rows"][1]["reason"] == "no room"


def test_a_part_without_a_row_has_failed():
    (row,) = part("file.write('[]')")["rows"]
    assert (row["failed"], row["reason"]) == (True, "it gave no row")


def test_a_failed_row_of_the_part_is_its_reason():
    row = json.dumps([Row("first", reason="why", failed=True).to_json()])
    (found,) = part(f"file.write({row!r}); file.close(); sys.exit(1)")["rows"]
    assert found["reason"] == "why"


def test_every_module_with_rows_takes_part_and_the_short_form_fits_ten_minutes():
    names = runner.parts()
    assert set(runner.SHORT) < set(names)
    assert not {"measurement", "page", "peers", "machine"} & set(names)
    assert sum(runner.SHORT.values()) < 600


def test_other_parts_go_on_after_one_that_fails_and_the_exit_code_tells_it(tmp_path, monkeypatch, capsys):
    rows = {"startup": [Row("x", failed=True, reason="broken")], "heads": [Row("y", "s", (1.0,))]}
    (tmp_path / "measured.md").write_text(f"{runner.page.BEGIN}\n{runner.page.END}\n", "utf-8")

    def run_part(name, short):
        return {
            **{"form": "short", "date": "", "load": [0, 0], "seconds": 1, "processor_seconds": 1},
            **{"versions": {}, "rows": [row.to_json() for row in rows[name]]},
        }

    monkeypatch.setattr(runner, "run_part", run_part)
    flags = ["--short", "--only", "startup", "--only", "heads"]
    file = str(tmp_path / "all.json")
    monkeypatch.setattr(sys, "argv", ["x", *flags, "--docs", str(tmp_path), "--json", file])
    with pytest.raises(SystemExit, match="Failed: startup"):
        runner.main()
    text = (tmp_path / "measured.md").read_text("utf-8")
    assert "| x |" in text
    assert "broken" in text
    assert "| y |" in text
    assert set(json.loads((tmp_path / "all.json").read_text("utf-8"))["parts"]) == {"startup", "heads"}
    assert "Left out: " in capsys.readouterr().err
