"""The stream from pixels to features: every row beside its own image, however many calls overlap."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bottleneck.data.loader import LoadedImage
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.read_source import read_source
from bottleneck.extraction.config import EngineConfig
from bottleneck.extraction.pipeline import Batch, Trunk, without_unstorable
from bottleneck.store.spec import NodeSpec

pytestmark = pytest.mark.usefixtures("all_cores")  # decoders and passes run side by side

GREY = Preprocess(size=8, resize=8, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)


class SlowEngine:
    """Gives an image's mean; later calls are faster, so that they would overtake earlier ones."""

    name, precision, device = "slow", "fp32", "cpu"
    notes = ()
    refused, error = -1, None  # raised for a batch with an image of this grey level

    def __init__(self, calls, fails_at=None):
        self.calls, self.batch, self.fails_at = calls, 4, fails_at
        self.running = self.most = self.made = 0
        self._lock = threading.Lock()

    def __call__(self, pixels):
        with self._lock:
            self.made += 1
            number, self.running = self.made, self.running + 1
            self.most = max(self.most, self.running)
        time.sleep(0.03 if number % 2 else 0.0)
        with self._lock:
            self.running -= 1
        if self.fails_at is not None and number >= self.fails_at:
            raise RuntimeError("the network broke")
        if (pixels == self.refused).all(axis=(1, 2, 3)).any():
            raise self.error
        return (pixels.reshape(len(pixels), -1).mean(axis=1, keepdims=True).astype(np.float32),)


def stream(tmp_path, engine, bad=()):
    """The stream over 30 plain images, image i of grey level 8 i; those of `bad` cannot be decoded."""
    for i in range(30):
        path = tmp_path / "a" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image %d" % i) if i in bad else Image.new("RGB", (8, 8), (8 * i,) * 3).save(
            path
        )
    trunk = Trunk(lambda: None, GREY, EngineConfig(workers=2, batch_size=4))
    trunk._engines[("node",)] = engine
    source = read_source(tmp_path)
    return trunk, trunk.stream(source, list(source.images), ["node"])


@pytest.mark.parametrize("calls", [1, 2])
def test_rows_stay_beside_their_images_when_calls_overlap(tmp_path, calls):
    engine = SlowEngine(calls)
    trunk, items = stream(tmp_path, engine, bad=(3, 17, 29))
    rows, failed = {}, []
    for item in items:
        if isinstance(item, Batch):
            rows |= zip((image.key for image in item.images), item.features[0][:, 0], strict=True)
        else:
            failed.append(item.key)
    assert failed == ["a/03.png", "a/17.png", "a/29.png"]
    assert rows == {f"a/{i:02}.png": 8.0 * i for i in range(30) if i not in (3, 17, 29)}
    assert engine.most <= calls
    assert trunk.spent["network"] > 0


def test_an_error_of_the_network_reaches_the_caller_and_ends_the_threads(tmp_path):
    _, items = stream(tmp_path, SlowEngine(2, fails_at=3))
    with pytest.raises(RuntimeError, match="the network broke") as raised:
        list(items)
    assert raised.traceback, "its frames are alive, and end no thread by being freed"
    assert not [
        t for t in threading.enumerate() if t.name.startswith(("bottleneck-call", "bottleneck-decode"))
    ]


@pytest.mark.parametrize("position", [0, 5, 29])
@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("deep"), RuntimeError("[enforce fail at x]\n#1")]
)
def test_an_image_that_the_network_cannot_take_fails_alone(tmp_path, position, error):
    engine = SlowEngine(2)
    engine.refused, engine.error = 8 * position, error
    _, items = stream(tmp_path, engine)
    rows, failed = {}, []
    for item in items:
        if isinstance(item, Batch):
            rows |= zip((image.key for image in item.images), item.features[0][:, 0], strict=True)
        else:
            failed.append((item.key, item.error.partition(": ")[0], item.passing))
    assert failed == [(f"a/{position:02}.png", "cannot pass the network", True)]
    assert rows == {f"a/{i:02}.png": 8.0 * i for i in range(30) if i != position}


def test_nodes_in_another_order_are_the_same_engine_and_come_as_asked(tmp_path, monkeypatch):
    """A cache that exists has its nodes by name, a new one as they were asked for."""
    keys = []

    def build(make_extractor, example, *, key, **_):
        keys.append(key)
        values = [float(len(name)) for name in make_extractor()]
        engine = SlowEngine(1)
        monkeypatch.setattr(
            SlowEngine, "__call__", lambda _, pixels: tuple(np.full((len(pixels), 1), v) for v in values)
        )
        return engine

    monkeypatch.setattr("bottleneck.engines.base.build_engine", build)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    source = read_source(tmp_path)
    network = SimpleNamespace(recipe={"name": "fake"}, name="net", extractor=lambda nodes, preprocess: nodes)
    for nodes in (("low", "bottleneck"), ("bottleneck", "low")):
        (batch,) = Trunk(lambda: network, GREY, EngineConfig()).stream(source, ["a.png"], nodes)
        assert [rows.item() for rows in batch.features] == [len(name) for name in nodes]
    assert len(keys) == 2
    assert keys[0] == keys[1]


def test_nodes_of_one_int8_graph_are_known_by_their_cosines(tmp_path):
    """Nodes with one calibration have as many cosines as there are nodes, or each had a graph of its own."""

    def trunk(cosines, **others):
        calibration = {"pixels_sha256": "0" * 64, "cosine": cosines, **others}
        return Trunk(lambda: None, GREY, EngineConfig(), {}, {"b": calibration, "a": calibration, "c": None})

    assert trunk([0.99, 0.98]).made_with(["b"]) == ("a", "b")
    assert trunk([0.99]).made_with(["b"]) == ("b",)
    assert trunk([0.99] * 3).made_with(["a", "b"]) == ("a", "b")  # one of the nodes is gone
    assert trunk([0.99, 0.98]).made_with(["c"]) == ("c",)
    assert trunk([0.99, 0.98])._groups(("c", "b", "a")) == [("a", "b"), ("c",)]
    assert trunk([0.99])._groups(("c", "b", "a")) == [("a",), ("b",), ("c",)]


def test_the_import_of_torch_while_images_are_waited_for_is_time_of_starting(monkeypatch):
    clock = SimpleNamespace(now=0.0, imported=0.0)

    def load(*_, **__):
        for number, (waited, importing) in enumerate([(5.0, 4.0), (1.0, 0.0), (1.0, 3.0)]):
            clock.now += waited  # the last import goes on while the network runs, and is waited for once
            clock.imported += importing
            yield LoadedImage(number, str(number), error="is broken")

    monkeypatch.setattr("bottleneck.extraction.pipeline.load_images", load)
    monkeypatch.setattr("bottleneck.extraction.pipeline.import_seconds", lambda: clock.imported)
    monkeypatch.setattr("bottleneck.extraction.pipeline.time.perf_counter", lambda: clock.now)
    trunk = Trunk(lambda: None, GREY, EngineConfig())
    assert len([*trunk.stream(SimpleNamespace(), ["0", "1", "2"], ["node"])]) == 3
    assert trunk.startup_seconds == 4.0 + 1.0


def test_loading_within_the_building_of_an_engine_is_counted_once(monkeypatch):
    def load():
        time.sleep(0.05)
        return SimpleNamespace(recipe={"name": "fake"}, extractor=lambda nodes, preprocess: nodes)

    monkeypatch.setattr("bottleneck.engines.base.build_engine", lambda make, *_, **__: make())
    trunk = Trunk(load, GREY, EngineConfig(), recipe={"name": "fake"})
    started = time.perf_counter()
    trunk.engine(["node"], np.zeros((1, 8, 8, 3), np.uint8))
    assert 0.05 <= trunk.startup_seconds <= time.perf_counter() - started


def batch_of(*values, views=None):
    """A batch of images a, b … with these features (B, 2) of one node."""
    images = [
        LoadedImage(i, key, digest=bytes(32)) for i, key in zip(range(len(values)), "abcdef", strict=False)
    ]
    return Batch(images, (np.array(values, np.float32),), views)


def sorted_out(batches, dtype):
    """The keys of the images with rows, and the reasons of the others."""
    rows, failed = [], {}
    for item in without_unstorable(batches, [NodeSpec("conv", "avg", (2,), dtype=dtype)]):
        if isinstance(item, Batch):
            rows += zip((image.key for image in item.images), item.features[0][:, 0].tolist(), strict=True)
        else:
            failed[item.key] = item.error
    return rows, failed


@pytest.mark.parametrize(
    ("dtype", "value", "reason"),
    [
        ("float16", np.nan, "NaN or infinite at node conv"),
        ("float32", -np.inf, "NaN or infinite at node conv"),
        ("float16", -7e4, "up to 70000, beyond float16"),
    ],
)
def test_features_that_cannot_be_stored_are_the_failure_of_their_image(dtype, value, reason):
    rows, failed = sorted_out([batch_of((1, 2), (3, value), (65519, 0))], dtype)
    assert rows == [("a", 1.0), ("c", 65519.0)]
    assert list(failed) == ["b"]
    assert reason in failed["b"]


def test_large_features_fit_into_float32():
    assert sorted_out([batch_of((1, 7e4))], "float32") == ([("a", 1.0)], {})


def test_views_are_judged_as_features_are():
    views = (np.ones((2, 3, 2), np.float32),)
    views[0][1, 2, 0] = np.nan
    rows, failed = sorted_out([batch_of((1, 2), (3, 4), views=views)], "float16")
    assert (rows, list(failed)) == ([("a", 1.0)], ["b"])


def test_a_first_batch_without_a_usable_row_is_the_network_s_fault_and_a_later_one_is_not():
    bad = batch_of((np.nan, 0), (np.nan, 0))
    (passed_on,) = without_unstorable([bad], [NodeSpec("conv", "avg", (2,), dtype="float16")])
    assert passed_on is bad
    rows, failed = sorted_out([batch_of((1, 2)), bad], "float16")
    assert (len(rows), len(failed)) == (1, 2)
