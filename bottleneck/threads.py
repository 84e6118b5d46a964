"""How the cores are shared. Decided here, once; nobody else sets a thread count.

While images stream, decoding and the network run at the same time, and both hand on through bounded queues:
so each side may have as many threads as there are cores. The side that is behind finds the other asleep, and
takes its cores. What must not happen is waiting that burns a core (OpenMP's and onnxruntime's barriers spin),
so decoders keep torch to their own thread, and the network on a CPU runs whole passes side by side rather
than one pass over all cores: no barrier, and 1.2 to 1.8 times the images per second of processor time
(measured on 2 cores that were busy decoding).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Above these, more threads wait for disks, memory or the interpreter rather than work.
_MAX_DECODERS = 32
_MAX_PASSES = 16


@dataclass(frozen=True)
class ThreadBudget:
    """Threads for the two sides of extraction.

    decode : int, decoder threads. network : int, threads of the engine.
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
        "cpu" or "auto", or the accelerator on which the network runs.
    """
    cores = available_cores()
    decode = min(cores, _MAX_DECODERS) if workers is None else max(1, workers)
    return ThreadBudget(decode=decode, network=cores if device in ("cpu", "auto") else 1)


def passes_side_by_side(threads: int) -> tuple[int, int]:
    """How a CPU engine spends its threads: (passes that run side by side, threads within each)."""
    within = -(-threads // _MAX_PASSES)
    return max(1, threads // within), within


def use_torch_threads(count: int) -> None:
    """Let torch's CPU kernels use `count` threads when called from this thread."""
    import torch

    torch.set_num_threads(count)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch's CPU kernels in the calling thread, leaving other threads as they are.

    A uint8 resize spread over two threads costs three times the processor time of one that is not.
    """
    import torch

    torch.get_num_threads()  # torch sets this thread's count at first use: not in the middle of the block
    with _openmp().limit(limits=1):
        yield


@cache
def _openmp():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="openmp")


@contextmanager
def serial_libraries() -> Iterator[None]:
    """Inside, each call of the BLAS or of torch runs on one thread, for callers that make several at once.

    Measured on 2 cores: blocks of rows on two threads of our own take half the time of one product on the
    library's two, whose idle workers spin between calls.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()  # new threads begin with the count set last, old ones keep theirs
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
