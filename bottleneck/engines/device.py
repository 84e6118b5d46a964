"""Find the device to run on. Torch is imported only if an accelerator may be present."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

from bottleneck.errors import EngineError
from bottleneck.processor import vector_units


def resolve_device(device: str = "auto") -> str:
    """The device to run on: "cpu", "cuda", "cuda:N" or "mps".

    Parameters
    ----------
    device : str
        One of these, or "auto": CUDA if present, else MPS, else the CPU.

    Raises
    ------
    EngineError
        The name is unknown, or the device is not present.
    """
    if device == "cpu" or (device == "auto" and not accelerator_possible()):
        return "cpu"
    kind = device.partition(":")[0]
    if kind not in ("auto", "cuda", "mps"):
        raise EngineError(f"Device must be auto, cpu, cuda, cuda:N or mps; got {device!r}.")
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next((name for name, found in present.items() if found), "cpu")
    try:
        index = torch.device(device).index or 0
    except RuntimeError:
        raise EngineError(f"Device must be auto, cpu, cuda, cuda:N or mps; got {device!r}.") from None
    if not present[kind] or (kind == "cuda" and index >= torch.cuda.device_count()):
        raise EngineError(f"Device {device} is not present on this machine.", "Use --device cpu or auto.")
    return device


def trains_in_bf16(device: str) -> bool:
    """Return whether a device has units for bfloat16 that training uses.

    device : as `resolve_device` returns it.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(vector_units() or ())


def accelerator_possible() -> bool:
    """Return False if torch could not find an accelerator; it is not imported."""
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    if platform.system() == "Windows":
        return _loads("nvcuda.dll")
    nodes = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvhost-gpu", "/dev/nvgpu")
    return any(Path(node).exists() for node in nodes) or _loads("libcuda.so.1")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
