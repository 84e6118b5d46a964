"""Engines: ways to run a trunk fast behind one small protocol, none trusted before its numbers are compared.

Shapes: B images of (H, W, C) uint8 in; one float32 array (B, …) per node out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bottleneck.engines.agreement import complaint, measure
from bottleneck.engines.device import resolve_device
from bottleneck.engines.eager import Eager, refusal
from bottleneck.engines.graph_cache import GraphCache
from bottleneck.engines.onnx_engine import float_engine
from bottleneck.errors import EngineError
from bottleneck.threads import thread_budget

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger("bottleneck")

ENGINES = ("auto", "onnxruntime", "torch", "torch-compiled")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


class Engine(Protocol):
    """Runs a trunk: uint8 (B, H, W, C) → one float32 array (B, …) per node, rows independent of their batch.

    name : "onnxruntime", "torch" or "torch-compiled". precision : "fp32", "bf16", "fp16" or "int8".
    agreement : {node index: largest relative difference of a row from eager float32; for int8 the cosine}.
    calibration : for int8 what it was calibrated on, else None.
    """

    name: str
    precision: str
    device: str
    agreement: dict[int, float]
    calibration: dict | None

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
) -> Engine:
    """The fastest engine whose rows agree with eager float32 within its precision's bound (DESIGN §5).

    Parameters
    ----------
    make_extractor : callable
        Gives the network in eval mode: uint8 (B, H, W, C) → tuple of float32 tensors, one per node. Where a
        graph is kept from an earlier run under the same key it is not called, and torch not imported.
    example : uint8 array of shape (B, H, W, C)
        Images of the user's: the engine is compared on the first 8, int8 is calibrated on them all.
    key : str
        Fingerprint of trunk, weights, nodes and preprocessing.
    engine, precision, device : str
        One of `ENGINES`, one of `PRECISIONS`, and "auto", "cpu", "cuda", "cuda:N" or "mps".
    threads : int, optional
        Threads of the network on a CPU; default: the thread budget's.
    force : bool
        Keep an int8 engine whose cosine is below the bound.

    Raises
    ------
    EngineError
        What was asked for does not exist here, or every engine that could do it failed or left its bounds.
    """
    if len(example) == 0:
        raise EngineError("An engine is built on at least one example image, got none.")
    device = resolve_device(device)
    candidates = _candidates(engine, precision, device)
    threads = threads or thread_budget(device=device).network
    eager = Eager(make_extractor, example, threads)
    graphs = GraphCache()
    for index, (name, precision) in enumerate(candidates):
        try:
            if name == "onnxruntime":
                built = float_engine(eager, key, graphs, threads)
            else:
                built = _torch_engine(eager, name, precision, device, threads)
            problem = complaint(built.agreement, precision)
        except EngineError as error:
            problem = str(error)
        if not problem:
            return built
        problem = f"Engine {name} in {precision} on {device} is refused: {problem}."
        if index + 1 == len(candidates):
            raise EngineError(problem, "Try --engine auto --precision auto." if len(candidates) == 1 else "")
        _log.warning("%s Next: %s in %s.", problem, *candidates[index + 1])
    raise AssertionError("there is at least one candidate")


def _candidates(engine: str, precision: str, device: str) -> list[tuple[str, str]]:
    """(engine, precision) pairs to try in turn; one alone where a specific engine was asked for."""
    for flag, value, choices in (("engine", engine, ENGINES), ("precision", precision, PRECISIONS)):
        if value not in choices:
            raise EngineError(f"The {flag} must be one of {', '.join(choices)}; got {value!r}.")
    if device == "cpu":
        able = {"onnxruntime": ("fp32",), "torch": ("fp32", "bf16", "fp16")}
    else:
        # Half precision first: tensor cores run it several times faster, and features are stored as float16.
        able = {"torch": ("fp16", "fp32", "bf16") if device.startswith("cuda") else ("fp32", "fp16", "bf16")}
    able["torch-compiled"] = able["torch"]
    names = [name for name in able if name != "torch-compiled"] if engine == "auto" else [engine]
    pairs = [(name, one) for name in names for one in able.get(name, ()) if precision in (one, "auto")]
    if precision == "auto":
        wanted = ("fp16", "fp32") if device.startswith("cuda") else ("fp32",)
        pairs = [pair for pair in pairs if pair[1] in wanted]
    if not pairs:
        raise EngineError(
            f"No engine for --engine {engine} --precision {precision} on {device}.",
            "int8 and onnxruntime run on the CPU, bf16 and fp16 in torch; or leave these flags at auto.",
        )
    return pairs


def _torch_engine(eager: Eager, name: str, precision: str, device: str, threads: int) -> Engine:
    reference = eager.reference
    with refusal("Running the network in torch"):
        from bottleneck.engines.torch_engine import TorchEngine

        engine = TorchEngine(eager.extractor, precision, device, threads, compiled=name == "torch-compiled")
        engine.agreement = measure(engine(eager.probe), reference, precision)
    return engine
