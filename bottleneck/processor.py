"""The processor's name and its vector units, read from the system without a library."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

# Units that decide which engine and precision are fast, by their names in /proc/cpuinfo.
_UNITS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "sve", "i8mm", "bf16"),
)


def processor_name() -> str:
    """Return the processor's name, or its architecture where the system does not tell the name."""
    for name in ("model name", "machdep.cpu.brand_string"):
        if name in _facts():
            return _facts()[name]
    return platform.processor() or platform.machine()


def is_of_amd() -> bool:
    """Return whether AMD made the processor; False where the system does not tell."""
    return _facts().get("vendor_id") == "AuthenticAMD"


def vector_units() -> list[str] | None:
    """Return Linux' names of the processor's vector units; None where the system does not tell them."""
    names = ("flags", "Features", "machdep.cpu.features", "machdep.cpu.leaf7_features")
    lines = [_facts()[name].lower() for name in names if name in _facts()]
    if not lines:
        return None
    flags = set(" ".join(lines).replace("avx1.0", "avx").replace(".", "_").split())
    return [unit for unit in _UNITS if unit in flags]


@cache
def _facts() -> dict[str, str]:
    """Lines `name: value` about the first processor: of /proc/cpuinfo on Linux, of sysctl on macOS."""
    text = ""
    with suppress(OSError):
        if platform.system() == "Darwin":
            text = subprocess.run(["sysctl", "machdep.cpu"], capture_output=True, text=True).stdout
        else:
            text = Path("/proc/cpuinfo").read_text()
    pairs = [line.partition(":")[::2] for line in text.splitlines() if ":" in line]
    return {name.strip(): value.strip() for name, value in reversed(pairs)}
