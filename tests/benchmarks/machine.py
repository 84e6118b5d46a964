"""What a table of measurements is of: the processor, its units and cores, memory, system and versions."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from bottleneck.engines.device import accelerator_possible
from bottleneck.processor import processor_name, vector_units
from bottleneck.threads import available_cores

LIBRARIES = ("bottleneck-features", "torch", "torchvision", "timm", "onnxruntime", "openvino", "numpy")
LIBRARIES += ("scikit-learn", "h5py", "fastai", "img2vec_pytorch", "keras", "tensorflow-cpu", "tensorflow")


@dataclass(frozen=True)
class Machine:
    """Figures of machines that differ in one of these fields are never put into one table.

    processor : its name, with family and model where the system tells them, since names are shared.
    cores : that may be used.
    units : vector units.
    gpu : its name, or "".
    """

    processor: str
    cores: int
    units: tuple[str, ...]
    gpu: str

    @property
    def title(self) -> str:
        units = ", ".join(self.units) or "not told by the system"
        gpu = f"; {self.gpu}" if self.gpu else ""
        return f"{self.processor}; {self.cores} cores; vector units: {units}{gpu}"

    @property
    def slug(self) -> str:
        """Name of its file: words of the processor, cores, and a digest of all fields."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.processor} {self.cores} cores".lower()).strip("-")
        return f"{words}-{hashlib.sha256(repr(asdict(self)).encode()).hexdigest()[:6]}"

    def to_json(self) -> dict:
        return {**asdict(self), "units": list(self.units)}

    @classmethod
    def from_json(cls, record: dict) -> Machine:
        return cls(record["processor"], record["cores"], tuple(record["units"]), record["gpu"])


@cache
def this_machine() -> Machine:
    return Machine(f"{processor_name()}{_family()}", available_cores(), tuple(vector_units() or ()), _gpu())


def _family() -> str:
    text = ""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
    found = [re.search(rf"^{name}\s*: (\d+)$", text, re.MULTILINE) for name in ("cpu family", "model")]
    family, model = (match.group(1) if match else "" for match in found)
    return f" (family {family}, model {model})" if family and model else ""


def _gpu() -> str:
    """The name of the GPU; torch is imported only where there may be one."""
    if not accelerator_possible():
        return ""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def versions() -> dict[str, str]:
    """Versions of Python, the system and the libraries that are installed."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}"}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def load() -> float:
    """Programs that wanted a core in the last minute, on average; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


def peak_megabytes() -> float:
    """The largest resident memory of this process since it was started, MB of 10^6 bytes."""
    with suppress(OSError):
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if match:
            return int(match.group(1)) * 1024 / 1e6
    import resource

    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    )
