"""Threads that do jobs in order, with a share of memory each and a clock on each: what a loader runs on.

Python threads cannot be stopped. One that is stuck in a job is given up and replaced; being a daemon, it does
not hold up the end of the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

PATIENCE = 5.0  # seconds that dismissed threads may take to end


class Budget:
    """Memory for decoding: each job reserves its share before it takes it, and waits where none is left."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.reserved: dict[Job, int] = {}
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, job: Job, amount: int) -> Iterator[None]:
        """Hold `amount` bytes, or all there are where that is less. The job's clock stops while it waits."""
        amount = min(amount, self.memory)
        job.since = None
        with self.changed:
            self.changed.wait_for(lambda: sum(self.reserved.values()) + amount <= self.memory)
            self.reserved[job] = amount
        job.since = time.monotonic()
        try:
            yield
        finally:
            self.release(job)

    def release(self, job: Job) -> None:
        """Give back what the job holds, if anything."""
        with self.changed:
            self.reserved.pop(job, None)
            self.changed.notify_all()


class Job:
    """One piece of work on its way through a worker: what `key` names, `index`-th in order."""

    def __init__(self, index: int, key: str) -> None:
        self.index = index
        self.key = key
        self.result: Any = None
        self.defect: BaseException | None = None
        self.done = threading.Event()
        self.thread: threading.Thread | None = None
        self.since: float | None = None  # when its clock started; None while it queues for a worker or memory
        self.given_up = False

    def clock(self) -> float:
        """Seconds that it has been in work for, 0 before and after."""
        since = self.since
        return 0.0 if since is None or self.done.is_set() else time.monotonic() - since

    def forgive(self, seconds: float) -> None:
        """Leave `seconds` out of its time, in which it could not go on."""
        if self.since is not None:
            self.since += seconds

    def outcome(self) -> Any:
        """The result, or the exception that the worker met."""
        if self.defect is not None:
            raise self.defect
        return self.result


class Crew:
    """Daemon threads that take jobs in order. One stuck in a job is replaced, as it cannot be stopped."""

    def __init__(self, work: Callable[[Job], Any], size: int) -> None:
        self.work = work
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.threads: set[threading.Thread] = set()
        for _ in range(size):
            self._hire()

    def _hire(self) -> None:
        thread = threading.Thread(target=self._live, name="bottleneck-decode", daemon=True)
        self.threads.add(thread)
        thread.start()

    def _live(self) -> None:
        while (job := self.jobs.get()) is not None:
            job.thread = threading.current_thread()
            job.since = time.monotonic()
            try:
                result = self.work(job)
                if not job.given_up:
                    job.result = result
            except BaseException as error:
                job.defect = error
            job.done.set()
            if job.given_up:
                return
        self.jobs.put(None)  # for the next thread

    def give_up(self, job: Job, result: Any) -> None:
        """Leave the thread that is stuck in `job` to itself, hire another, and call the job done."""
        job.given_up = True
        job.result = result
        job.done.set()
        self.threads.discard(job.thread)
        self._hire()

    def dismiss(self) -> None:
        """Drop the jobs that have not begun and wait a little for the others to end."""
        with suppress(Empty):
            while True:
                self.jobs.get_nowait()
        self.jobs.put(None)
        deadline = time.monotonic() + PATIENCE
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
