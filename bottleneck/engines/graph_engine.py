"""The CPU engines: an exported graph run by onnxruntime or OpenVINO. A stored graph needs no torch.

A graph is run in float32; in bfloat16 by OpenVINO, on processors that have units for it; or, quantised
(`int8`), in int8. float32 is compared with eager float32 on the probe stored with the graph. int8 and
bfloat16 are compared with float32 on the user's own images; that comparison is stored with the rows.

Shapes: B images of (H, W, C) uint8 in; one float32 array (B, …) per node out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from bottleneck.engines.int8 import ENOUGH, attempts, describe_calibration, pixels_sha256, quantised
from bottleneck.engines.onnx_graph import GraphCache, StoredGraph
from bottleneck.engines.reference import Eager, complaint, dependence, measure, refusal
from bottleneck.engines.runtimes import describe, open_graph
from bottleneck.errors import BottleneckError, EngineError, Note, counted
from bottleneck.names import ONNXRUNTIME
from bottleneck.processor import processor_name
from bottleneck.threads import passes_side_by_side

_log = logging.getLogger("bottleneck")

# Images per pass. From 1 to 8 the rate is the same; small passes need little memory and shorten the wait at
# the end of a call.
_PASS = 4
# In a stored float32 graph: on which runtimes and processors its rows were found independent of their batch.
_INDEPENDENT = "independent_in"


class GraphEngine:
    """Run an exported graph on the CPU in parallel passes of a few images.

    Parameters
    ----------
    graph : bytes
        Serialised ONNX (`onnx_graph.export_graph`).
    precision : "fp32", "bf16" or "int8"
    threads : int
        In total.
    runtime : "onnxruntime" or "openvino"
    """

    device = "cpu"
    calls = 2  # the passes of the second begin while the last of the first still run
    notes: tuple[Note, ...] = ()

    def __init__(
        self, graph: bytes, precision: str = "fp32", threads: int = 1, runtime: str = ONNXRUNTIME
    ) -> None:
        self.name, self.precision = runtime, precision
        self.agreement: dict[int, float] = {}
        self.calibration: dict | None = None
        passes, within = passes_side_by_side(threads)
        self.batch = max(32, 2 * _PASS * passes)
        self._run = open_graph(runtime, graph, precision, passes, within, _PASS)
        self._pool = ThreadPoolExecutor(passes, thread_name_prefix="bottleneck-network")

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Rows of every node for uint8 pixels (B, H, W, C): float32 arrays (B, …)."""
        starts = range(0, max(1, len(pixels)), _PASS)
        passes = self._pool.map(lambda start: self._run(pixels[start : start + _PASS]), starts)
        return tuple(np.concatenate(rows) for rows in zip(*passes, strict=True))


def float_engine(eager: Eager, key: str, graphs: GraphCache, threads: int, runtime: str) -> GraphEngine:
    """The float32 engine from the graph stored under `key`, else from a new export, which is then stored.

    Its `agreement` is measured anew each time, on the probe stored with the graph: the machine or the version
    of the runtime may have changed. Raises EngineError if the network cannot be exported, or the graph cannot
    be run.
    """
    return _float_graph(eager, key, graphs, threads, runtime)[1]


def bf16_engine(
    eager: Eager,
    example: np.ndarray,
    key: str,
    graphs: GraphCache,
    threads: int,
    runtime: str,
    *,
    calibration: dict | None = None,
) -> GraphEngine:
    """The bfloat16 engine; its cosine with float32 is measured on `example` and is its `calibration`.

    A given `calibration` describes the engine of an earlier run, and only that engine is accepted. Raises
    EngineError if it is not available, and as `float_engine` does.
    """
    ours = describe(runtime)
    if calibration and calibration.get("engine") != ours:
        raise EngineError(f"the earlier rows were computed by {calibration.get('engine')}, not {ours}")
    graph, exact = _float_graph(eager, key, graphs, threads, ONNXRUNTIME)
    reference = exact(example)
    with refusal("running the ONNX graph"):
        engine = GraphEngine(graph, "bf16", threads, runtime)
        engine.agreement = measure(engine(example), reference, as_cosine=True)
    details = {
        "method": "bfloat16",
        "engine": ours,
        "images": len(example),
        "cosine": [round(cosine, 4) for _, cosine in sorted(engine.agreement.items())],
    }
    engine.calibration = calibration or details
    return engine


def int8_engine(
    eager: Eager,
    example: np.ndarray,
    key: str,
    graphs: GraphCache,
    threads: int,
    runtime: str,
    *,
    calibration: dict | None = None,
    calibrated_on: Callable[[str], np.ndarray] | None = None,
) -> GraphEngine:
    """The int8 engine calibrated on three quarters of `example`; its cosine is measured on the last quarter.

    A given `calibration` describes the engine of an earlier run, and only that engine is accepted. Where its
    graph is not stored, it is made again of the pixels that `calibrated_on` returns for their sha256. Raises
    EngineError if it is not available, and as `float_engine` does.
    """
    pixels = calibration.get("pixels_sha256", "") if calibration else pixels_sha256(example)
    keys = [(key, *kind) for kind in int8_keys(pixels, calibration)]
    loaded = filter(None, (graphs.load(*each) for each in keys))
    stored = next((each for each in loaded if _has_layers(each, calibration)), None)
    if stored is None:
        if calibration:
            example = _calibration_images(pixels, example, calibrated_on)
        graph, exact = _float_graph(eager, key, graphs, threads, ONNXRUNTIME)
        counts = (calibration.get("float_layers", 0),) if calibration else attempts(graph)
        stored = _quantised(graph, exact, example, counts)
        if not calibration and (old := graphs.load(*keys[0])) is not None:  # of before there was a choice
            graphs.store(old, key, *int8_keys(pixels, old.details)[-1])
        graphs.store(stored, *keys[-1])
    engine = _compared(stored, "int8", threads, runtime)
    details = stored.details
    if runtime != ONNXRUNTIME:  # whose cosine the stored graph has
        cosines = [round(cosine, 4) for _, cosine in sorted(engine.agreement.items())]
        details = details | {"engine": describe(runtime), "cosine": cosines}
    measured = {"cosine": None}  # all other fields determine the rows
    before = {"float_layers": 0}  # of records that lack it
    if calibration and before | calibration | measured != before | details | measured:
        raise EngineError(f"the cache's rows were calibrated as {calibration}, this engine as {details}")
    engine.calibration = calibration or details
    if not calibration and details["float_layers"]:
        text = (
            f"int8: the first {counted(details['float_layers'], 'convolution')} stay in float32, with "
            "which features of "
            "the calibration images agree better with those of float32; the network is slower for it."
        )
        engine.notes = (Note("int8-float-layers", text, details={"float_layers": details["float_layers"]}),)
    return engine


def _calibration_images(
    sha256: str, example: np.ndarray, calibrated_on: Callable[[str], np.ndarray] | None
) -> np.ndarray:
    """Return of `example` and what `calibrated_on` returns that of a calibration. sha256 : of its pixels."""
    if sha256 == pixels_sha256(example):
        return example
    reason = ""
    if calibrated_on is not None:
        try:
            example = calibrated_on(sha256)
        except BottleneckError as error:
            reason = f": {error.message.rstrip('.')}"
        else:
            if sha256 == pixels_sha256(example):
                return example
            reason = ": the images there are others or give other pixels"
    raise EngineError(
        "its rows must be calibrated as the earlier ones are, but neither that graph nor its calibration "
        f"images are on this machine{reason}"
    )


def int8_keys(pixels: str, calibration: dict | None) -> list[tuple[str, ...]]:
    """Return under which keys, beside the network's, an int8 graph may be stored; a new one under the last.

    The first has the graph whose float layers were chosen. One that has to have those of `calibration` has a
    key with their number: two caches of the same images may have been made before and after there was a
    choice, or on machines that chose differently. pixels : sha256 of the calibration images.
    """
    chosen = ("int8", pixels)
    return [chosen, (*chosen, str(calibration.get("float_layers", 0)))] if calibration else [chosen]


def _has_layers(stored: StoredGraph, calibration: dict | None) -> bool:
    """Return whether a graph has the float layers of `calibration`, or without one, whether they were chosen.

    Those of before there was a choice have none.
    """
    if not calibration:
        return "float_layers" in stored.details
    return bool(stored.details.get("float_layers", 0) == calibration.get("float_layers", 0))


def _float_graph(
    eager: Eager, key: str, graphs: GraphCache, threads: int, runtime: str
) -> tuple[bytes, GraphEngine]:
    """The float32 graph and its engine, which is within the bound.

    Whether the rows of a stored graph depend on their batch is checked once on each runtime and processor: it
    takes twice the passes of the probe.
    """
    stored = graphs.load(key, "fp32")
    if stored is not None:
        try:
            engine = _float_within_bounds(stored, threads, runtime)
            checked, here = stored.details.get(_INDEPENDENT, []), f"{describe(runtime)}, {processor_name()}"
            if here not in checked:
                if problem := dependence(engine, stored.probe):
                    raise EngineError(problem)
                graphs.store(
                    replace(stored, details={**stored.details, _INDEPENDENT: [*checked, here]}), key, "fp32"
                )
            return stored.graph, engine
        except EngineError as error:
            if runtime != ONNXRUNTIME:  # the graph may be right
                raise
            _log.warning("The stored graph is made again: %s", error)
    reference = eager.reference
    stored = StoredGraph(eager.exported(), eager.probe, reference)
    engine = _float_within_bounds(stored, threads, runtime)
    graphs.store(stored, key, "fp32")
    return stored.graph, engine


def _float_within_bounds(stored: StoredGraph, threads: int, runtime: str) -> GraphEngine:
    engine = _compared(stored, "fp32", threads, runtime)
    if problem := complaint(engine.agreement, "fp32"):
        raise EngineError(problem)
    return engine


def _quantised(graph: bytes, engine: GraphEngine, example: np.ndarray, counts: Sequence[int]) -> StoredGraph:
    """The int8 graph; its probe is the held-out images, its reference their rows in float32.

    counts : of first convolutions that stay in float32, one for each attempt. The one whose rows of the
    calibration images agree best is taken; after one that agrees well enough, no other is tried.
    """
    held_out = -(-len(example) // 4) if len(example) > 1 else 1
    seen, probe = example[: len(example) - held_out or 1], example[-held_out:]
    exact, best, highest, float_layers = engine(seen), b"", -np.inf, 0
    with refusal("quantising the network"):
        for count, made in zip(counts, quantised(graph, seen, counts), strict=True):
            cosine = min(measure(GraphEngine(made, "int8")(seen), exact, as_cosine=True).values())
            if cosine > highest:
                best, highest, float_layers = made, cosine, count
            if highest >= ENOUGH:
                break
        rows = GraphEngine(best, "int8")(probe)
    reference = engine(probe)
    agreement = measure(rows, reference, as_cosine=True)
    details = describe_calibration(example, len(seen), agreement, float_layers)
    return StoredGraph(best, probe, reference, details)


def _compared(stored: StoredGraph, precision: str, threads: int, runtime: str) -> GraphEngine:
    """The engine of a stored graph, with its agreement with the stored reference."""
    with refusal("running the ONNX graph"):
        engine = GraphEngine(stored.graph, precision, threads, runtime)
        engine.agreement = measure(engine(stored.probe), stored.reference, as_cosine=precision == "int8")
    return engine
