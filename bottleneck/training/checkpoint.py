"""A training run's whole state in one file that a kill at any moment leaves whole.

One .safetensors: the tensors of the module, of the best epoch so far, of the optimizer and of torch's random
numbers; as metadata a JSON object with the rest. It is written beside its place, synced and renamed, so the
file is always the last complete one. Orders of samples and draws of views come from (seed, epoch).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """Where a run's state is kept.

    path : Path
    fingerprint : str
        Of all that decides the run's course; the state of a run with another one is not read.
    """

    path: Path
    fingerprint: str

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the file. tensors : by name, any device; state : JSON-ready."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        metadata = {"fingerprint": self.fingerprint, "state": json.dumps(state)}
        # Clones, because safetensors refuses tensors that share memory, or lie in it in another order.
        plain = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        try:
            save_file(plain, temporary, metadata)
            _sync(temporary)
            temporary.replace(self.path)
            _sync(self.path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the state saved last, or None where this run has none that can be read."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != self.fingerprint:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["state"])  # noqa: SIM118
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return None

    def remove(self) -> None:
        """Forget the run, once its result is saved."""
        self.path.unlink(missing_ok=True)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as they stand in the file."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix`, by their own names."""
    return {
        name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by "parameter number.name"; parameters not yet stepped have none."""
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimizer what `optimizer_tensors` took, each tensor in its parameter's memory format."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, field = name.partition(".")
        like = parameters[int(number)]
        if tensor.shape == like.shape:
            tensor = torch.empty_like(like).copy_(tensor)
        state.setdefault(int(number), {})[field] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _sync(path: Path) -> None:
    """Have the file, or the folder's entries, on the disk."""
    with suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
