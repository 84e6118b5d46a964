"""The whole state of a training run in one file that is complete whenever the run is killed.

One .safetensors file: the tensors of the module, of the best epoch so far, of the optimizer and of torch's
random number generators; as metadata a JSON object with the rest. The order of samples and the draws of views
follow from (seed, epoch), so they are not stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bottleneck.files import replacing


@dataclass(frozen=True)
class Checkpoint:
    """The file of a run's state.

    path : Path
    fingerprint : str
        Of everything that decides the course of the run; the state of a run with another one is not read.
    """

    path: Path
    fingerprint: str

    @staticmethod
    def beside(model: Path, fingerprint: str) -> Checkpoint:
        """The checkpoint of the run that writes `model`."""
        return Checkpoint(model.with_suffix(".checkpoint.safetensors"), fingerprint)

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the file. tensors : by name, on any device; state : JSON-ready."""
        metadata = {"fingerprint": self.fingerprint, "state": json.dumps(state)}
        # Copies, because safetensors refuses tensors that share memory or have another memory format.
        plain = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        with replacing(self.path) as fresh:
            save_file(plain, fresh, metadata)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the state saved last, or None where there is no readable state of this run."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != self.fingerprint:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["state"])  # noqa: SIM118
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return None

    def remove(self) -> None:
        """Delete the file, once the result of the run is saved."""
        self.path.unlink(missing_ok=True)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names in the file."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names in the file start with `prefix`, by their names without it."""
    return {
        name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by "parameter number.name"; parameters that were never updated have none."""
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `optimizer_tensors`, each tensor in the memory format of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, field = name.partition(".")
        like = parameters[int(number)]
        if tensor.shape == like.shape:
            tensor = torch.empty_like(like).copy_(tensor)
        state.setdefault(int(number), {})[field] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
