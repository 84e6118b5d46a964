"""Quantise an exported graph to int8, calibrated on the user's own images, and describe how that was done.

Static quantisation: weights signed, per output channel; activations unsigned, per tensor, over the observed
range (MinMax; the percentile and entropy methods are no more accurate and slower). Networks with ReLU keep
a cosine above 0.99 on photographs. Where they do not, the first convolutions stay in float32 if that agrees
better: their few channels have ranges of their own, which one scale for all serves badly. With swish and
squeeze-and-excitation (EfficientNet, MobileNetV3), activations have too wide a range for eight bits, and the
comparison refuses the result.

Shapes: B images of (H, W, C) uint8.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bottleneck.engines.onnx_graph import INPUT
from bottleneck.processor import vector_units
from bottleneck.versions import package_version

# Kernels that are faster in int8. Others (sigmoids, scalings) lose accuracy, and conversions cost their gain.
_OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Concat", "Relu", "Clip"]
_OPERATORS += ["MaxPool", "AveragePool", "GlobalAveragePool"]


ENOUGH = 0.99  # mean cosine from which no other attempt is made
# First convolutions that stay in float32: none, the stem and the first block, or also the second one. For
# EfficientNet-Lite0 at 224 pixels the last takes 1.4 times the time of all in int8 (docs/DECISIONS.md).
_FIRST_LAYERS = (0, 3, 6)


def attempts(graph: bytes) -> list[int]:
    """Return how many first convolutions of a graph stay in float32, of one attempt after the other.

    At most a quarter of all.
    """
    import onnx

    layers = sum(node.op_type == "Conv" for node in onnx.load_from_string(graph).graph.node)
    return [count for count in _FIRST_LAYERS if 4 * count <= layers]


def quantised(graph: bytes, images: np.ndarray, counts: Sequence[int]) -> Iterator[bytes]:
    """Yield the int8 form of a float32 graph, one for each of `counts`.

    The ranges of activations are measured once, for the first of them.

    Parameters
    ----------
    graph : bytes
        Serialised ONNX with one input, uint8 (B, H, W, C).
    images : uint8 array of shape (B, H, W, C)
        They determine the range of each activation.
    counts : sequence of int
        As many convolutions, counted from the input, stay in float32.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="bottleneck-int8-") as folder:
        exported, prepared, made = (Path(folder, name) for name in ("exported", "prepared", "made"))
        exported.write_bytes(graph)
        with _quiet():
            quant_pre_process(exported, prepared, skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        convolutions = [node.name for node in nodes if node.op_type == "Conv"]
        for count in counts:
            with _quiet():
                quantize_static(
                    prepared,
                    made,
                    _Images(images),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=_OPERATORS,
                    nodes_to_exclude=convolutions[:count],
                    per_channel=True,
                    reduce_range=_products_saturate(),
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                    calibration_cache_path=Path(folder, "ranges.json"),
                )
            yield made.read_bytes()


def describe_calibration(
    example: np.ndarray, seen: int, agreement: dict[int, float], float_layers: int
) -> dict:
    """What is stored beside int8 rows: how they were quantised, on which images, and how well they agree.

    Parameters
    ----------
    example : uint8 array of shape (B, H, W, C)
        The calibration images: the first `seen` determined the ranges, the others the agreement.
    agreement : dict
        Mean cosine with float32 per node index.
    float_layers : int
        As the counts of `quantised`; records of before there was a choice lack it, and mean 0.
    """
    return {
        "method": "static minmax",
        "weights": "int8 per channel" + (" in 7 bits" if _products_saturate() else ""),
        "activations": "uint8 per tensor",
        "float_layers": float_layers,
        "onnxruntime": package_version("onnxruntime"),
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
    return not any("vnni" in unit for unit in vector_units() or ())


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
