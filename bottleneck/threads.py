"""Threads and memory of the process: how cores are shared, a pool of workers, and freed memory.

No other module sets a number of threads.

While images stream, decoding and the network run at the same time, joined by bounded queues. Each side may
have as many threads as there are cores: a side that waits sleeps, and leaves its cores to the other. Waiting
must not use a core, as the barriers of OpenMP and onnxruntime do. Therefore decoders keep torch to their own
thread, and a network on a CPU runs whole passes side by side instead of one pass over all cores.

The heads' solver splits its rows into blocks for a `WorkerPool`, whose threads call serial libraries. Results
come in the order of the blocks, so that sums do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_blas_caller = Lock()
_share: list[int] = []  # at most one: the cores of this process, see `use_cores`

# More threads than these only wait for disks, memory or the interpreter.
_MAX_DECODERS = 32
_MAX_PASSES = 16
# Reads over a network that are in flight at a time; they wait, and need no core.
REMOTE_READS = 32


@dataclass(frozen=True)
class ThreadBudget:
    """Threads for the two sides of extraction."""

    decode: int  # decoder threads
    network: int  # threads of the engine


def available_cores() -> int:
    """Return the cores that this process may use: its affinity mask, limited by the CPU quota of its cgroups.

    Processes that torchrun starts on one host (LOCAL_WORLD_SIZE) share them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min([cores, *(max(1, round(quota)) for quota in _cpu_quotas())])
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    cores = max(1, cores // int(beside)) if beside.isdecimal() and int(beside) > 1 else cores
    return min([cores, *_share])


def _cpu_quotas() -> Iterator[float]:
    """Yield the quotas, in cores, of this process's cgroups and of those above them (version 2 or 1)."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:  # another system
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = _CGROUPS / controllers
        # In a container, `own` may be a path of the host that is not there; the container's own is the top.
        for folder in (top / own.lstrip("/"), *(top / own.lstrip("/")).parents):
            with suppress(OSError, ValueError):
                files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
                quota, period = " ".join((folder / name).read_text() for name in files).split()
                if quota not in ("max", "-1"):
                    yield int(quota) / int(period)
            if folder == top:
                break


def use_cores(count: int) -> None:
    """Let this process use `count` cores at most: those that a scheduler has given it, which it must keep."""
    _share[:] = [max(1, count)]


def thread_budget(workers: int | None = None, device: str = "cpu") -> ThreadBudget:
    """Return how many threads decoding and the network get.

    Parameters
    ----------
    workers : int, optional
        Decoder threads that the user requested; 0 and 1 both mean one.
    device : str
        "cpu", "auto", or the accelerator on which the network runs.
    """
    cores = available_cores()
    decode = min(cores, _MAX_DECODERS) if workers is None else max(1, workers)
    return ThreadBudget(decode=decode, network=cores if device in ("cpu", "auto") else 1)


def passes_side_by_side(threads: int) -> tuple[int, int]:
    """Return (passes that run side by side, threads within each) of a CPU engine with `threads` threads."""
    within = -(-threads // _MAX_PASSES)
    return max(1, threads // within), within


def wait_without_spinning() -> None:
    """Let threads of OpenMP sleep while they wait. Call it before a library is imported that has OpenMP.

    By default they spin at the end of each parallel loop: beside other programs, a step of training then
    takes twice the processor time. What the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def use_torch_threads(count: int) -> None:
    """Set the number of threads of torch's CPU kernels when called from this thread."""
    import torch

    torch.set_num_threads(count)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch's CPU kernels in the calling thread; other threads are not affected."""
    import torch

    torch.get_num_threads()  # torch sets this thread's count at its first use, which must not be in the block
    with _openmp().limit(limits=1):
        yield


@cache
def _openmp() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="openmp")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run NumPy's products on the calling thread, of one caller after the other: the limit is the process's.

    The BLAS's own threads take ten times as long where several threads call it at once.
    """
    with _blas_caller, _blas().limit(limits=1):
        yield


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def serial_libraries() -> Iterator[None]:
    """Run each call of the BLAS or of torch on one thread, for callers that make several calls at once.

    The library's own threads would spin between calls and take the cores from the callers. torch is not
    imported for that: who imports it in the block calls `serial_torch`.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        if "torch" not in sys.modules:
            yield
            return
        with serial_torch():
            yield


@contextmanager
def serial_torch() -> Iterator[None]:
    """Import torch, and run each of its calls on one thread."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()  # new threads start with the count set last, old ones keep theirs
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api="blas"):  # also the BLAS that came with torch
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run BLAS and OpenMP on one thread, for many short parallel loops: threads that wait at the end of each
    would cost more than they save, and far more where other programs use the cores too.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


def trim_memory() -> None:
    """Return freed memory to the system.

    glibc keeps freed blocks of up to 32 MiB for later requests. With another C library nothing happens.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


Result = TypeVar("Result")


class WorkerPool:
    """Threads that work on parts of a problem; for a GPU, the calling thread does all the work.

    In a `with` block there are threads, and libraries are serial. Outside, `run` uses the calling thread.

    Attributes
    ----------
    device : str, a torch device
    size : int, calls that run at the same time; by default the cores that are available
    """

    def __init__(self, device: str = "cpu", size: int | None = None) -> None:
        self.device = device
        self.size = size or (available_cores() if device == "cpu" else 1)
        self._stack = ExitStack()
        self._pool: ThreadPoolExecutor | None = None
        self._serial = False

    def __enter__(self) -> WorkerPool:
        self._serial = self.device == "cpu"
        if self._serial:
            self._stack.enter_context(serial_libraries())
        if self.size > 1:
            self._pool = self._stack.enter_context(ThreadPoolExecutor(self.size))
        return self

    def use_torch(self) -> None:
        """Import torch, which then is serial as well in the `with` block."""
        import torch  # noqa: F401

        if self._serial:
            self._stack.enter_context(serial_torch())

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._pool, self._serial = None, False

    def run(self, work: Callable[..., Result], parts: Iterable[tuple]) -> Iterator[Result]:
        """Yield work(*part) of every part, in order. The calling thread iterates `parts`, a few ahead."""
        if self._pool is None:
            for part in parts:
                yield work(*part)
            return
        pending: deque[Future[Result]] = deque()
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

    def shares(self, count: int) -> list[slice]:
        """Cut range(count) into as many slices of about equal length as calls run at once; none is empty."""
        parts = max(1, min(self.size, count))
        return [slice(count * i // parts, count * (i + 1) // parts) for i in range(parts)]
