"""The CPU engine: an exported graph run by onnxruntime. With a kept graph it needs no torch.

Shapes: B images of (H, W, C) uint8 in; one float32 array (B, …) per node out.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bottleneck.engines import int8
from bottleneck.engines.graph_cache import GraphCache, KeptGraph
from bottleneck.engines.onnx_export import INPUT, export_graph
from bottleneck.engines.reference import Eager, complaint, measure, refusal
from bottleneck.errors import EngineError
from bottleneck.threads import passes_side_by_side

_log = logging.getLogger("bottleneck")

# Images per pass. From 1 to 8 the rate is the same; few take little memory in each of the passes side by
# side, and leave little to wait for at the end of a call.
_PASS = 4


class OnnxEngine:
    """Run an exported graph on the CPU, passes of a few images side by side.

    Parameters
    ----------
    graph : bytes
        Serialised ONNX (`export.export_graph`).
    precision : "fp32" or "int8"
        What the graph computes in.
    threads : int
        Threads in all.
    """

    name = "onnxruntime"
    device = "cpu"
    calls = 2  # the second's passes begin while the last of the first's are under way

    def __init__(self, graph: bytes, precision: str = "fp32", threads: int = 1) -> None:
        self.precision = precision
        self.agreement: dict[int, float] = {}
        self.calibration: dict | None = None
        passes, within = passes_side_by_side(threads)
        self.batch = max(32, 2 * _PASS * passes)
        self._session = _session(graph, within)
        self._pool = ThreadPoolExecutor(passes, thread_name_prefix="bottleneck-network")

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Rows of every node for uint8 pixels (B, H, W, C): float32 arrays (B, …)."""
        starts = range(0, max(1, len(pixels)), _PASS)
        passes = self._pool.map(
            lambda start: self._session.run(None, {INPUT: pixels[start : start + _PASS]}), starts
        )
        return tuple(np.concatenate(rows) for rows in zip(*passes, strict=True))


def float_engine(eager: Eager, key: str, graphs: GraphCache, threads: int) -> OnnxEngine:
    """The float32 engine from the graph kept under `key`, else from a new export, which is then kept.

    Its `agreement` is measured on the probe kept with the graph: another machine or another version of the
    library is compared anew. Raises EngineError where the network cannot be exported or the graph not be run.
    """
    return _float_graph(eager, key, graphs, threads)[1]


def int8_engine(
    eager: Eager,
    example: np.ndarray,
    key: str,
    graphs: GraphCache,
    threads: int,
    calibration: dict | None = None,
) -> OnnxEngine:
    """The int8 engine calibrated on `example`, a quarter of which is held out and judges it by its cosine.

    `calibration`, where given, describes the engine of an earlier run: no other will do. Raises EngineError
    where that one cannot be had, and as `float_engine` does.
    """
    pixels = calibration.get("pixels_sha256", "") if calibration else int8.pixels_sha256(example)
    kept = graphs.load(key, "int8", pixels)
    if kept is None:
        if calibration and pixels != int8.pixels_sha256(example):
            raise EngineError(
                "its rows must be calibrated as those in the cache are, but neither that graph nor its "
                "calibration images are on this machine"
            )
        kept = _quantised(*_float_graph(eager, key, graphs, threads), example)
        graphs.keep(kept, key, "int8", pixels)
    if calibration and int8.settings(calibration) != int8.settings(kept.details):
        raise EngineError(f"the cache's rows were calibrated as {calibration}, this engine as {kept.details}")
    engine = _judged(kept, "int8", threads)
    engine.calibration = calibration or kept.details
    return engine


def _float_graph(eager: Eager, key: str, graphs: GraphCache, threads: int) -> tuple[bytes, OnnxEngine]:
    kept = graphs.load(key, "fp32")
    if kept is not None:
        try:
            return kept.graph, _float_within_bounds(kept, threads)
        except EngineError as error:
            _log.warning("The kept graph is made again: %s", error)
    reference = eager.reference
    with refusal("exporting the network to ONNX"):
        kept = KeptGraph(export_graph(eager.extractor, eager.probe), eager.probe, reference)
    engine = _float_within_bounds(kept, threads)
    graphs.keep(kept, key, "fp32")
    return kept.graph, engine


def _float_within_bounds(kept: KeptGraph, threads: int) -> OnnxEngine:
    engine = _judged(kept, "fp32", threads)
    if problem := complaint(engine.agreement, "fp32"):
        raise EngineError(problem)
    return engine


def _quantised(graph: bytes, engine: OnnxEngine, example: np.ndarray) -> KeptGraph:
    """The int8 graph; its probe are the images held out, its reference their rows in float32."""
    held_out = -(-len(example) // 4) if len(example) > 1 else 1
    seen, probe = example[: len(example) - held_out or 1], example[-held_out:]
    with refusal("quantising the network"):
        quantised = int8.quantise(graph, seen)
        rows = OnnxEngine(quantised, "int8")(probe)
    reference = engine(probe)
    details = int8.describe(example, len(seen), measure(rows, reference, "int8"))
    return KeptGraph(quantised, probe, reference, details)


def _judged(kept: KeptGraph, precision: str, threads: int) -> OnnxEngine:
    """The engine of a kept graph, compared with the reference beside it."""
    with refusal("running the ONNX graph"):
        engine = OnnxEngine(kept.graph, precision, threads)
        engine.agreement = measure(engine(kept.probe), kept.reference, precision)
    return engine


def _session(graph: bytes, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A waiting thread that spins takes the core from the decoders, which run at the same time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
