"""Export the extractor as an ONNX graph, and keep graphs in the user's cache folder.

A later run then starts at once and without torch. One safetensors file per graph (no pickle) contains the
graph's bytes, the probe images, and their rows in eager float32, with which the graph is compared again
whenever it is loaded. A file that fails its checksum counts as absent.

Shapes: pixels and probe (B, H, W, C) uint8, rows and reference (B, …) float32 per node, B free.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bottleneck.errors import WriteError
from bottleneck.files import user_cache, write_whole

if TYPE_CHECKING:
    from torch import nn


INPUT = "pixels"
_NOISY = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir")
# Increased when graphs are made in another way: older files are then no longer found.
_GENERATION = "1"
_SUFFIX = ".graph"
_log = logging.getLogger("bottleneck")


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


@dataclass(frozen=True)
class StoredGraph:
    """A graph and the reference that it is compared with.

    graph : serialised ONNX. probe : uint8 (B, H, W, C). reference : (B, …) per node, of eager float32.
    details : description for JSON (for int8 its calibration).
    """

    graph: bytes
    probe: np.ndarray
    reference: tuple[np.ndarray, ...]
    details: dict = field(default_factory=dict)


class GraphCache:
    """Graphs by key in one folder; beyond `limit` bytes the least recently used are deleted.

    Parameters
    ----------
    folder : Path, optional
        Default: `graphs` below `user_cache()`.
    limit : int
        Bytes that all graphs together may occupy.
    """

    def __init__(self, folder: Path | None = None, limit: int = 4 << 30) -> None:
        self.folder = folder or user_cache() / "graphs"
        self.limit = limit

    def path(self, *key: str) -> Path:
        """The file of a graph, which need not exist."""
        name = hashlib.sha256("\n".join((_GENERATION, *key)).encode()).hexdigest()
        return self.folder / (name + _SUFFIX)

    def load(self, *key: str) -> StoredGraph | None:
        """The graph stored under this key; None if there is none or its file is damaged."""
        path = self.path(*key)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("sha256") != _checksum(tensors, metadata.get("details", "")):
                raise ValueError("its checksum does not match")
            os.utime(path)
            count = sum(name.startswith("reference.") for name in tensors)
            reference = tuple(tensors[f"reference.{index}"] for index in range(count))
            details = json.loads(metadata["details"])
            return StoredGraph(tensors["graph"].tobytes(), tensors["probe"], reference, details)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            _log.warning("The stored graph %s cannot be used and is made again: %s", path, error)
            return None

    def store(self, stored: StoredGraph, *key: str) -> None:
        """Store a graph in one rename. If that fails, log a warning: the run can go on without it."""
        tensors = {
            "graph": np.frombuffer(stored.graph, np.uint8),
            "probe": np.ascontiguousarray(stored.probe),
        }
        for index, rows in enumerate(stored.reference):
            tensors[f"reference.{index}"] = np.ascontiguousarray(rows)
        details = json.dumps(stored.details, sort_keys=True)
        metadata = {"details": details, "sha256": _checksum(tensors, details)}
        try:
            write_whole(self.path(*key), save(tensors, metadata))
            self._evict()
        except (OSError, WriteError) as error:
            _log.warning("The exported graph is not stored for later runs: %s", error)

    def _evict(self) -> None:
        """Delete the least recently used files beyond the limit; the newest is never deleted."""
        total = 0
        with suppress(FileNotFoundError):  # another process deletes here too
            newest_first = sorted(self.folder.iterdir(), key=lambda path: -path.stat().st_mtime_ns)
            for index, path in enumerate(newest_first):
                total += path.stat().st_size
                if index and total > self.limit:
                    path.unlink()


def _checksum(tensors: dict[str, np.ndarray], details: str) -> str:
    digest = hashlib.sha256(details.encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
