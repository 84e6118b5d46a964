"""A run that is killed in every stage, and at random moments, ends as a whole one: choice and model."""

import json
import os
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

from bottleneck.heads.artifact import load_head


def test_a_run_that_is_killed_again_and_again_ends_as_a_whole_one(source, tmp_path, long):
    rounds, seed = (40, int.from_bytes(os.urandom(4))) if long else (1, 0)
    words = ["-m", "tests.helpers.killed_train", str(source), str(tmp_path), str(rounds), str(seed)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, *words], env=one_thread, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, f"seed {seed}: {ran.stderr}"
    killed = json.loads(ran.stdout.splitlines()[-1])["killed"]
    assert killed[0] >= 6, "once in every stage"
    assert not long or sum(killed[1:]) > rounds
    expected, model = outcome(tmp_path / "whole")
    assert [each["kind"] for each in expected["candidates"]][-2:] == ["flipped", "finetuned"]
    assert expected["candidates"][-1]["chosen"]
    for number in range(rounds):
        found, other = outcome(tmp_path / str(number))
        assert found == expected, f"seed {seed}, round {number}"
        assert model.keys() == other.keys()
        for name, array in model.items():
            np.testing.assert_array_equal(other[name], array, err_msg=f"seed {seed}, round {number}, {name}")


def outcome(folder):
    """The choice and the figures of a run without times and paths, and the arrays of its model."""
    values = json.loads((folder / "result.json").read_text())
    tried = [{**each, "seconds": 0} for each in values["candidates"]]
    temperature = load_head(folder / "m.safetensors").temperature
    same = {name: values[name] for name in ("rule", "accuracy", "accuracy_ci95", "samples")}
    arrays = load_file(folder / "m.safetensors")
    return {"candidates": tried, "temperature": temperature, **same}, arrays
