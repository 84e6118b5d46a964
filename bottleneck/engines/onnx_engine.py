"""The CPU engine: an exported graph run by onnxruntime in float32 or int8. A stored graph needs no torch.

int8 is static quantisation, calibrated on the user's own images: weights signed, per output channel;
activations unsigned, per tensor, over the observed range (MinMax; the percentile and entropy methods are no
more accurate and slower). Networks with ReLU keep a cosine above 0.99. With swish and squeeze-and-excitation
(EfficientNet, MobileNetV3), activations have too wide a range for eight bits, and the comparison refuses the
result.

Shapes: B images of (H, W, C) uint8 in; one float32 array (B, …) per node out.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bottleneck.engines.onnx_graph import INPUT, GraphCache, StoredGraph, export_graph
from bottleneck.engines.reference import Eager, complaint, dependence, measure, refusal
from bottleneck.errors import EngineError
from bottleneck.threads import passes_side_by_side

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


_log = logging.getLogger("bottleneck")

# Images per pass. From 1 to 8 the rate is the same; small passes need little memory and shorten the wait at
# the end of a call.
_PASS = 4
# Kernels that are faster in int8. Others (sigmoids, scalings) lose accuracy, and conversions cost their gain.
_OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Concat", "Relu", "Clip"]
_OPERATORS += ["MaxPool", "AveragePool", "GlobalAveragePool"]


class OnnxEngine:
    """Run an exported graph on the CPU in parallel passes of a few images.

    Parameters
    ----------
    graph : bytes
        Serialised ONNX (`onnx_graph.export_graph`).
    precision : "fp32" or "int8"
        Of the graph.
    threads : int
        In total.
    """

    name = "onnxruntime"
    device = "cpu"
    calls = 2  # the passes of the second begin while the last of the first still run

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
    """The float32 engine from the graph stored under `key`, else from a new export, which is then stored.

    Its `agreement` is measured anew each time, on the probe stored with the graph: the machine or the version
    of onnxruntime may have changed. Raises EngineError if the network cannot be exported, or the graph cannot
    be run.
    """
    return _float_graph(eager, key, graphs, threads)[1]


def int8_engine(
    eager: Eager,
    example: np.ndarray,
    key: str,
    graphs: GraphCache,
    threads: int,
    *,
    calibration: dict | None = None,
) -> OnnxEngine:
    """The int8 engine calibrated on three quarters of `example`; its cosine is measured on the last quarter.

    A given `calibration` describes the engine of an earlier run, and only that engine is accepted. Raises
    EngineError if it is not available, and as `float_engine` does.
    """
    pixels = calibration.get("pixels_sha256", "") if calibration else pixels_sha256(example)
    stored = graphs.load(key, "int8", pixels)
    if stored is None:
        if calibration and pixels != pixels_sha256(example):
            raise EngineError(
                "its rows must be calibrated as those in the cache are, but neither that graph nor its "
                "calibration images are on this machine"
            )
        stored = _quantised(*_float_graph(eager, key, graphs, threads), example)
        graphs.store(stored, key, "int8", pixels)
    details = stored.details
    measured = {"cosine": None}  # all other fields determine the rows
    if calibration and calibration | measured != details | measured:
        raise EngineError(f"the cache's rows were calibrated as {calibration}, this engine as {details}")
    engine = _compared(stored, "int8", threads)
    engine.calibration = calibration or details
    return engine


def _float_graph(eager: Eager, key: str, graphs: GraphCache, threads: int) -> tuple[bytes, OnnxEngine]:
    """The float32 graph and its engine, which is within the bound."""
    stored = graphs.load(key, "fp32")
    if stored is not None:
        try:
            engine = _float_within_bounds(stored, threads)
            if problem := dependence(engine, stored.probe):  # stored before this was checked
                raise EngineError(problem)
            return stored.graph, engine
        except EngineError as error:
            _log.warning("The stored graph is made again: %s", error)
    reference = eager.reference
    with refusal("exporting the network to ONNX"):
        stored = StoredGraph(export_graph(eager.extractor, eager.probe), eager.probe, reference)
    engine = _float_within_bounds(stored, threads)
    graphs.store(stored, key, "fp32")
    return stored.graph, engine


def _float_within_bounds(stored: StoredGraph, threads: int) -> OnnxEngine:
    engine = _compared(stored, "fp32", threads)
    if problem := complaint(engine.agreement, "fp32"):
        raise EngineError(problem)
    return engine


def _quantised(graph: bytes, engine: OnnxEngine, example: np.ndarray) -> StoredGraph:
    """The int8 graph; its probe is the held-out images, its reference their rows in float32."""
    held_out = -(-len(example) // 4) if len(example) > 1 else 1
    seen, probe = example[: len(example) - held_out or 1], example[-held_out:]
    with refusal("quantising the network"):
        quantised = quantise(graph, seen)
        rows = OnnxEngine(quantised, "int8")(probe)
    reference = engine(probe)
    details = describe_calibration(example, len(seen), measure(rows, reference, "int8"))
    return StoredGraph(quantised, probe, reference, details)


def _compared(stored: StoredGraph, precision: str, threads: int) -> OnnxEngine:
    """The engine of a stored graph, with its agreement with the stored reference."""
    with refusal("running the ONNX graph"):
        engine = OnnxEngine(stored.graph, precision, threads)
        engine.agreement = measure(engine(stored.probe), stored.reference, precision)
    return engine


def _session(graph: bytes, threads: int) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores from the decoders, which run at the same time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def quantise(graph: bytes, images: np.ndarray) -> bytes:
    """The int8 form of a float32 graph.

    Parameters
    ----------
    graph : bytes
        Serialised ONNX with one input, uint8 (B, H, W, C).
    images : uint8 array of shape (B, H, W, C)
        They determine the range of each activation.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="bottleneck-int8-") as folder, _quiet():
        exported, prepared, quantised = (Path(folder, name) for name in ("exported", "prepared", "quantised"))
        exported.write_bytes(graph)
        quant_pre_process(exported, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            _Images(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            reduce_range=_products_saturate(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return quantised.read_bytes()


def describe_calibration(example: np.ndarray, seen: int, agreement: dict[int, float]) -> dict:
    """What is stored beside int8 rows: how they were quantised, on which images, and how well they agree.

    Parameters
    ----------
    example : uint8 array of shape (B, H, W, C)
        The calibration images: the first `seen` determined the ranges, the others the agreement.
    agreement : dict
        Mean cosine with float32 per node index.
    """
    return {
        "method": "static minmax",
        "weights": "int8 per channel" + (" in 7 bits" if _products_saturate() else ""),
        "activations": "uint8 per tensor",
        "onnxruntime": version("onnxruntime"),
        "pixels_sha256": pixels_sha256(example),
        "images": seen,
        "images_held_out": len(example) - seen,
        "cosine": [round(cosine, 4) for _, cosine in sorted(agreement.items())],
    }


def pixels_sha256(images: np.ndarray) -> str:
    """sha256 of a sequence of calibration images."""
    digest = hashlib.sha256(str(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


class _Images:
    """The images in the form that the calibrator reads: one feed after another, then None."""

    def __init__(self, images: np.ndarray) -> None:
        # One at a time: the calibrator's graph is not optimised and needs much memory per image.
        self._feeds = ({INPUT: image[None]} for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _products_saturate() -> bool:
    """True on x86 without VNNI, where two 8-bit products are added in 16 bits: weights then get 7 bits."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the quantiser logs to the root logger, and the handler that this logging installs."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    root.addFilter(_nothing)
    try:
        yield
    finally:
        root.removeFilter(_nothing)
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)


def _nothing(record: logging.LogRecord) -> bool:
    return False
