"""Choose and build the engine that runs an extractor (see the picture in `engines/__init__.py`).

Shapes: B images of (H, W, C) uint8 in; one float32 array (B, …) per node out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bottleneck.engines.device import resolve_device
from bottleneck.engines.onnx_engine import float_engine, int8_engine
from bottleneck.engines.onnx_graph import GraphCache
from bottleneck.engines.reference import Eager, complaint, measure, refusal
from bottleneck.errors import EngineError
from bottleneck.names import ENGINES, PRECISIONS
from bottleneck.threads import thread_budget

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger("bottleneck")

# Device → engine → precisions that it can compute in.
_TORCH: dict[str, tuple[str, ...]] = dict.fromkeys(("torch", "torch-compiled"), ("fp32", "fp16", "bf16"))
_SUPPORTED: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {"onnxruntime": ("fp32", "int8"), **_TORCH},
    "cuda": _TORCH,
    "mps": _TORCH,
}
# fp16 within its bound keeps a cosine of 0.9999 with float32, and features are stored in it; bf16 does not.
_AUTO_PRECISION = {"cpu": ("fp32",), "cuda": ("fp16", "fp32"), "mps": ("fp32",)}
_HINT = "Leave --engine and --precision at auto; int8 and onnxruntime are for --device cpu."


class Engine(Protocol):
    """Runs an extractor: uint8 (B, H, W, C) → one float32 array (B, …) per node.

    A row does not depend on the other images of the call.

    name : "onnxruntime", "torch" or "torch-compiled". precision : "fp32", "bf16", "fp16" or "int8".
    batch : images per call that use the device well; any number may be given.
    calls : number of calls that may run at the same time, each in its own thread.
    agreement : {node index: largest relative difference of a row from eager float32; for int8 the cosine}.
    calibration : for int8 its calibration (`onnx_engine.describe_calibration`), else None.
    """

    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def calls(self) -> int: ...
    @property
    def agreement(self) -> dict[int, float]: ...
    @property
    def calibration(self) -> dict | None: ...

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]: ...


def build_engine(
    make_extractor: Callable[[], nn.Module],
    example: np.ndarray,
    *,
    key: str,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    force: bool = False,
    calibration: dict | None = None,
    network: str = "The network",
) -> Engine:
    """The fastest engine whose rows agree with eager float32 within its precision's bound (DESIGN §5).

    Parameters
    ----------
    make_extractor : callable
        Returns the network in eval mode: uint8 (B, H, W, C) → tuple of float32 tensors, one per node. If an
        earlier run stored a graph under the same key, it is not called and torch is not imported.
    example : uint8 array of shape (B, H, W, C)
        Some of the user's images, drawn at random: the engine is compared on the first 8; int8 is calibrated
        on three quarters of them and judged on the rest (32 to 128 images are enough).
    key : fingerprint of trunk, weights, nodes and preprocessing
    engine, precision, device : one of `ENGINES`, one of `PRECISIONS`, and a device for `resolve_device`
    threads : of the network on a CPU; by default from the thread budget
    force : accept an int8 engine whose cosine is below the bound
    calibration : `engine.calibration` of an earlier run, whose rows only the same int8 engine may continue
    network : its name, for messages

    Raises
    ------
    EngineError
        The request is not possible on this machine, or every engine that fits it failed or is out of bounds.
    BackboneError
        The features of an image depend on the other images of its batch.
    """
    if len(example) == 0:
        raise EngineError("An engine is built on at least one example image, got none.")
    if device == "auto" and (engine == "onnxruntime" or precision == "int8"):
        device = "cpu"
    device = resolve_device(device)
    candidates = _candidates(engine, precision, device)
    threads = threads or thread_budget(device=device).network
    eager = Eager(make_extractor, example, threads, network)
    refused = ""
    for name, kind in candidates:
        if refused:
            _log.warning("%s Next: %s in %s.", refused, name, kind)
        try:
            built: Engine
            if name == "onnxruntime" and kind == "int8":
                built = int8_engine(eager, example, key, GraphCache(), threads, calibration=calibration)
            elif name == "onnxruntime":
                built = float_engine(eager, key, GraphCache(), threads)
            else:
                built = _torch_engine(eager, name, kind, device, threads=threads)
            problem = complaint(built.agreement, kind)
            if not problem or (kind == "int8" and force):
                return built
        except EngineError as error:
            problem = str(error)
        refused = f"Engine {name} in {kind} on {device} is refused: {problem}."
    raise EngineError(refused, _HINT)


def _candidates(engine: str, precision: str, device: str) -> list[tuple[str, str]]:
    """(engine, precision) pairs in the order in which they are tried."""
    for flag, value, choices in (("engine", engine, ENGINES), ("precision", precision, PRECISIONS)):
        if value not in choices:
            raise EngineError(f"--{flag} must be one of {', '.join(choices)}; got {value!r}.")
    kind = device.partition(":")[0]
    precisions = _AUTO_PRECISION[kind] if precision == "auto" else (precision,)
    names = ("onnxruntime", "torch") if engine == "auto" else (engine,)
    pairs = [(name, one) for name in names for one in precisions if one in _SUPPORTED[kind].get(name, ())]
    if not pairs:
        raise EngineError(f"No engine for --engine {engine} --precision {precision} on {device}.", _HINT)
    return pairs


def _torch_engine(eager: Eager, name: str, precision: str, device: str, *, threads: int) -> Engine:
    reference = eager.reference  # before the engine moves the extractor to its device
    with refusal("running the network in torch"):
        from bottleneck.engines.torch_engine import TorchEngine

        compiled = name == "torch-compiled"
        engine = TorchEngine(eager.extractor, precision, device, threads=threads, compiled=compiled)
        engine.agreement = measure(engine(eager.probe), reference, precision)
    return engine
