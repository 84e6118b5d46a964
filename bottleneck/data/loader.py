"""Images in, pixels out: read and decoded by threads, handed over in order, within fixed memory and time.

A file is read once; its sha256 and its pixels come from the same bytes. An image that cannot be read or
decoded is reported in its own place, so that no neighbour moves. Copies of bytes already known cost no
decoding. What an image yields depends on its bytes and on the images before it, never on which thread was
first.

Shapes: H, W height and width, C channels, V views.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np

from bottleneck.data.augment import ViewRecipe
from bottleneck.data.decode import decode_image, pixels_from_bytes
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import ImageError

MEMORY = 512 << 20  # bytes
TIME_LIMIT = 30.0  # seconds for one image


class Readable(Protocol):
    """What is needed of a source: bytes, and size in bytes with the time of last change in ns."""

    def read(self, key: str) -> bytes: ...

    def stat(self, key: str) -> tuple[int, int]: ...


@dataclass(frozen=True)
class LoadedImage:
    """One image of a run, in the order of its keys.

    Parameters
    ----------
    index, key : int, str
        Position in the keys given, and the key there.
    size, mtime_ns : int
        Of the file, taken before it was read; −1 where that failed.
    digest : bytes or None
        sha256 of the bytes; None where they could not be read.
    pixels : (H, W, C) uint8 ndarray or None
        None together with `error` None: a copy of bytes that are known or came earlier in this run.
    views : (V, H, W, C) uint8 ndarray or None
    error : str or None
        Why there are no pixels.
    read_seconds, decode_seconds : float
        Wall time spent.
    """

    index: int
    key: str
    size: int = -1
    mtime_ns: int = -1
    digest: bytes | None = None
    pixels: np.ndarray | None = None
    views: np.ndarray | None = None
    error: str | None = None
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


def load_images(
    source: Readable,
    keys: Sequence[str],
    preprocess: Preprocess,
    *,
    workers: int,
    known: Container[bytes] = (),
    views: ViewRecipe | None = None,
    memory: int = MEMORY,
    time_limit: float = TIME_LIMIT,
) -> Iterator[LoadedImage]:
    """Read and decode images in threads, a bounded number ahead of the caller.

    Parameters
    ----------
    source : Readable
        Called from several threads at once.
    keys : sequence of str
        What to load, in this order.
    preprocess : Preprocess
    workers : int
        Decoder threads; 0 counts as 1.
    known : container of bytes
        Digests whose images need no pixels.
    views : ViewRecipe, optional
        Also make augmented views of each image.
    memory : int
        Bytes that the images being decoded may take together, and that those waiting for the caller may. An
        image that needs more by itself is decoded alone; a file larger than this is a failure.
    time_limit : float
        Seconds for reading and decoding one image, after which it is a failure and its thread is given up.

    Yields
    ------
    LoadedImage
        One for each key. Closing the generator stops the threads.

    Raises
    ------
    Exception
        Whatever is neither an `ImageError` nor an `OSError`, at the image's turn: a defect, not a bad image.
    """
    run = _Run(source, preprocess, known, views, memory)
    ahead = _images_ahead(preprocess, views, max(1, workers), memory)
    crew = _Crew(run.load, max(1, workers))
    waiting: deque[_Job] = deque()
    upcoming = iter(enumerate(keys))
    try:
        while True:
            for index, key in islice(upcoming, ahead - len(waiting)):
                waiting.append(_Job(index, key))
                crew.jobs.put(waiting[-1])
            if not waiting:
                return
            job = waiting.popleft()
            if job.wait(time_limit):
                yield run.in_order(job.outcome())
            else:
                crew.give_up(job)
                run.budget.release(job)
                reason = f"took longer than {time_limit:g} seconds to read and decode"
                yield LoadedImage(job.index, job.key, error=reason)
    finally:
        crew.dismiss()


def _images_ahead(preprocess: Preprocess, views: ViewRecipe | None, workers: int, memory: int) -> int:
    """How many images may be in work or finished, the one that the caller waits for included."""
    one = preprocess.size**2 * preprocess.channels * (1 + (views.count if views else 0))
    return max(workers + 1, min(16 * workers + 64, memory // one))


class _Run:
    """What the images of one call share: the source, the recipe, the memory, and who came first with which
    bytes."""

    def __init__(self, source, preprocess, known, views, memory: int) -> None:
        self.source = source
        self.preprocess = preprocess
        self.known = known
        self.views = views
        self.memory = memory
        self.budget = _Budget(memory)
        self.first: dict[bytes, int] = {}  # digest -> lowest index that is decoding or has decoded it
        self.lock = threading.Lock()
        self.settled: dict[bytes, str | None] = {}  # digest -> error of its first image, in order

    def load(self, job: _Job) -> LoadedImage:
        """Read and decode one image, in a worker's thread."""
        start = time.perf_counter()
        image = LoadedImage(job.index, job.key)
        try:
            size, mtime_ns = self.source.stat(job.key)
            image = replace(image, size=size, mtime_ns=mtime_ns)
            if size > self.memory:
                raise ImageError(f"is a file of {size >> 20} MiB; the limit is {self.memory >> 20}")
            data = self.source.read(job.key)
        except (ImageError, OSError) as error:
            return replace(image, error=_reason(error), read_seconds=time.perf_counter() - start)
        digest = hashlib.sha256(data).digest()
        image = replace(image, digest=digest, read_seconds=time.perf_counter() - start)
        if digest in self.known or not self._claim(digest, job.index):
            return image
        start = time.perf_counter()
        try:
            admit = partial(self.budget.reserve, job)
            pixels = pixels_from_bytes(data, self.preprocess, admit)
            views = None
            if self.views is not None:
                views = self.views.apply(decode_image(data, self.preprocess.mode), self.preprocess, digest)
        except ImageError as error:
            return replace(image, error=_reason(error), decode_seconds=time.perf_counter() - start)
        return replace(image, pixels=pixels, views=views, decode_seconds=time.perf_counter() - start)

    def _claim(self, digest: bytes, index: int) -> bool:
        """True where no earlier image has these bytes, as far as is known yet."""
        with self.lock:
            first = self.first.get(digest, index)
            self.first[digest] = min(first, index)
            return index <= first

    def in_order(self, image: LoadedImage) -> LoadedImage:
        """Settle copies as if images had been decoded one by one: a later image can have overtaken the first
        of its kind, and the copy of an image that failed has failed as well."""
        digest = image.digest
        if digest is None or digest in self.known:
            return image
        if digest in self.settled:
            return replace(image, pixels=None, views=None, error=self.settled[digest])
        self.settled[digest] = image.error
        return image


def _reason(error: ImageError | OSError) -> str:
    """One line on what went wrong with an image, without its name."""
    if isinstance(error, ImageError):
        return str(error)
    return f"cannot be read: {error.strerror or error}"


class _Budget:
    """Memory for decoding: each job reserves its share before it takes it, and waits where none is left."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.reserved: dict[_Job, int] = {}
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, job: _Job, amount: int) -> Iterator[None]:
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

    def release(self, job: _Job) -> None:
        """Give back what the job holds, if anything."""
        with self.changed:
            self.reserved.pop(job, None)
            self.changed.notify_all()


class _Job:
    """One image on its way through a worker."""

    def __init__(self, index: int, key: str) -> None:
        self.index = index
        self.key = key
        self.result: LoadedImage | None = None
        self.defect: BaseException | None = None
        self.done = threading.Event()
        self.thread: threading.Thread | None = None
        self.since: float | None = None  # when its clock started; None while it queues for a worker or memory
        self.given_up = False

    def wait(self, limit: float) -> bool:
        """Wait until done; False once its clock shows more than `limit` seconds."""
        while not self.done.wait(min(limit, 1.0)):
            since = self.since
            if since is not None and time.monotonic() - since > limit:
                return False
        return True

    def outcome(self) -> LoadedImage:
        """The result, or the exception that the worker met."""
        if self.defect is not None:
            raise self.defect
        return self.result


class _Crew:
    """Daemon threads that take jobs in order. One stuck in a job is replaced, as it cannot be stopped."""

    def __init__(self, load: Callable[[_Job], LoadedImage], size: int) -> None:
        self.load = load
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.threads: set[threading.Thread] = set()
        for _ in range(size):
            self._hire()

    def _hire(self) -> None:
        thread = threading.Thread(target=self._work, name="bottleneck-decode", daemon=True)
        self.threads.add(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            job.thread = threading.current_thread()
            job.since = time.monotonic()
            try:
                job.result = self.load(job)
            except BaseException as error:
                job.defect = error
            job.done.set()
            if job.given_up:
                return
        self.jobs.put(None)  # for the next thread

    def give_up(self, job: _Job) -> None:
        """Leave the thread that is stuck in `job` to itself and hire another."""
        job.given_up = True
        self.threads.discard(job.thread)
        self._hire()

    def dismiss(self) -> None:
        """Drop the jobs that have not begun and wait a little for the threads to end the others."""
        with suppress(Empty):
            while True:
                self.jobs.get_nowait()
        self.jobs.put(None)
        for thread in self.threads:
            thread.join(timeout=5.0)
