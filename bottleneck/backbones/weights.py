"""Read weights from files without running code, and load them with a report of what does not fit.

A `.pth` is a pickle, which can hold code; it is read by torch's restricted unpickler, which only rebuilds
tensors. A `.safetensors` cannot hold code at all.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bottleneck.errors import BackboneError, first_line
from bottleneck.names import STATE_PREFIX

_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema")
_SHOWN = 4  # names listed of each kind of misfit
_MAX_INFLATION = 20  # how much larger than its file a checkpoint may unpack; torch stores uncompressed


def read_weights(path: str | Path) -> OrderedDict[str, Tensor]:
    """The state dict in a `.pth`, `.pt`, `.bin` or `.safetensors` file, on the CPU.

    A state dict inside a checkpoint (`state_dict`, `model`, …) is found, and the prefix of `DataParallel`
    removed. Of a model file that this package wrote, the network's tensors are returned.

    Raises
    ------
    BackboneError
        If the file is absent, damaged, holds code, or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(f"There is no weights file {path}.", "Give a .pth or .safetensors file.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(k, str) for k in content):
        raise BackboneError(
            f"The weights file {path} holds no tensors by name, but a {type(content).__name__}."
        )
    odd = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise BackboneError(f"The weights file {path} holds more than tensors: {_some(odd)}.")
    network = {name: value for name, value in content.items() if name.startswith(STATE_PREFIX)}
    state = OrderedDict(
        (name.removeprefix(STATE_PREFIX).removeprefix("module."), value)
        for name, value in (network or content).items()
    )
    if hasattr(content, "_metadata"):
        state._metadata = content._metadata  # type: ignore[attr-defined]  # torch stores module versions so
    return state


def load_weights(module: nn.Module, state: Mapping[str, Tensor], origin: str, name: str) -> None:
    """Load `state` into `module`; after an error the module must not be used.

    Parameters
    ----------
    origin, name : str
        Of the weights and of the network, for the message.

    Raises
    ------
    BackboneError
        With number and names of the keys that are missing, unexpected or of another shape.
    """
    expected = module.state_dict()
    reshaped = [
        f"{key} {tuple(value.shape)} for {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    missing, unexpected = (
        [key for key in expected if key not in state],
        [key for key in state if key not in expected],
    )
    if not reshaped:
        if not hasattr(state, "_metadata"):
            state = OrderedDict(state)
            state._metadata = expected._metadata  # type: ignore[attr-defined]  # torch stores module versions so
        missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    problems = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, names in [("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)]
        if names
    ]
    if problems:
        raise BackboneError(
            f"The weights in {origin} do not fit {name}: of {len(expected)} entries {', '.join(problems)}.",
            "Give the weights of this very architecture, or its name as --backbone.",
        )


def classes_in(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Number of classes in `state` if its last layer differs from that of `module` in this number only."""
    name, last = [(n, p) for n, p in module.named_parameters() if p.dim() > 1][-1]
    theirs = state.get(name)
    if theirs is None or theirs.shape == last.shape or theirs.shape[1:] != last.shape[1:]:
        return None
    return len(theirs)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BackboneError(f"The weights file {path} is damaged: {first_line(error)}.") from error


def _read_pickle(path: Path) -> object:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > _MAX_INFLATION * path.stat().st_size:
                raise BackboneError(
                    f"The weights file {path} would unpack to {unpacked} bytes; it is not read."
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: whatever cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        detail = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        reason = first_line(detail[1] if detail else error)
        raise BackboneError(
            f"The weights file {path} holds code ({code[1]}), not tensors alone; it was not run."
            if code
            else f"The weights file {path} is no file of tensors ({reason}).",
            "Save the state_dict alone, best as .safetensors.",
        ) from error
    except BackboneError:
        raise
    except Exception as error:
        raise BackboneError(f"The weights file {path} is damaged: {first_line(error)}.") from error


def _some(names: list[str]) -> str:
    more = f", … {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
