"""Threads that read and decode: jobs in order, with a share of memory and time limits for each.

Python threads cannot be stopped. A thread that is stuck in a job is abandoned and replaced; being a daemon,
it does not keep the process alive.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any

STOP_SECONDS = 5.0  # that threads may take to end when they are stopped


class Job:
    """One piece of work: what `key` names, `index`-th in order.

    image, data : what the caller keeps between two kinds of threads.
    done : set when there is a result or an exception.
    started : when its clock started; None while it waits for a thread or for memory.
    processor : clock of its thread's processor time, and what that showed at first; None where there is none.
    """

    def __init__(self, index: int, key: str) -> None:
        self.index = index
        self.key = key
        self.image: Any = None
        self.data = b""
        self.done = threading.Event()
        self.started: float | None = None
        self.processor: tuple[int, float] | None = None
        self.abandoned: WorkThreads | None = None  # those that gave it up
        self.threads: WorkThreads | None = None  # those that it is in work at
        self.thread: threading.Thread | None = None
        self.result: Any = None
        self.error: BaseException | None = None

    def elapsed(self) -> float:
        """Return the seconds that it has been in work; 0 before and after."""
        started = self.started
        return 0.0 if started is None or self.done.is_set() else time.monotonic() - started

    def processor_seconds(self) -> float:
        """Return the processor time that its thread has spent on it, at most `elapsed`, which stands in for
        it where the system does not tell.
        """
        elapsed, processor = self.elapsed(), self.processor
        if processor is None or not elapsed:
            return elapsed
        clock, before = processor
        try:
            return min(elapsed, time.clock_gettime(clock) - before)
        except OSError:  # the thread has ended
            return 0.0

    def exclude(self, seconds: float) -> None:
        """Do not count `seconds` during which the whole process stood still."""
        if self.started is not None:
            self.started += seconds

    def outcome(self) -> Any:
        """Return the result, or raise the exception that the work raised."""
        if self.error is not None:
            raise self.error
        return self.result


class MemoryBudget:
    """Memory for decoding. A job reserves its share beforehand, and waits where too little is left."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.reserved: dict[Job, int] = {}
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, job: Job, amount: int) -> Iterator[None]:
        """Hold `amount` bytes in the block, as from `take`."""
        self.take(job, amount)
        try:
            yield
        finally:
            self.release(job)

    def take(self, job: Job, amount: int) -> None:
        """Hold `amount` bytes, at most the whole budget, until `release`. The job's clock stops meanwhile."""
        amount = min(amount, self.memory)
        job.started = None
        with self.changed:
            self.changed.wait_for(lambda: sum(self.reserved.values()) + amount <= self.memory)
            self.reserved[job] = amount
        job.started = time.monotonic()

    def release(self, job: Job) -> None:
        """Return what the job holds, if anything."""
        with self.changed:
            self.reserved.pop(job, None)
            self.changed.notify_all()


class WorkThreads:
    """Daemon threads that run `work` on jobs in the order of `submit`.

    then : where a job goes on for which `work` returns None.
    """

    def __init__(
        self, work: Callable[[Job], Any], count: int, name: str, then: WorkThreads | None = None
    ) -> None:
        self._work, self._name, self._then = work, name, then
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()  # None: stop
        self._threads: set[threading.Thread] = set()
        for _ in range(count):
            self._start_thread()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        job.started, job.threads = None, self
        self._jobs.put(job)

    def abandon(self, job: Job, result: Any) -> None:
        """Give `job` the result `result`, and start a thread in place of the one that is stuck in it."""
        job.abandoned = self
        job.result = result
        job.done.set()
        if job.thread is not None:
            self._threads.discard(job.thread)
        self._start_thread()

    def stop(self) -> None:
        """Drop the jobs that have not begun, and wait a little for the others to end."""
        with suppress(Empty):
            while True:
                self._jobs.get_nowait()
        self._jobs.put(None)
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start_thread(self) -> None:
        context = copy_context()  # what the user allows (`urls.allow`) holds in the thread as well
        thread = threading.Thread(target=context.run, args=(self._run,), name=self._name, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _run(self) -> None:
        clock = _thread_clock()
        while (job := self._jobs.get()) is not None:
            job.thread = threading.current_thread()
            job.processor = None if clock is None else (clock, time.clock_gettime(clock))
            job.started = time.monotonic()
            try:
                result = self._work(job)
                if result is None and self._then is not None and not job.abandoned:
                    job.thread = None
                    self._then.submit(job)
                    continue
                if not job.abandoned:
                    job.result = result
            except BaseException as error:
                job.error = error
            job.done.set()
            if job.abandoned is self:
                return
        self._jobs.put(None)  # for the next thread


def _thread_clock() -> int | None:
    """Return the number of the clock of this thread's processor time, None where the system has none.

    Other threads may read it. Unlike the thread's identifier, it is safe to use after the thread has ended.
    """
    clock_of = getattr(time, "pthread_getcpuclockid", None)
    return None if clock_of is None else int(clock_of(threading.get_ident()))
