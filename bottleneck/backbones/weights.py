"""Weights from files: read without running code, loaded with a report of what does not fit.

A `.pth` is a pickle, which can hold code; it is read by torch's restricted unpickler, which only rebuilds
tensors. A `.safetensors` cannot hold code at all.
"""

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
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


def read_weights(path: str | Path) -> "OrderedDict[str, Tensor]":
    """The state dict in a `.pth`, `.pt`, `.bin` or `.safetensors` file, on the CPU.

    A checkpoint that wraps it (`state_dict`, `model`) is unwrapped, and `DataParallel`'s prefix taken off.
    Of a model file that this package wrote, the network's tensors are taken.

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
        state._metadata = content._metadata  # versions, by which older layouts are recognised
    return state


def load_weights(module: nn.Module, state: "OrderedDict[str, Tensor]", what: str, of: str) -> None:
    """Put `state` into `module`, which is of no use where that fails.

    Parameters
    ----------
    what, of : str
        Where the weights came from and the network's name, for the report.

    Raises
    ------
    BackboneError
        Counting and naming the keys that are missing, unexpected or of another shape.
    """
    own = module.state_dict()
    reshaped = [
        f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    missing, unexpected = (
        [name for name in own if name not in state],
        [name for name in state if name not in own],
    )
    if not reshaped:
        if not hasattr(state, "_metadata"):
            state._metadata = own._metadata
        missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    problems = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, names in [("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)]
        if names
    ]
    if problems:
        raise BackboneError(
            f"The weights in {what} do not fit {of}: of {len(own)} entries {', '.join(problems)}.",
            "Give the weights of this very architecture, or its name as --backbone.",
        )


def classes_in(module: nn.Module, state: "OrderedDict[str, Tensor]") -> int | None:
    """Number of outputs in `state` where its classifier differs from that of `module` in nothing else."""
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
        reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        reason = first_line(reason[1] if reason else error)
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
