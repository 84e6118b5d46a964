"""Blocks of rows on threads of our own, their results in order; on a GPU, one after the other.

Each thread runs serial libraries: no library's idle workers spin while another works. Sums over blocks are
taken in the blocks' order, so that results do not depend on the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from typing import TypeVar

import torch

from bottleneck.threads import available_cores, serial_libraries

Part = TypeVar("Part")
Result = TypeVar("Result")


class Crew:
    """A context manager that holds the threads for a device ("cpu", "cuda", …).

    Attributes
    ----------
    device : torch.device
    size : int, calls that run at once
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.size = available_cores() if self.device.type == "cpu" else 1
        self._stack = ExitStack()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Crew:
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
