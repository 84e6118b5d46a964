"""The fault scripts: a short form always, their long form with --long. None may find a defect."""

import importlib
import os

import pytest

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forks"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # theirs are of threads that have ended
]
SCRIPTS = {
    "kill": (2, 200),
    "stops": (4, 500),
    "damage": (10, 1000),
    "full_disk": (3, 50),
    "writers": (2, 100),
    "signals": (2, 200),
    "merging": (2, 200),
}
LONG = {**{script: rounds for script, (_, rounds) in SCRIPTS.items()}, "extract_signals": 200}


def defects(script, folder, rounds):
    module = importlib.import_module(f"tests.store.faults.{script}")
    figures = module.run(folder, rounds, seed=rounds)
    print(figures)
    assert sum(value for name, value in figures.items() if not name.startswith("defect")) > 0
    return {name: value for name, value in figures.items() if name.startswith("defect") and value}


@pytest.mark.parametrize("script", SCRIPTS)
def test_short_form_finds_no_defect(script, tmp_path):
    assert defects(script, tmp_path, SCRIPTS[script][0]) == {}


@pytest.mark.long
@pytest.mark.parametrize("script", LONG)
def test_long_form_finds_no_defect(script, tmp_path):
    assert defects(script, tmp_path, LONG[script]) == {}
