"""The reference that every engine is compared with: the extractor in eager float32 on a few images.

Each row is compared as a whole: values near zero are judged against the size of their row, and a row of small
values is not hidden by a row of large ones.

Shapes: B images of (H, W, C) uint8 in; one array (B, …) per node out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bottleneck.engines.onnx_graph import export_graph
from bottleneck.errors import BackboneError, BottleneckError, EngineError, first_line
from bottleneck.threads import use_torch_threads

if TYPE_CHECKING:
    from torch import nn

_PROBES = 8  # images on which an engine is compared

# The largest relative difference of a row from eager float32 that each precision may show.
BOUNDS = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}
# The least mean cosine of the engines that are compared on the user's images, and store the comparison.
COSINES = {"int8": 0.98, "bf16": 0.995}


class Eager:
    """The extractor and its rows for the probe images; both are made, and torch imported, at first use.

    Parameters
    ----------
    make_extractor : callable
        Returns an nn.Module, uint8 (B, H, W, C) → tuple of float32 tensors.
    example : uint8 array of shape (B, H, W, C)
        Its first 8 images are the probe.
    threads : int
        Intra-op threads.
    network : str
        Its name, for messages.
    """

    def __init__(
        self,
        make_extractor: Callable[[], nn.Module],
        example: np.ndarray,
        threads: int,
        network: str = "The network",
    ) -> None:
        self._make_extractor = make_extractor
        self._threads = threads
        self._network = network
        self.probe = np.array(example[:_PROBES], dtype=np.uint8, order="C")

    @cached_property
    def extractor(self) -> nn.Module:
        """The network, on the CPU."""
        return self._make_extractor().eval().cpu()

    @cached_property
    def reference(self) -> tuple[np.ndarray, ...]:
        """Rows of the probe, float32 (B, …) per node, which no row's neighbours change.

        Raises
        ------
        BackboneError
            The features of an image depend on the other images of its batch, or on chance.
        """
        use_torch_threads(self._threads)
        self._require_independent_rows()
        return self._rows(self.probe)

    def exported(self) -> bytes:
        """The extractor as serialised ONNX, exported once. Raises EngineError if that failed."""
        if isinstance(self._export, EngineError):
            raise self._export
        return self._export

    @cached_property
    def _export(self) -> bytes | EngineError:
        try:
            with refusal("exporting the network to ONNX"):
                return export_graph(self.extractor, self.probe)
        except EngineError as error:
            return error

    def _rows(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        import torch

        extractor = self.extractor  # made outside of inference mode, so that its weights can go elsewhere
        with torch.inference_mode():
            return tuple(rows.float().numpy() for rows in extractor(torch.from_numpy(pixels)))

    def _require_independent_rows(self) -> None:
        problem = dependence(self._rows, self.probe)
        if not problem:
            return
        pair = np.concatenate([self.probe[:1], 255 - self.probe[:1]])
        if _largest_difference(self._rows(pair), self._rows(pair)) > BOUNDS["fp32"]:
            raise BackboneError(
                f"{self._network} gives an image other features each time: a layer draws random numbers.",
                "Switch it off in evaluation mode, as nn.Dropout is.",
            )
        layers = _batch_layers(self.extractor)
        which = f": layer {', '.join(layers[:3])} normalises by its batch" if layers else ""
        raise BackboneError(
            f"{self._network} depends on the other images of a batch{which}; {problem}.",
            "Its features cannot be cached. Keep running statistics (track_running_stats=True), or use "
            "another --backbone.",
        )


@contextmanager
def refusal(what: str) -> Iterator[None]:
    """Turn what a library raises while doing `what` into an EngineError, so that another engine is tried."""
    try:
        yield
    except BottleneckError:
        raise
    except Exception as error:
        raise EngineError(f"{what} failed: {type(error).__name__}: {first_line(error)}") from error


def measure(
    outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray], *, as_cosine: bool = False
) -> dict[int, float]:
    """Agreement of each node's rows with those in float32: largest relative difference, or mean cosine.

    Parameters
    ----------
    outputs, reference : sequences of arrays of shape (B, …), one per node
    """
    if [np.shape(a) for a in outputs] != [np.shape(a) for a in reference]:
        return {index: -1.0 if as_cosine else float("inf") for index in range(len(reference))}
    distance = mean_cosine if as_cosine else relative_difference
    with np.errstate(invalid="ignore"):  # infinite values; the result is then out of bounds
        return {index: distance(a, b) for index, (a, b) in enumerate(zip(outputs, reference, strict=True))}


def complaint(agreement: dict[int, float], precision: str, *, as_cosine: bool = False) -> str:
    """What is out of bounds, as a clause for a message; empty if everything is within its bound."""
    if as_cosine:
        worst, least = min(agreement.values(), default=1.0), COSINES[precision]
        problem = f"cosine {worst:.4f} with float32, at least {least} is needed"
        return "" if worst >= least else problem
    worst = max(agreement.values(), default=0.0)
    bound = BOUNDS[precision]
    problem = f"relative difference {worst:.1e} from eager float32, at most {bound:.0e} is allowed"
    if worst == np.inf:
        problem += ": rows have another shape, are zero, or have values that are not finite"
    return "" if worst <= bound else problem


def dependence(run: Callable[[np.ndarray], Sequence[np.ndarray]], probe: np.ndarray) -> str:
    """How an image's rows depend on its neighbours, as a clause for a message; empty if they do not.

    The probe's rows in one batch are compared with those of each image alone.

    Parameters
    ----------
    run : callable
        uint8 (B, H, W, C) → one float32 array (B, …) per node.
    """
    neighbours = np.concatenate([probe, 255 - probe[:1]])  # so that a single image has another beside it
    together = [rows[: len(probe)] for rows in run(neighbours)]
    try:
        rows_of_one = [run(probe[i : i + 1]) for i in range(len(probe))]
        alone = [np.concatenate(node) for node in zip(*rows_of_one, strict=True)]
    except (ValueError, RuntimeError) as error:  # as BatchNorm does with one value per channel
        return f"it cannot compute one image alone ({first_line(error)})"
    difference = _largest_difference(together, alone)
    problem = f"alone, an image has other features than in a batch (relative difference {difference:.1e})"
    return "" if difference <= BOUNDS["fp32"] else problem


def _batch_layers(extractor: nn.Module) -> list[str]:
    """Names of the layers that normalise by the statistics of their batch, with their types."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [
        f"{name.removeprefix('trunk.')} ({type(layer).__name__})"
        for name, layer in extractor.named_modules()
        if isinstance(layer, _BatchNorm) and (layer.running_mean is None or layer.training)
    ]


def _largest_difference(outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """`relative_difference` over all nodes; values that are not finite are compared as numbers."""
    pairs = zip(outputs, reference, strict=True)
    return max(relative_difference(np.nan_to_num(a), np.nan_to_num(b)) for a, b in pairs)


def relative_difference(rows: np.ndarray, reference: np.ndarray) -> float:
    """Largest ‖row − reference‖ / ‖reference‖ over the rows; NaN and infinite values give infinity."""
    rows, reference = _flat(rows), _flat(reference)
    distance = np.linalg.norm(rows - reference, axis=1)
    size = np.linalg.norm(reference, axis=1)
    ratio = np.divide(distance, size, out=np.where(distance == 0, 0.0, np.inf), where=size > 0)
    return float(np.nan_to_num(ratio, nan=np.inf).max(initial=0.0))


def mean_cosine(rows: np.ndarray, reference: np.ndarray) -> float:
    """Mean cosine between rows and reference; rows that are zero or not finite count as −1, unless equal."""
    rows, reference = _flat(rows), _flat(reference)
    product = (rows * reference).sum(axis=1)
    sizes = np.linalg.norm(rows, axis=1) * np.linalg.norm(reference, axis=1)
    equal = (rows == reference).all(axis=1).astype(float) * 2 - 1
    cosine = np.divide(product, sizes, out=equal, where=sizes > 0)
    return float(np.nan_to_num(cosine, nan=-1.0).mean()) if len(cosine) else 1.0


def _flat(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows.reshape(len(rows), -1)
