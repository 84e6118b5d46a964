"""How the cores are shared. Decided here, once; nobody else sets a thread count.

While images stream, decoding and the network run at the same time. Decoding costs a fraction of the
network's time on a CPU, so the network's library gets every core and the decoders fill the gaps that its
barriers leave; on a GPU the decoders get the cores.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ThreadBudget:
    """Threads for the two sides of extraction.

    decode : int, decoder threads. network : int, intra-op threads of the engine.
    """

    decode: int
    network: int


def available_cores() -> int:
    """Cores that this process may use: its affinity mask, cut by a cgroup v2 CPU quota (containers)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores


def thread_budget(workers: int | None = None, device: str = "cpu") -> ThreadBudget:
    """Share the available cores between decoding and the network.

    Parameters
    ----------
    workers : int, optional
        Decoder threads asked for by the user; 0 and 1 both mean one.
    device : str
        "cpu", or the accelerator on which the network runs.
    """
    cores = available_cores()
    if workers is None:
        workers = max(1, min(cores, 32) // 2) if device == "cpu" else min(cores, 32)
    return ThreadBudget(decode=max(1, workers), network=cores if device == "cpu" else 1)


def use_torch_threads(count: int) -> None:
    """Let torch's CPU kernels use `count` threads from now on, in the whole process."""
    import torch

    torch.set_num_threads(count)
