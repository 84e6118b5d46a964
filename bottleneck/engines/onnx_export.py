"""From the extractor module to an ONNX graph: uint8 (B, H, W, C) in, a float32 array per node out, B free."""

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
            # Two rows: exporters take 0 and 1 for constants.
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=[INPUT],
            optimize=True,
            verbose=False,
        )
    return program.model_proto.SerializeToString()


@contextmanager
def silence() -> Iterator[None]:
    """The exporter's warnings speak to its developers; what matters is checked by its numbers afterwards."""
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
