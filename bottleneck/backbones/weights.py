"""Read weights from files without running code, load them, and adapt them to images of one or four channels.

A `.pth` is a pickle, which can hold code; it is read by torch's restricted unpickler, which only rebuilds
tensors. A `.safetensors` cannot hold code at all. `fit_weights` finds what in a file is the network.

Grey: the weights of the first convolution are summed over the colours, scaled so that a grey image gives the
same output as its copy in three equal channels. Each colour has its own mean and std; their differences add a
constant to each output channel, which becomes its bias. (At a zero-padded border this constant is not exact:
if the colours' means differ, the outputs there differ slightly.)

Four channels: the fourth gets the mean of the colours' weights, and all weights are scaled by 3/4.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError, first_line, listed
from bottleneck.heads.head_format import FORMAT
from bottleneck.heads.tensor_file import PICKLE, ZIP, fault_of, kind_of
from bottleneck.names import STATE_PREFIX

# Entries of a checkpoint that hold a network, the preferred one first: averaged weights (EMA), as timm does;
# the teacher of a self-supervised network is an average too.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema", "teacher")
_WRAPPERS = (*_AVERAGED, "state_dict", "model_state_dict", "model", "net", "network", "params", "module")
_DEEPEST = 3  # wrappers within one another
_MAX_INFLATION = 20  # how much larger than its file a checkpoint may unpack; torch stores uncompressed

# Besides tensors, what training scripts write into checkpoints; none of these runs code when it is rebuilt.
_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "fdlq?"),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]

_SAVE_STATE = "Save the state_dict alone, best as .safetensors."


@dataclass(frozen=True)
class NamedState:
    """A state dict found in a file, and the path of entries to it, such as ("model_ema",)."""

    path: tuple[str, ...]
    state: Mapping[str, Tensor]

    @property
    def averaged(self) -> bool:
        """Whether it holds an average over training (EMA)."""
        return any(part in _AVERAGED for part in self.path)


def read_weights(path: str | Path) -> OrderedDict[str, Tensor]:
    """The preferred state dict in a file, on the CPU; parameters and errors as in `read_checkpoint`."""
    return OrderedDict(read_checkpoint(path)[0].state)


def read_checkpoint(path: str | Path) -> list[NamedState]:
    """The state dicts in a `.pth`, `.pt`, `.bin`, `.ckpt` or `.safetensors` file, the preferred one first.

    A checkpoint may hold several (`state_dict`, `state_dict_ema` …), each as an entry. Of a model file that
    this package wrote, the network's tensors are returned.

    Raises
    ------
    BackboneError
        If the file is absent, damaged, holds code, or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(f"There is no weights file {path}.", "Give a .pth or .safetensors file.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(content, Mapping) or not content or not all(isinstance(k, str) for k in content):
        kind = "empty dict" if content == {} else type(content).__name__
        raise BackboneError(f"The weights file {path} holds no tensors by name, but a {kind}.", _SAVE_STATE)
    states = list(_states(content, ()))
    if not states:
        odd = [name for name, value in content.items() if not isinstance(value, Tensor)]
        mixed = len(odd) < len(content)
        what = "more than tensors" if mixed else "no tensors by name, but the entries"
        raise BackboneError(f"The weights file {path} holds {what}: {listed(odd)}.", _SAVE_STATE)
    return states


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
    reshaped = reshaped_entries(state, expected)
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
        f"{len(names)} {kind} ({listed(names)})"
        for kind, names in [
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", list(reshaped.values())),
        ]
        if names
    ]
    if problems:
        raise BackboneError(
            f"The weights in {origin} do not fit {name}: of {len(expected)} entries {', '.join(problems)}.",
            "Give the weights of this very architecture, or its name as --backbone.",
        )


def reshaped_entries(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Entries of `state` whose shape is not the expected one: name → a description of both shapes."""
    return {
        key: f"{key} {tuple(value.shape)} for {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    }


def classes_in(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Number of classes in `state` if its last layer differs from that of `module` in this number only."""
    name, last = [(n, p) for n, p in module.named_parameters() if p.dim() > 1][-1]
    theirs = state.get(name)
    if theirs is None or theirs.shape == last.shape or theirs.shape[1:] != last.shape[1:]:
        return None
    return len(theirs)


def _states(content: Mapping[str, object], path: tuple[str, ...]) -> Iterator[NamedState]:
    """State dicts in a checkpoint: itself, or its entries, well-known names first."""
    if content and all(isinstance(value, Tensor) for value in content.values()):
        yield NamedState(path, content)  # type: ignore[arg-type]  # all values were just checked
        return
    known = [name for name in _WRAPPERS if name in content]
    others = [name for name in content if name not in known and name != "optimizer"]
    for name in [*known, *others] if len(path) < _DEEPEST else []:
        entry = content[name]
        if isinstance(entry, Mapping) and entry and all(isinstance(key, str) for key in entry):
            yield from _states(entry, (*path, name))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            ours = (file.metadata() or {}).get("format") == FORMAT
        content = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, fault_of(path, error)) from error
    if not ours:
        return content
    network = {
        name.removeprefix(STATE_PREFIX): value
        for name, value in content.items()
        if name.startswith(STATE_PREFIX)
    }
    if not network:
        raise BackboneError(
            f"{path} holds a head and no network.", "Give a model that finetune or scratch wrote."
        )
    return network


def _read_pickle(path: Path) -> object:
    with path.open("rb") as file:
        kind = kind_of(file.read(64), expected=(ZIP, PICKLE))
    if kind:
        raise _damaged(path, kind)
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
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
            _SAVE_STATE,
        ) from error
    except BackboneError:
        raise
    except Exception as error:
        raise _damaged(path, f"cannot be read ({first_line(error)})") from error


def _damaged(path: Path, fault: str) -> BackboneError:
    return BackboneError(
        f"The weights file {path} is damaged or no file of tensors: it {fault}.",
        "Download it again, or save a state_dict with torch.save.",
    )


def _check_archive(path: Path) -> None:
    """Refuse a program, and an archive that would unpack to far more than its size."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if unpacked > _MAX_INFLATION * path.stat().st_size:
        raise BackboneError(f"The weights file {path} would unpack to {unpacked} bytes; it is not read.")
    names = [member.filename for member in members]
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        raise BackboneError(
            f"The weights file {path} is a TorchScript program, which holds code; it was not run.",
            "Where you trust it: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth').",
        )
    if any(name.endswith(("model.json", "archive_format", ".npy")) for name in names):
        raise BackboneError(
            f"The weights file {path} is no file of tensors: it is an archive of torch.export or NumPy.",
            _SAVE_STATE,
        )


def adapt_channels(module: nn.Module, preprocess: Preprocess, in_channels: int) -> Preprocess:
    """Adapt `module` in place and return its preprocessing.

    Raises
    ------
    BackboneError
        There is no such image mode, or the network does not begin with a convolution of three channels.
    """
    if in_channels == preprocess.channels:
        return preprocess
    first = first_convolution(module)
    if in_channels not in (1, 4) or preprocess.channels != 3:
        raise BackboneError(
            f"Images of {in_channels} channels are not supported; expected 1 (grey), 3 (RGB) or 4 (RGBA)."
        )
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise BackboneError("The network does not begin with a convolution of three channels.")
    adapt = _to_grey if in_channels == 1 else _to_rgba
    return adapt(first, preprocess)


def first_convolution(module: nn.Module) -> nn.Conv2d | None:
    """The convolution that the images pass first; None if the network has none."""
    return next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)


def _to_grey(first: nn.Conv2d, preprocess: Preprocess) -> Preprocess:
    """(x − m_c) / s_c = (s / s_c) · (x − m) / s + (m − m_c) / s_c for every colour c."""
    mean, std = fmean(preprocess.mean), fmean(preprocess.std)
    weight = first.weight.detach().double()  # sums in double: the same float32 on every machine
    means, stds = (torch.tensor(v, dtype=torch.float64) for v in (preprocess.mean, preprocess.std))
    scale, shift = std / stds, (mean - means) / stds
    constant = torch.einsum("ochw,c->o", weight, shift)
    first.weight = nn.Parameter(torch.einsum("ochw,c->ohw", weight, scale).unsqueeze(1).float())
    first.in_channels = 1
    if shift.any():
        bias = 0 if first.bias is None else first.bias.detach().double()
        first.bias = nn.Parameter((bias + constant).float())
    return replace(preprocess, mode="L", mean=(mean,), std=(std,))


def _to_rgba(first: nn.Conv2d, preprocess: Preprocess) -> Preprocess:
    weight = first.weight.detach().double()
    first.weight = nn.Parameter((0.75 * torch.cat([weight, weight.mean(1, keepdim=True)], 1)).float())
    first.in_channels = 4
    return replace(
        preprocess,
        mode="RGBA",
        mean=(*preprocess.mean, fmean(preprocess.mean)),
        std=(*preprocess.std, fmean(preprocess.std)),
    )
