"""What every engine is judged by: the extractor in eager float32 on a few of the user's images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bottleneck.errors import BottleneckError, EngineError, first_line
from bottleneck.threads import use_torch_threads

if TYPE_CHECKING:
    from torch import nn

# Images on which an engine is compared with eager float32.
_PROBES = 8


class Eager:
    """The extractor and its rows for the probe, each made when first asked for; torch is imported only then.

    Parameters
    ----------
    make_extractor : callable
        Gives an nn.Module, uint8 (B, H, W, C) → tuple of float32 tensors.
    example : uint8 array of shape (B, H, W, C)
        Its first 8 images are the probe.
    threads : int
        Intra-op threads.
    """

    def __init__(self, make_extractor: Callable[[], nn.Module], example: np.ndarray, threads: int) -> None:
        self._make_extractor = make_extractor
        self._threads = threads
        self.probe = np.array(example[:_PROBES], dtype=np.uint8, order="C")

    @cached_property
    def extractor(self) -> nn.Module:
        """The network, on the CPU."""
        return self._make_extractor().eval().cpu()

    @cached_property
    def reference(self) -> tuple[np.ndarray, ...]:
        """Rows of the probe, float32 (B, …) per node."""
        import torch

        use_torch_threads(self._threads)
        extractor = self.extractor  # made outside of inference mode, so that its weights can go elsewhere
        with torch.inference_mode():
            return tuple(rows.float().numpy() for rows in extractor(torch.from_numpy(self.probe)))


@contextmanager
def refusal(what: str) -> Iterator[None]:
    """Turn whatever a library raises while doing `what` into an EngineError: another engine may do better."""
    try:
        yield
    except BottleneckError:
        raise
    except Exception as error:
        raise EngineError(f"{what} failed: {type(error).__name__}: {first_line(error)}") from error
