"""Open an exported graph in one of the libraries that run it on a CPU: onnxruntime or OpenVINO.

`open_graph` returns a function: uint8 pixels (B, H, W, C) → one float32 array (B, …) per node. It may be
called in several threads at once, and computes each call in as many threads as it was opened with.

OpenVINO gets the graph for a fixed number of images B. For a free one it is slower, and OpenVINO 2026.4
computes wrong int8 rows of EfficientNet-Lite0 (cosine 0.65 with float32 instead of 0.99).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.engines.onnx_graph import INPUT
from bottleneck.errors import EngineError
from bottleneck.files import user_cache
from bottleneck.names import ONNXRUNTIME, OPENVINO
from bottleneck.versions import package_version

if TYPE_CHECKING:
    import openvino  # type: ignore[import-untyped]

Run = Callable[[np.ndarray], list[np.ndarray]]

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # an int8 graph says itself which products are int8


def is_installed(runtime: str) -> bool:
    """Return whether the library can be imported. onnxruntime is a dependency, OpenVINO only on x86-64."""
    return find_spec(runtime) is not None


def describe(runtime: str) -> str:
    """Return the library's name and version."""
    return f"{runtime} {package_version(runtime)}"


@cache
def computes_bf16() -> bool:
    """Return whether OpenVINO is installed and the processor multiplies bfloat16 (AMX or AVX512-BF16).

    On other processors OpenVINO computes in float32 although it was asked for bfloat16.
    """
    if not is_installed(OPENVINO):
        return False
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def open_graph(runtime: str, graph: bytes, precision: str, passes: int, threads: int, images: int) -> Run:
    """Open a serialised ONNX graph for `passes` calls at once, of `threads` threads each.

    Parameters
    ----------
    runtime : "onnxruntime" or "openvino"
    images : int
        The most images of a call. OpenVINO computes as many in each call; shorter ones are filled up.
    precision : "fp32", "int8" (of the graph) or "bf16" (OpenVINO only)

    Raises
    ------
    EngineError
        The library is not installed, or computes in another precision. Errors of the library pass through.
    """
    if not is_installed(runtime):
        raise EngineError(f"{runtime} is not installed (pip install 'bottleneck-features[{runtime}]')")
    if runtime == ONNXRUNTIME:
        return _open_onnxruntime(graph, threads)
    return _open_openvino(graph, precision, passes, threads, images)


def _open_onnxruntime(graph: bytes, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores from the decoders, which run at the same time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {INPUT: pixels})


def _open_openvino(graph: bytes, precision: str, passes: int, threads: int, images: int) -> Run:
    """Open a graph in OpenVINO, which keeps the compiled graph in the user's cache folder for later starts.

    The precision is always stated: left alone, OpenVINO computes in bfloat16 where the processor can.
    """
    core, hint = _core(), _HINTS[precision]
    model = core.read_model(graph)
    model.reshape([images, *model.input(0).partial_shape[1:]])
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": hint,
            "NUM_STREAMS": passes,
            "INFERENCE_NUM_THREADS": passes * threads,
            "ENABLE_CPU_PINNING": False,  # the decoders use the same cores
            "CACHE_DIR": str(user_cache() / "graphs"),
        },
    )
    computed = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if computed not in (hint, _LONG_HINTS[hint]) or (precision == "bf16" and not computes_bf16()):
        raise EngineError(f"OpenVINO would compute in {computed} instead of {hint}")
    requests: SimpleQueue[Any] = SimpleQueue()
    for _ in range(passes):
        requests.put(compiled.create_infer_request())

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        request, rows = requests.get(), len(pixels)
        if rows < images:
            pixels = np.concatenate([pixels, np.zeros((images - rows, *pixels.shape[1:]), np.uint8)])
        try:
            request.infer({0: np.ascontiguousarray(pixels)})
            return [np.array(request.get_output_tensor(i).data[:rows]) for i in range(len(compiled.outputs))]
        finally:
            requests.put(request)

    return run


_LONG_HINTS = {"f32": "float32", "bf16": "bfloat16"}


@cache
def _core() -> openvino.Core:
    import openvino

    # Of a tensor's first read OpenVINO makes a table with the GIL released, under a lock that another thread
    # waits for while it has the GIL: two first reads at once never end.
    _ = openvino.Tensor(openvino.Type.u8, openvino.Shape([1])).data
    return openvino.Core()
