"""Of the engines that agree, the fastest is taken and remembered; OpenVINO computes in what was asked for."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from bottleneck.engines import base, race, runtimes
from bottleneck.engines.base import build_engine
from bottleneck.engines.onnx_graph import GraphCache
from bottleneck.engines.reference import COSINES
from bottleneck.errors import EngineError
from tests.helpers.networks import TinyExtractor, Unexportable, eager, photos, refuse_to_make

openvino = pytest.importorskip("openvino")
FLAGS = {"key": "tiny", "device": "cpu", "threads": 2}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A user folder that holds the exported graph alone, as an export takes seconds."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOTTLENECK_CACHE", str(folder))
        build_engine(TinyExtractor, photos(4), engine="onnxruntime", **FLAGS)
    return folder


@pytest.fixture
def races(exported, monkeypatch, tmp_path):
    """The folder of remembered races, which does not exist yet."""
    folder = shutil.copytree(exported, tmp_path / "user")
    monkeypatch.setenv("BOTTLENECK_CACHE", str(folder))
    return folder / "races"


@pytest.fixture
def slow(monkeypatch):
    """Make calls of one runtime slow."""

    def delay(runtime):
        opened = runtimes.open_graph

        def open_slowly(name, *arguments):
            run = opened(name, *arguments)
            return lambda pixels: (time.sleep(0.02 if name == runtime else 0), run(pixels))[1]

        monkeypatch.setattr("bottleneck.engines.graph_engine.open_graph", open_slowly)

    return delay


@pytest.mark.parametrize(("loser", "winner"), [("onnxruntime", "openvino"), ("openvino", "onnxruntime")])
def test_the_faster_runtime_wins_and_is_remembered(loser, winner, races, slow):
    slow(loser)
    engine = build_engine(TinyExtractor, photos(32), **FLAGS)
    assert (engine.name, engine.precision) == (winner, "fp32")
    (record,) = races.iterdir()
    rates = json.loads(record.read_text())["images_per_second"]
    assert rates[winner] > rates[loser]
    slow(winner)  # not raced again, and with few images
    assert build_engine(refuse_to_make, photos(2), **FLAGS).name == winner


def test_few_images_are_not_worth_a_race(races, slow):
    slow("onnxruntime")
    assert build_engine(TinyExtractor, photos(31), **FLAGS).name == "onnxruntime"
    assert not races.exists()


def test_a_damaged_record_means_another_race(races, slow):
    build_engine(TinyExtractor, photos(32), **FLAGS)
    (record,) = races.iterdir()
    for text in ("", "[]", '{"winner": 7}', '{"winner": "tensorrt"}'):
        record.write_text(text)
        assert race.remembered_winner("tiny", [("onnxruntime", "fp32"), ("openvino", "fp32")], 2) is None
    slow("onnxruntime")
    assert build_engine(refuse_to_make, photos(32), **FLAGS).name == "openvino"


def test_a_remembered_runtime_that_fails_gives_way_to_the_other(races, slow, monkeypatch, caplog):
    slow("onnxruntime")
    assert build_engine(TinyExtractor, photos(32), **FLAGS).name == "openvino"
    monkeypatch.setattr(runtimes, "_open_openvino", lambda *arguments: 1 / 0)
    assert build_engine(refuse_to_make, photos(32), **FLAGS).name == "onnxruntime"
    assert "Engine openvino in fp32 on cpu is refused" in caplog.text


def test_a_network_that_cannot_be_exported_is_exported_once(races, monkeypatch, caplog):
    calls = []
    monkeypatch.setattr(
        "bottleneck.engines.reference.export_graph", lambda *arguments: calls.append(arguments) or 1 / 0
    )
    assert build_engine(Unexportable, photos(32), **FLAGS | {"key": "other"}).name == "torch"
    assert len(calls) == 1


def test_openvino_is_absent(races, monkeypatch):
    monkeypatch.setattr(runtimes, "is_installed", lambda name: name != "openvino")
    monkeypatch.setattr(base, "is_installed", lambda name: name != "openvino")
    assert build_engine(TinyExtractor, photos(32), **FLAGS).name == "onnxruntime"
    with pytest.raises(EngineError, match=r"openvino is not installed \(pip install"):
        build_engine(TinyExtractor, photos(32), engine="openvino", **FLAGS)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_calls_of_fewer_images_than_a_pass_give_their_rows(runtime, exported):
    """OpenVINO computes four images in every call: for a free number its int8 rows of Lite0 are wrong."""
    graph = GraphCache(exported / "graphs").load("tiny", "fp32").graph
    run, pixels = runtimes.open_graph(runtime, graph, "fp32", 1, 1, 4), photos(4)
    for count in (0, 1, 3, 4):
        for rows, reference in zip(run(pixels[:count]), eager(TinyExtractor(), pixels), strict=True):
            np.testing.assert_allclose(rows, reference[:count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damage", [b"", b"not a blob" * 100])
def test_a_broken_compiled_graph_is_compiled_again(damage, races):
    flags = FLAGS | {"engine": "openvino"}
    rows = build_engine(TinyExtractor, photos(4), **flags)(photos(4))
    blobs = list((races.parent / "graphs").glob("*.blob"))
    assert blobs
    for blob in blobs:
        blob.write_bytes(damage)
    again = build_engine(refuse_to_make, photos(4), **flags)(photos(4))
    for one, other in zip(rows, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_bfloat16_is_refused_where_openvino_would_compute_in_float32(races, monkeypatch):
    monkeypatch.setattr(runtimes, "computes_bf16", lambda: False)
    with pytest.raises(EngineError, match=r"would compute in .* instead of bf16"):
        build_engine(TinyExtractor, photos(8), engine="openvino", precision="bf16", **FLAGS)


@pytest.fixture
def with_unit(monkeypatch):
    """A processor that multiplies bfloat16; OpenVINO then computes in what this machine has."""
    for module in (base, runtimes):
        monkeypatch.setattr(module, "computes_bf16", lambda: True)
    monkeypatch.setitem(runtimes._HINTS, "bf16", "f32")


def test_fast_is_bfloat16_where_there_is_a_unit_and_its_cosine_is_kept(races, with_unit):
    engine = build_engine(TinyExtractor, photos(12), precision="fast", **FLAGS)
    assert (engine.name, engine.precision) == ("openvino", "bf16")
    assert engine.calibration["images"] == 12
    assert engine.calibration["engine"].startswith("openvino 20")
    assert min(engine.calibration["cosine"]) >= 0.995
    pixels = photos(5, seed=3)
    for rows, reference in zip(engine(pixels), eager(TinyExtractor(), pixels), strict=True):
        np.testing.assert_allclose(rows, reference, rtol=5e-2, atol=5e-2 * np.abs(reference).max())
    later = build_engine(refuse_to_make, photos(3), precision="bf16", calibration=engine.calibration, **FLAGS)
    assert (later.name, later.calibration) == ("openvino", engine.calibration)
    with pytest.raises(EngineError, match="rows were computed by openvino, not torch"):
        build_engine(
            refuse_to_make,
            photos(3),
            precision="bf16",
            engine="torch",
            calibration=engine.calibration,
            **FLAGS,
        )


def test_fast_falls_back_to_float32_where_bfloat16_is_too_far_off(races, with_unit, monkeypatch, caplog):
    monkeypatch.setitem(COSINES, "bf16", 1.1)
    engine = build_engine(TinyExtractor, photos(12), precision="fast", **FLAGS)
    assert (engine.name, engine.precision, engine.calibration) == ("onnxruntime", "fp32", None)
    assert "Engine openvino in bf16 on cpu is refused: cosine" in caplog.text


def test_fast_without_a_unit_is_float32(races, monkeypatch):
    monkeypatch.setattr(base, "computes_bf16", lambda: False)
    engine = build_engine(TinyExtractor, photos(12), precision="fast", **FLAGS)
    assert (engine.name, engine.precision) == ("onnxruntime", "fp32")


FIRST_READS = """
import sys, threading, time
import numpy as np
from onnx import TensorProto, helper
from bottleneck.engines.onnx_graph import INPUT
from bottleneck.engines.runtimes import open_graph

def slow(version, real=np.lib.NumpyVersion):
    time.sleep(0.2)  # without the GIL, where OpenVINO's bindings look NumPy up
    return real(version)

np.lib.NumpyVersion = slow
ends = [helper.make_tensor_value_info(name, kind, ["b", 2, 2, 3])
        for name, kind in ((INPUT, TensorProto.UINT8), ("y", TensorProto.FLOAT))]
cast = helper.make_node("Cast", [INPUT], ["y"], to=TensorProto.FLOAT)
graph = helper.make_graph([cast], "g", ends[:1], ends[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
run = open_graph("openvino", model.SerializeToString(), "fp32", 2, 1, 4)
rows, pixels = [], np.full((2, 2, 2, 3), 7, np.uint8)
calls = [threading.Thread(target=lambda: rows.append(run(pixels)[0])) for _ in "12"]
for call in calls: call.start()
for call in calls: call.join()
print(*(row.sum() for row in rows))
"""


def test_first_passes_at_once_end():
    """A process of its own, whose first reads of tensors are two at once; without care they wait for ever."""
    command = [sys.executable, "-c", FIRST_READS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout.split(), result.returncode) == (["168.0"] * 2, 0), result.stderr
