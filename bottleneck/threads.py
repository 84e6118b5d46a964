"""Blocks of rows on threads of our own, their results in order; on a GPU, one after the other.

Each thread runs serial libraries: no library's idle workers spin while another works. Sums over blocks are
taken in the blocks' order, so that results do not depend on the number of threads.

How the cores are shared. Decided here, once; nobody else sets a thread count.

While images stream, decoding and the network run at the same time, and both hand on through bounded queues:
so each side may have as many threads as there are cores. The side that is behind finds the other asleep, and
takes its cores. What must not happen is waiting that burns a core (OpenMP's and onnxruntime's barriers spin),
so decoders keep torch to their own thread, and the network on a CPU runs whole passes side by side rather
than one pass over all cores: no barrier, and 1.2 to 1.8 times the images per second of processor time
(measured on 2 cores that were busy decoding).

Memory that was freed, handed back to the system.

glibc keeps freed blocks of up to 32 MiB for the next who asks. After a fit on a million rows that were 200
MiB, and after each of its measurements 60, on top of which what came next took its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

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


def hand_back() -> None:
    """Give the system what no object uses any more; where the C library is not glibc, nothing happens."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


Part = TypeVar("Part")
Result = TypeVar("Result")


class WorkerPool:
    """A context manager that holds the threads for a device ("cpu", "cuda", …).

    Attributes
    ----------
    device : torch.device
    size : int, calls that run at once
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        import torch

        self.device = torch.device(device)
        self.size = available_cores() if self.device.type == "cpu" else 1
        self._stack = ExitStack()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        if self.device.type == "cpu":
            self._stack.enter_context(serial_libraries())
        if self.size > 1:
            self._pool = self._stack.enter_context(ThreadPoolExecutor(self.size))
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def run(self, work: Callable[..., Result], parts: Iterable[tuple]) -> Iterator[Result]:
        """work(*part) of every part, in order. `parts` is drawn by the caller's thread, a few parts ahead."""
        if self._pool is None:
            for part in parts:
                yield work(*part)
            return
        pending: deque = deque()
        try:
            for part in parts:
                pending.append(self._pool.submit(work, *part))
                if len(pending) > self.size:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def share(self, items: Sequence[Part]) -> list[Sequence[Part]]:
        """`items` cut into as many runs of equal length as calls run at once; none is empty."""
        count = max(1, min(self.size, len(items)))
        edges = [len(items) * i // count for i in range(count + 1)]
        return [items[a:b] for a, b in pairwise(edges)]
