"""Export the extractor as an ONNX graph: uint8 (B, H, W, C) in, a float32 array per node out, B free."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

INPUT = "pixels"
_NOISY = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir")


def export_graph(extractor: nn.Module, example: np.ndarray) -> bytes:
    """The extractor as serialised ONNX, normalisation included, several outputs in the order of the nodes.

    Parameters
    ----------
    extractor : nn.Module
        In eval mode; uint8 (B, H, W, C) → tuple of float32 tensors.
    example : uint8 array of shape (B, H, W, C)
        Gives H, W and C, which are fixed in the graph.
    """
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(np.resize(example, (2, *example.shape[1:]))))
    with silence():
        program = torch.onnx.export(
            extractor,
            (pixels,),
            dynamo=True,
            # Of two rows: exporters treat sizes 0 and 1 as constants.
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=[INPUT],
            optimize=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()


@contextmanager
def silence() -> Iterator[None]:
    """Hide the exporter's warnings, which are for its developers; its result is compared afterwards."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
