"""Finished trials on disk, so that a run that was killed, or is run again, does not repeat them.

One .safetensors file per trial: arrays, and values as JSON in its metadata. A file is written in one rename
and is valid for one fingerprint of its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bottleneck.files import write_whole


class Records:
    """The finished trials in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str, fingerprint: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Return values and arrays of a trial; None if none with this fingerprint is there and whole."""
        try:
            with safe_open(self._path(name), framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != fingerprint:
                    return None
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return dict(json.loads(metadata["values"])), arrays
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None

    def write(
        self, name: str, fingerprint: str, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Write a trial in one rename, in place of an older one of that name."""
        metadata = {"fingerprint": fingerprint, "values": json.dumps(values, ensure_ascii=False)}
        whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        write_whole(self._path(name), save(whole, metadata=metadata))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
