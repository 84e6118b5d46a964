"""Choose and build the engine that runs an extractor (see the picture in `engines/__init__.py`).

Shapes: B images of (H, W, C) uint8 in; one float32 array (B, …) per node out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bottleneck.engines.device import resolve_device
from bottleneck.engines.graph_engine import bf16_engine, float_engine, int8_engine
from bottleneck.engines.onnx_graph import GraphCache
from bottleneck.engines.race import RACE_IMAGES, Candidate, fastest, remembered_winner
from bottleneck.engines.reference import Eager, complaint, measure, refusal
from bottleneck.engines.runtimes import computes_bf16, is_installed
from bottleneck.errors import EngineError, Note
from bottleneck.names import ENGINES, FAST, ONNXRUNTIME, OPENVINO, PRECISIONS
from bottleneck.threads import thread_budget

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger("bottleneck")

# Device → engine → precisions that it can compute in.
_TORCH: dict[str, tuple[str, ...]] = dict.fromkeys(("torch", "torch-compiled"), ("fp32", "fp16", "bf16"))
_GRAPHS = {ONNXRUNTIME: ("fp32", "int8"), OPENVINO: ("fp32", "bf16", "int8")}
SUPPORTED: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {**_GRAPHS, **_TORCH},
    "cuda": _TORCH,
    "mps": _TORCH,
}
# fp16 within its bound keeps a cosine of 0.9999 with float32, and features are stored in it; bf16 does not.
_AUTO_PRECISION = {"cpu": ("fp32",), "cuda": ("fp16", "fp32"), "mps": ("fp32",)}
_HINT = "Leave --engine and --precision at auto; int8, onnxruntime and openvino are for --device cpu."
_HINT_CONTINUED = (
    "Put missing images back, go on where the earlier rows were computed, or extract all images again (-o)."
)


class Engine(Protocol):
    """Runs an extractor: uint8 (B, H, W, C) → one float32 array (B, …) per node.

    A row does not depend on the other images of the call.

    name : "onnxruntime", "openvino", "torch" or "torch-compiled".
    precision : "fp32", "bf16", "fp16" or "int8".
    batch : images per call that use the device well; any number may be given.
    calls : number of calls that may run at the same time, each in its own thread.
    agreement : {node index: largest relative difference of a row from eager float32; with a calibration the
        mean cosine}.
    calibration : how int8, or bf16 in OpenVINO, was compared with float32 on the user's images; else None.
    notes : what was decided while it ran.
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
    @property
    def notes(self) -> Sequence[Note]: ...

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
    calibrated_on: Callable[[str], np.ndarray] | None = None,
    network: str = "The network",
) -> Engine:
    """The fastest engine whose rows agree with eager float32 within its precision's bound (`reference`).

    Engines of one precision are timed on `example` if it has 32 images or more; the fastest is remembered.

    Parameters
    ----------
    make_extractor : callable
        Returns the network in eval mode: uint8 (B, H, W, C) → tuple of float32 tensors, one per node. If an
        earlier run stored a graph under the same key, it is not called and torch is not imported.
    example : uint8 array of shape (B, H, W, C)
        Some of the user's images, drawn at random: float32 is compared on the first 8, bfloat16 on all; int8
        is calibrated on three quarters of them and judged on the rest (32 to 128 images are enough).
    key : fingerprint of trunk, weights, nodes and preprocessing
    engine, precision, device : one of `ENGINES`, one of `PRECISIONS`, and a device for `resolve_device`
    threads : of the network on a CPU; by default from the thread budget
    force : accept an engine whose cosine is below the bound
    calibration : `engine.calibration` of an earlier run, whose rows only the same engine may continue
    calibrated_on : returns the `example` of that run for its sha256, in case the graph is no longer stored
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
    if device == "auto" and (engine in _GRAPHS or precision == "int8" or calibration):
        device = "cpu"
    device = resolve_device(device)
    groups = _candidates(engine, precision, device, calibration)
    threads = threads or thread_budget(device=device).network
    eager, graphs = Eager(make_extractor, example, threads, network), GraphCache()

    def build(name: str, kind: str) -> Engine:
        if name not in _GRAPHS:
            return _torch_engine(eager, name, kind, device, threads=threads)
        if kind == "fp32":
            return float_engine(eager, key, graphs, threads, name)
        if kind == "bf16":
            return bf16_engine(eager, example, key, graphs, threads, name, calibration=calibration)
        return int8_engine(
            eager, example, key, graphs, threads, name, calibration=calibration, calibrated_on=calibrated_on
        )

    refused = ""
    for group in groups:
        winner = remembered_winner(key, group, threads)
        found: list[Engine] = []
        for name, kind in sorted(group, key=lambda candidate: candidate != winner):
            if refused:
                _log.warning("%s Next: %s in %s.", refused, name, kind)
                refused = ""
            try:
                built = build(name, kind)
                problem = complaint(built.agreement, kind, as_cosine=built.calibration is not None)
                if not problem or (built.calibration is not None and force):
                    found.append(built)
                    if (name, kind) == winner or len(example) < RACE_IMAGES:
                        break
                    continue
            except EngineError as error:
                problem = str(error)
            refused = f"Engine {name} in {kind} on {device} is refused: {problem}."
        if found:
            if refused:
                _log.warning("%s", refused)
            return fastest(found, example, key, group, threads)
    raise EngineError(refused, _HINT_CONTINUED if calibration else _HINT)


def _candidates(engine: str, precision: str, device: str, calibration: dict | None) -> list[list[Candidate]]:
    """Groups of (engine, precision) in the order in which they are tried; of a group the fastest is taken."""
    for flag, value, choices in (("engine", engine, ENGINES), ("precision", precision, PRECISIONS)):
        if value not in choices:
            raise EngineError(f"--{flag} must be one of {', '.join(choices)}; got {value!r}.")
    kind = device.partition(":")[0]
    if calibration:  # of rows that no other engine may continue
        theirs = calibration.get("engine", ONNXRUNTIME).partition(" ")[0]
        if engine not in ("auto", theirs):
            raise EngineError(f"The earlier rows were computed by {theirs}, not {engine}.", _HINT)
        engine = theirs
    precisions = _AUTO_PRECISION[kind] if precision in ("auto", FAST) else (precision,)
    if precision == FAST and kind == "cpu" and computes_bf16():
        precisions = ("bf16", *precisions)
    groups = []
    for one in precisions:
        graphs = [name for name in _GRAPHS if name == engine or (engine == "auto" and _takes_part(name, one))]
        others = [engine] if engine in _TORCH else []
        slower = precision == FAST and one == "bf16"  # torch's bfloat16, than its float32
        if engine == "auto" and not slower:
            others = ["torch"]
        for names in (graphs, others):
            group = [(name, one) for name in names if one in SUPPORTED[kind].get(name, ())]
            groups += [group] if group else []
    if not groups:
        raise EngineError(f"No engine for --engine {engine} --precision {precision} on {device}.", _HINT)
    return groups


def _takes_part(runtime: str, precision: str) -> bool:
    """Return whether a runtime is tried where the engine is "auto": OpenVINO only if it is installed."""
    return is_installed(runtime) and (precision != "bf16" or computes_bf16())


def _torch_engine(eager: Eager, name: str, precision: str, device: str, *, threads: int) -> Engine:
    reference = eager.reference  # before the engine moves the extractor to its device
    with refusal("running the network in torch"):
        from bottleneck.engines.torch_engine import TorchEngine

        compiled = name == "torch-compiled"
        engine = TorchEngine(eager.extractor, precision, device, threads=threads, compiled=compiled)
        engine.agreement = measure(engine(eager.probe), reference)
    return engine
