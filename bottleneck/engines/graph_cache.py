"""Exported graphs kept in the user's cache folder, so that later runs start at once and without torch.

One safetensors file per graph (no pickle): the graph's bytes, the probe images, and the rows that eager
float32 gave for them, by which the graph is judged again wherever it is loaded. A file that fails its
checksum counts as absent.

Shapes: probe (B, H, W, C) uint8, reference (B, …) float32 per node.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

_log = logging.getLogger("bottleneck")

# Raised when graphs are made another way: older files are then no longer found.
_GENERATION = "1"
_SUFFIX = ".graph"


def user_cache() -> Path:
    """The user's folder: $BOTTLENECK_CACHE, else $XDG_CACHE_HOME/bottleneck, else ~/.cache/bottleneck."""
    if own := os.environ.get("BOTTLENECK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bottleneck"


@dataclass(frozen=True)
class KeptGraph:
    """A graph and what it is judged by.

    graph : serialised ONNX. probe : uint8 (B, H, W, C). reference : (B, …) per node, of eager float32.
    details : JSON-able description (for int8 its calibration).
    """

    graph: bytes
    probe: np.ndarray
    reference: tuple[np.ndarray, ...]
    details: dict = field(default_factory=dict)


class GraphCache:
    """Graphs by key in one folder, the least recently used deleted beyond `limit` bytes.

    Parameters
    ----------
    folder : Path, optional
        Default: `graphs` below `user_cache()`.
    limit : int
        Bytes that all graphs together may take.
    """

    def __init__(self, folder: Path | None = None, limit: int = 4 << 30) -> None:
        self.folder = folder or user_cache() / "graphs"
        self.limit = limit

    def path(self, *key: str) -> Path:
        """The file of a graph, whether it exists or not."""
        name = hashlib.sha256("\n".join((_GENERATION, *key)).encode()).hexdigest()
        return self.folder / (name + _SUFFIX)

    def load(self, *key: str) -> KeptGraph | None:
        """The graph kept under this key; None where there is none or its file is damaged."""
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
            return KeptGraph(tensors["graph"].tobytes(), tensors["probe"], reference, details)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            _log.warning("The kept graph %s cannot be used and is made again: %s", path, error)
            return None

    def keep(self, kept: KeptGraph, *key: str) -> None:
        """Store a graph in one rename. Where that is not possible, a warning: the run does not need it."""
        tensors = {"graph": np.frombuffer(kept.graph, np.uint8), "probe": np.ascontiguousarray(kept.probe)}
        for index, rows in enumerate(kept.reference):
            tensors[f"reference.{index}"] = np.ascontiguousarray(rows)
        details = json.dumps(kept.details, sort_keys=True)
        metadata = {"details": details, "sha256": _checksum(tensors, details)}
        partial = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(suffix=".partial", dir=self.folder)
            os.close(handle)
            save_file(tensors, partial, metadata=metadata)
            os.replace(partial, self.path(*key))
            self._evict()
        except (OSError, SafetensorError) as error:
            _log.warning("The exported graph is not kept for later runs: %s", error)
            if partial is not None:
                Path(partial).unlink(missing_ok=True)

    def _evict(self) -> None:
        """Delete the least recently used files until the rest fits the limit; the newest always stays."""
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
