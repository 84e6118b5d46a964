"""The checks for owners of a GPU, run on the CPU as far as that goes: their figures are right, a failure is
told."""

import json
import sys

import numpy as np
import pytest

from bottleneck.engines.reference import BOUNDS
from tests.benchmarks import gpu, gpu_checks
from tests.benchmarks.images import digits, write_photographs, write_set
from tests.benchmarks.machine import Machine
from tests.benchmarks.measurement import Row
from tests.benchmarks.process import Child


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("gpu") / "photographs", 12)


@pytest.fixture
def on(photographs):
    return {"folder": str(photographs), "limit": 8, "device": "cpu"}


def test_float32_agrees_and_bfloat16_differs_a_little(on):
    on["limit"] = 2  # bfloat16 takes seconds an image where a processor has no unit for it
    assert gpu_checks.agreement(**on, precision="fp32")["difference"] < 1e-5
    half = gpu_checks.agreement(**on, precision="bf16")
    assert 1e-4 < half["difference"] < 0.3
    assert half["cosine"] > 0.99


def test_two_runs_are_equal_to_the_bit(on):
    assert gpu_checks.twice(**on, precision="fp32") == {"differ": 0, "rows": 8}


def test_passes_are_halved_and_rows_stay(on):
    found = gpu_checks.out_of_memory(**on)
    assert (found["images"], found["of"], found["note"]) == (4, 16, "passes-halved")
    assert found["difference"] < 1e-4


def test_a_pass_that_is_not_halved_is_a_failure(on, monkeypatch):
    monkeypatch.setattr(gpu_checks, "_take_memory", lambda extractor, device: "none was taken")
    with pytest.raises(RuntimeError, match=r"no pass was halved, .* \(none was taken\)"):
        gpu_checks.out_of_memory(**on)


@pytest.mark.filterwarnings("ignore")
def test_both_decoders_are_compared_by_their_pixels(on):
    found = gpu_checks.decoding(**on)
    assert found["most"] <= gpu.LEVELS
    assert found["equal"] > 0.9
    assert len(found["host"]) == len(found["device"]) == gpu_checks.REPEATS


def test_training_gives_a_rate_and_an_accuracy(tmp_path):
    folder = write_set(tmp_path / "digits", digits(8, np.random.default_rng(0)), 40, 20)
    options = {"folder": str(folder), "device": "cpu", "epochs": 1, "precision": "fp32"}
    for found in (gpu_checks.finetune(**options), gpu_checks.scratch(**options)):
        assert found["images_per_second"] > 0
        assert 0 <= found["accuracy"] <= 100


def test_what_this_cpu_refuses_does_not_apply_to_it(on, monkeypatch, tmp_path):
    monkeypatch.setitem(BOUNDS, "bf16", 0.0)
    monkeypatch.setattr("bottleneck.training.job.trains_in_bf16", lambda device: False)

    def run_child(module, check, **options):
        return Child(getattr(gpu_checks, check)(**options), 0.0, 0.0)

    monkeypatch.setattr(gpu, "run_child", run_child)
    plan = gpu.Plan("cpu", tmp_path, images=4, samples=40, epochs=1, heads=300)
    write_photographs(tmp_path / "photographs", 4)
    write_set(tmp_path / "digits", digits(8, np.random.default_rng(0)), 40, 20)
    rows = [*gpu.agreement(plan, "bf16"), *gpu.repeated(plan, "bf16"), *gpu.training(plan)]
    assert [row.verdict for row in rows] == ["not measured"] * 4
    assert not any(row.failed for row in rows)
    assert all("refuses it on this CPU: " in row.reason for row in rows)


def test_memory_is_compared_beyond_what_is_read_ahead(monkeypatch, tmp_path):
    asked = []

    def run_child(module, check, folder, limit, device):
        asked.append((len(list(folder.rglob("*.jpg"))), limit))
        return Child({"few": 100.0, "many": 101.0, "of": "process"}, 0.0, 0.0)

    monkeypatch.setattr(gpu, "run_child", run_child)
    monkeypatch.setattr(gpu, "READ_AHEAD", 2)
    (row,) = gpu.memory(gpu.Plan("cpu", tmp_path, images=4, samples=40, epochs=1, heads=300))
    assert asked == [(8, 8)]
    assert (row.what, row.verdict) == ("memory of the process, 8 photographs", "ok")


def test_heads_of_both_devices_are_compared_by_their_objectives():
    found = gpu_checks.heads("cpu", 200)
    assert abs(found["gap"]) < 1e-6
    assert found["C"].split(", on the CPU ")[0] == found["C"].split(", on the CPU ")[1]


def test_pixels_that_differ_are_not_raced(monkeypatch, tmp_path):
    plan = gpu.Plan("cuda", tmp_path, 8, 8, 1, 8)
    figures = {"equal": 0.5, "host": [9.0], "device": [90.0]}
    raced = {}
    for most in (gpu.LEVELS, gpu.LEVELS + 1):
        child = Child({**figures, "most": most}, 1.0, 1.0)
        monkeypatch.setattr(gpu, "run_child", lambda *_, child=child, **__: child)
        (raced[most],) = gpu.decoding(plan)
    assert raced[gpu.LEVELS].ratios == (10,)
    assert raced[gpu.LEVELS + 1].ours == ()
    assert "50.00 % of pixel values are equal" in raced[gpu.LEVELS + 1].conditions


def test_a_check_that_fails_is_a_row_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    def broken(plan):
        raise RuntimeError("CUDA error: no kernel\nimage")
        yield

    def missed(plan):
        yield Row("rows", "relative", (1.0,), at_most=0.5)

    monkeypatch.setattr(gpu, "CHECKS", (broken, missed))
    monkeypatch.setattr(sys, "argv", ["gpu", "--cpu", "--json", str(tmp_path / "f.json")])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    first, second = json.loads((tmp_path / "f.json").read_text("utf-8"))
    assert (first["what"], first["reason"]) == ("broken", "RuntimeError: CUDA error: no kernel")
    assert (first["verdict"], second["verdict"]) == ("failed", "missed")
    assert "missed        rows" in capsys.readouterr().out


def test_without_a_gpu_it_says_so_and_measures_nothing(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "this_machine", lambda: Machine("a processor", 2, (), gpu=""))
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 0  # nothing failed: in a run of all parts it is no failure either
    out = capsys.readouterr().out
    assert "There is no CUDA device here: nothing is measured." in out
    assert "not measured  all that a GPU does" in out


def test_tests_marked_cuda_are_found():
    assert gpu.MARK.search("x\n@pytest.mark.cuda\ndef test_y(): ...")
    assert not gpu.MARK.search('"""@pytest.mark.cuda in a sentence"""')
