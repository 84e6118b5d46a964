"""Every engine gives the rows of eager float32, whatever the batch; one that does not is refused."""

from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from bottleneck.engines.base import build_engine
from bottleneck.engines.onnx_graph import GraphCache
from bottleneck.errors import BackboneError, EngineError
from tests.helpers.networks import (
    BatchNormalised,
    Centred,
    ExportsWrongly,
    NeedsABatch,
    NormalisedByImage,
    Random,
    TinyExtractor,
    TooWideForInt8,
    Unexportable,
    WideAtFirst,
    eager,
    photos,
    refuse_to_make,
)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "torch"])
def engine(request, shared_graphs):
    if request.param == "openvino":
        pytest.importorskip("openvino")
    threads = {"onnxruntime": 3, "openvino": 3, "torch": 1}[request.param]
    return build_engine(
        TinyExtractor, photos(12), key="tiny", engine=request.param, device="cpu", threads=threads
    )


def test_rows_equal_eager(engine):
    assert (engine.precision, engine.device, engine.calibration) == ("fp32", "cpu", None)
    assert set(engine.agreement) == {0, 1}
    pixels = photos(9, seed=1)
    for rows, reference in zip(engine(pixels), eager(TinyExtractor(), pixels), strict=True):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, reference, rtol=1e-4, atol=1e-6)


def test_rows_do_not_depend_on_their_batch(engine):
    pixels = photos(70, seed=2)
    together = engine(pixels)
    for size in (1, 7, 32):
        parts = [engine(pixels[start : start + size]) for start in range(0, 70, size)]
        for node, rows in enumerate(together):
            apart = np.concatenate([part[node] for part in parts])
            np.testing.assert_allclose(apart, rows, rtol=1e-5, atol=1e-5 * rows.std())
    order = np.random.default_rng(0).permutation(70)
    for rows, shuffled in zip(together, engine(pixels[order]), strict=True):
        np.testing.assert_allclose(shuffled, rows[order], rtol=1e-5, atol=1e-5 * rows.std())


def test_pixels_may_be_views_and_read_only(engine):
    pixels = photos(6)
    pixels.flags.writeable = False
    for rows, reversed_ in zip(engine(pixels), engine(pixels[::-1]), strict=True):
        np.testing.assert_allclose(reversed_[::-1], rows, rtol=1e-5, atol=1e-6)


def test_memory_stays_flat(engine):
    process, pixels = psutil.Process(), photos(64)

    def run(rounds):
        for count in range(rounds):
            engine(pixels[: 1 + 13 * count % 64])
        return process.memory_info().rss

    before = run(32)
    assert run(128) - before < 16 << 20


def test_auto_takes_onnxruntime_on_the_cpu(shared_graphs):
    engine = build_engine(TinyExtractor, photos(4), key="tiny", device="cpu", threads=1)
    assert (engine.name, engine.precision) == ("onnxruntime", "fp32")


@pytest.mark.parametrize("flags", [{"engine": "onnxruntime"}, {"precision": "int8"}])
def test_what_only_a_cpu_runs_runs_there_beside_a_gpu(flags, shared_graphs, monkeypatch):
    monkeypatch.setattr("bottleneck.engines.base.resolve_device", lambda name: name.replace("auto", "cuda"))
    engine = build_engine(TinyExtractor, photos(16), key="tiny", **flags)
    assert (engine.name, engine.device) == ("onnxruntime", "cpu")


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 3e-2), ("fp16", 5e-3)])
def test_half_precision_in_torch_is_near_and_float32_comes_out(precision, bound):
    # Named, since on a processor with bfloat16 units OpenVINO comes first.
    engine = build_engine(
        TinyExtractor, photos(8), key="k", engine="torch", precision=precision, device="cpu"
    )
    assert (engine.name, engine.precision) == ("torch", precision)
    assert 1e-6 < max(engine.agreement.values()) <= bound
    assert {rows.dtype for rows in engine(photos(3))} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("network", "reason"), [(Unexportable, "exporting the network"), (ExportsWrongly, "difference 1.0e-02")]
)
def test_an_engine_that_fails_gives_way_to_the_next_with_a_warning(network, reason, graphs, caplog):
    engine = build_engine(network, photos(8), key="k", device="cpu")
    assert engine.name == "torch"
    assert reason in caplog.text
    assert "Next: torch" in caplog.text
    for rows, reference in zip(engine(photos(3)), eager(network(), photos(3)), strict=True):
        np.testing.assert_allclose(rows, reference, rtol=1e-4, atol=1e-6)
    assert not list(graphs.glob("*.graph"))  # nothing wrong is kept


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (
            BatchNormalised,
            r"my:net depends on the other images of a batch: layer stem\.1 \(BatchNorm2d\) normalises",
        ),
        (Centred, r"my:net depends on the other images of a batch; alone, an image has other features"),
        (NeedsABatch, r"my:net depends .*norm \(BatchNorm1d\).*cannot compute one image alone"),
        (Random, r"my:net gives an image other features each time"),
    ],
)
def test_rows_that_depend_on_their_neighbours_or_on_chance_are_refused(
    network, reason, engine, count, graphs
):
    with pytest.raises(BackboneError, match=reason):
        build_engine(network, photos(count), key="k", engine=engine, device="cpu", network="my:net")
    assert not list(graphs.glob("*"))


def test_images_that_are_all_alike_do_not_hide_a_dependence(graphs):
    with pytest.raises(BackboneError, match="depends on the other images"):
        build_engine(BatchNormalised, photos(1).repeat(8, axis=0), key="k", device="cpu")


def test_normalisation_of_each_image_by_itself_is_accepted(graphs):
    engine = build_engine(NormalisedByImage, photos(4), key="k", engine="torch", device="cpu")
    pixels = photos(5, seed=1)
    alone = [eager(NormalisedByImage(), pixels[i : i + 1])[1] for i in range(5)]
    np.testing.assert_allclose(engine(pixels)[1], np.concatenate(alone), rtol=1e-4, atol=1e-6)


def test_a_graph_that_was_stored_before_the_check_is_not_used(graphs, monkeypatch):
    with monkeypatch.context() as unchecked:
        unchecked.setattr("bottleneck.engines.reference.dependence", lambda run, probe: "")
        build_engine(Centred, photos(4), key="k", engine="onnxruntime", device="cpu")
    with pytest.raises(BackboneError, match="depends on the other images"):
        build_engine(Centred, photos(4), key="k", engine="onnxruntime", device="cpu")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_that_rows_of_a_stored_graph_are_independent_is_found_once_on_each_processor(
    graphs, monkeypatch, runtime
):
    pytest.importorskip(runtime)
    flags = {"key": "k", "engine": runtime, "device": "cpu"}
    where = "bottleneck.engines.graph_engine"
    build_engine(TinyExtractor, photos(4), **flags)
    build_engine(refuse_to_make, photos(4), **flags)
    monkeypatch.setattr(f"{where}.dependence", lambda run, probe: "found again")
    build_engine(refuse_to_make, photos(4), **flags)
    monkeypatch.setattr(f"{where}.processor_name", lambda: "another")
    other = "openvino" if runtime == "onnxruntime" else "onnxruntime"
    with pytest.raises(EngineError if runtime == "openvino" else AssertionError):  # the latter makes it again
        build_engine(refuse_to_make, photos(4), **flags)
    assert other not in str(GraphCache().load("k", "fp32").details)


def test_an_engine_asked_for_by_name_is_not_replaced(graphs):
    with pytest.raises(
        EngineError, match=r"onnxruntime in fp32 on cpu is refused: relative difference 1\.0e-02"
    ):
        build_engine(ExportsWrongly, photos(8), key="k", engine="onnxruntime", device="cpu")


def test_a_broken_backbone_is_not_taken_for_a_broken_engine(graphs):
    def make():
        raise BackboneError("no weights")

    with pytest.raises(BackboneError, match="no weights"):
        build_engine(make, photos(2), key="k", device="cpu")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"engine": "tensorrt"}, "--engine must be one of auto, onnxruntime"),
        ({"precision": "fp64"}, "--precision must be one of auto, fast, fp32"),
        ({"device": "tpu"}, "auto, cpu, cuda, cuda:N or mps; got 'tpu'"),
        ({"device": "cuda:x"}, "got 'cuda:x'"),
        ({"engine": "torch", "precision": "int8"}, "No engine for --engine torch --precision int8"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "No engine for --engine onnxruntime"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_is_made(flags, message):
    with pytest.raises(EngineError, match=message):
        build_engine(refuse_to_make, photos(2), key="k", **{"device": "cpu", **flags})


def test_no_example_is_refused():
    with pytest.raises(EngineError, match="at least one example image"):
        build_engine(refuse_to_make, photos(0), key="k", device="cpu")


def test_int8_agrees_and_says_on_what_it_was_calibrated(shared_graphs):
    engine = build_engine(TinyExtractor, photos(16), key="tiny", precision="int8", device="cpu")
    assert min(engine.agreement.values()) >= 0.98
    assert (engine.calibration["images"], engine.calibration["images_held_out"]) == (12, 4)
    assert engine.calibration["float_layers"] == 0
    assert engine.notes == ()
    pixels = photos(8, seed=5)
    for rows, reference in zip(engine(pixels), eager(TinyExtractor(), pixels), strict=True):
        rows, reference = rows.reshape(8, -1), reference.reshape(8, -1)
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(reference, axis=1)
        cosine = (rows * reference).sum(axis=1) / norms
        assert 0.98 <= cosine.mean() < 1 - 1e-7  # eight bits leave a trace

    flags = {"key": "tiny", "precision": "int8", "device": "cpu"}
    later = build_engine(refuse_to_make, photos(3, seed=9), calibration=engine.calibration, **flags)
    assert later.calibration == engine.calibration
    for rows, again in zip(engine(pixels), later(pixels), strict=True):
        np.testing.assert_array_equal(rows, again)


def test_int8_rows_are_not_continued_by_another_calibration(shared_graphs):
    ours = build_engine(TinyExtractor, photos(16), key="tiny", precision="int8", device="cpu").calibration
    for theirs, reason in (
        ({**ours, "pixels_sha256": "0" * 64}, "neither that graph nor its calibration images"),
        ({**ours, "method": "entropy"}, "'entropy'"),
        ({"method": "entropy"}, "neither that graph nor its calibration images"),
    ):
        with pytest.raises(EngineError, match=reason):
            build_engine(
                refuse_to_make, photos(16), key="tiny", precision="int8", device="cpu", calibration=theirs
            )


def test_int8_is_refused_where_it_disagrees_unless_forced(graphs):
    with pytest.raises(EngineError, match=r"cosine 0\.\d+ with float32, at least 0\.98 is needed"):
        build_engine(TooWideForInt8, photos(8), key="k", precision="int8", device="cpu")
    forced = build_engine(refuse_to_make, photos(8), key="k", precision="int8", device="cpu", force=True)
    assert forced.calibration["cosine"][0] < 0.98


def test_int8_leaves_the_first_layers_in_float32_where_that_agrees_better(graphs):
    flags = {"key": "k", "precision": "int8", "device": "cpu"}
    engine = build_engine(WideAtFirst, photos(16), **flags)
    assert engine.calibration["float_layers"] == 3
    assert engine.calibration["cosine"][0] >= 0.99
    assert [(note.code, note.details) for note in engine.notes] == [
        ("int8-float-layers", {"float_layers": 3})
    ]
    later = build_engine(refuse_to_make, photos(3, seed=9), calibration=engine.calibration, **flags)
    assert later.notes == ()
    np.testing.assert_array_equal(engine(photos(4))[0], later(photos(4))[0])


def test_int8_rows_of_before_there_was_a_choice_of_layers_are_continued(graphs):
    flags = {"precision": "int8", "device": "cpu", "force": True}
    engine = build_engine(WideAtFirst, photos(16), key="k", **flags)
    before = {name: value for name, value in engine.calibration.items() if name != "float_layers"}
    with pytest.raises(EngineError, match="neither that graph nor its calibration images"):
        build_engine(refuse_to_make, photos(16, seed=9), key="k", calibration=before, **flags)
    for key in ("k", "other"):  # where a graph with float layers is stored, and where there is none
        again = build_engine(WideAtFirst, photos(16), key=key, calibration=before, **flags)
        assert again.calibration == before
        assert again.agreement[0] < 0.98
    # Neither graph has replaced the other: both caches go on without the images.
    for other, calibration in ((engine, engine.calibration), (again, before)):
        later = build_engine(refuse_to_make, photos(3, seed=9), key="k", calibration=calibration, **flags)
        np.testing.assert_array_equal(other(photos(4))[0], later(photos(4))[0])


def test_an_int8_graph_of_before_there_was_a_choice_of_layers_stays_where_one_is_chosen(graphs):
    flags = {"key": "k", "precision": "int8", "device": "cpu", "force": True}
    chosen = build_engine(WideAtFirst, photos(16), **flags).calibration
    without = {name: value for name, value in chosen.items() if name != "float_layers"}
    old = build_engine(WideAtFirst, photos(16), calibration=without, **flags)
    pixels, cache = chosen["pixels_sha256"], GraphCache()
    stored = cache.load("k", "int8", pixels, "0")
    details = {name: value for name, value in stored.details.items() if name != "float_layers"}
    cache.store(replace(stored, details=details), "k", "int8", pixels)  # as an earlier version did
    cache.path("k", "int8", pixels, "0").unlink()
    assert build_engine(WideAtFirst, photos(16), **flags).calibration == chosen
    later = build_engine(refuse_to_make, photos(3, seed=9), calibration=without, **flags)
    np.testing.assert_array_equal(old(photos(4))[0], later(photos(4))[0])


class Limited(TinyExtractor):
    """Has memory for `limit` images at once, as far as a CPU can tell."""

    limit = 16

    def forward(self, pixels):
        if len(pixels) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(pixels)


def test_passes_are_halved_where_memory_is_too_small_and_it_is_told():
    module = Limited()
    engine = build_engine(lambda: module, photos(4), key="k", engine="torch", device="cpu")
    assert engine.notes == ()
    module.limit = 5
    pixels = photos(23, seed=4)
    for rows, reference in zip(engine(pixels), eager(TinyExtractor(), pixels), strict=True):
        np.testing.assert_allclose(rows, reference, rtol=1e-4, atol=1e-6)
    assert [(note.code, note.details) for note in engine.notes] == [
        ("passes-halved", {"images": 4, "of": 16})
    ]
    module.limit = 0
    with pytest.raises(EngineError, match="too small for one image of"):
        engine(pixels)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_cuda_rows_equal_eager_in_any_batch(precision):
    engine = build_engine(TinyExtractor, photos(8), key="k", precision=precision, device="cuda")
    assert engine.device == "cuda"
    pixels = photos(300, seed=3)
    bound = {"auto": 5e-3, "fp32": 1e-4, "bf16": 3e-2}[precision]
    for rows, reference in zip(engine(pixels), eager(TinyExtractor(), pixels), strict=True):
        distance = np.linalg.norm((rows - reference).reshape(300, -1), axis=1)
        assert (distance <= bound * np.linalg.norm(reference.reshape(300, -1), axis=1)).all()
    for size in (1, 7, 32):
        parts = [engine(pixels[start : start + size])[1] for start in range(0, 300, size)]
        rtol = 1e-5 if precision == "fp32" else bound
        np.testing.assert_allclose(np.concatenate(parts), engine(pixels)[1], rtol=rtol, atol=rtol)


def test_compiled_torch_equals_eager(long):
    if not long:
        pytest.skip("compiles for a minute: run with --long")
    engine = build_engine(TinyExtractor, photos(8), key="k", engine="torch-compiled", device="cpu")
    for rows, reference in zip(engine(photos(5)), eager(TinyExtractor(), photos(5)), strict=True):
        np.testing.assert_allclose(rows, reference, rtol=1e-4, atol=1e-6)


def test_a_real_network_with_several_nodes_runs_as_eager_does(graphs):
    import torchvision

    class Nodes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            net = torchvision.models.squeezenet1_1(weights=None)
            self.front, self.back = net.features[:6], net.features[6:]

        def forward(self, pixels):
            middle = self.front(pixels.permute(0, 3, 1, 2).float() / 255)
            return middle, self.back(middle).mean((2, 3))

    module = Nodes().eval()
    pixels = photos(5).repeat(2, axis=1).repeat(2, axis=2)  # 64 × 64
    engine = build_engine(lambda: module, pixels, key="squeezenet", device="cpu")
    assert engine.name == "onnxruntime"
    for rows, reference in zip(engine(pixels), eager(module, pixels), strict=True):
        assert rows.shape == reference.shape
        np.testing.assert_allclose(rows, reference, rtol=1e-4, atol=1e-5 * reference.std())
