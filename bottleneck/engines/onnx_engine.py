"""The CPU engine: an exported graph run by onnxruntime. With a kept graph it needs no torch.

Shapes: B images of (H, W, C) uint8 in; one float32 array (B, …) per node out.
"""

from __future__ import annotations

import logging

import numpy as np

from bottleneck.engines.agreement import complaint, measure
from bottleneck.engines.eager import Eager, refusal
from bottleneck.engines.export import INPUT, export_graph
from bottleneck.engines.graph_cache import GraphCache, KeptGraph
from bottleneck.errors import EngineError

_log = logging.getLogger("bottleneck")


class OnnxEngine:
    """Run an exported graph on the CPU.

    Parameters
    ----------
    graph : bytes
        Serialised ONNX (`export.export_graph`).
    precision : "fp32" or "int8"
        What the graph computes in.
    threads : int
        Intra-op threads.
    """

    name = "onnxruntime"
    device = "cpu"
    # Images per pass: few keep the activations in the processor's caches, and the arena (peak memory) small.
    batch = 8

    def __init__(self, graph: bytes, precision: str = "fp32", threads: int = 1) -> None:
        self.precision = precision
        self.agreement: dict[int, float] = {}
        self.calibration: dict | None = None
        self._session = _session(graph, threads)

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Rows of every node for uint8 pixels (B, H, W, C): float32 arrays (B, …)."""
        passes = [
            self._session.run(None, {INPUT: pixels[start : start + self.batch]})
            for start in range(0, max(1, len(pixels)), self.batch)
        ]
        return tuple(np.concatenate(rows) for rows in zip(*passes, strict=True))


def float_engine(eager: Eager, key: str, graphs: GraphCache, threads: int) -> OnnxEngine:
    """The float32 engine from the graph kept under `key`, else from a new export, which is then kept.

    Its `agreement` is measured on the probe kept with the graph: another machine or another version of the
    library is compared anew. Raises EngineError where the network cannot be exported or the graph not be run.
    """
    if (kept := graphs.load(key, "fp32")) is not None:
        try:
            return _judged(kept, threads)
        except EngineError as error:
            _log.warning("The kept graph is made again: %s", error)
    reference = eager.reference
    with refusal("Exporting the network to ONNX"):
        kept = KeptGraph(export_graph(eager.extractor, eager.probe), eager.probe, reference)
    engine = _judged(kept, threads)
    graphs.keep(kept, key, "fp32")
    return engine


def _judged(kept: KeptGraph, threads: int) -> OnnxEngine:
    with refusal("Running the ONNX graph"):
        engine = OnnxEngine(kept.graph, "fp32", threads)
        engine.agreement = measure(engine(kept.probe), kept.reference, "fp32")
    if problem := complaint(engine.agreement, "fp32"):
        raise EngineError(problem)
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
