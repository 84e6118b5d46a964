"""The first line of every table of measurements: which processor the figures are of."""

from __future__ import annotations

import torch

from bottleneck.engines.processor import processor_name, vector_units
from bottleneck.threads import available_cores


def print_machine() -> None:
    """Print the processor's name, the cores that may be used and the vector units, and the GPU if any."""
    units = vector_units()
    told = " ".join(units) if units is not None else "not told by the system"
    print(f"{processor_name()}, {available_cores()} cores; vector units: {told}")
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
