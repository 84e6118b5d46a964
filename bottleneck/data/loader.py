"""Read and decode images in threads, and return them in order, within fixed memory and time.

A file is read once; its sha256 and its pixels come from the same bytes. An image that cannot be read or
decoded keeps its position and has an error. Copies of known bytes are not decoded. What is returned for an
image depends on its bytes and on the images before it, never on which thread was first.

Shapes: H, W height and width, C channels, V views.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bottleneck.data.augment import ViewRecipe
from bottleneck.data.decode import EncodedImage, as_array, fast_pixels
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.untrusted import one_line
from bottleneck.data.workers import DecoderThreads, Job, MemoryBudget
from bottleneck.errors import ImageError, SourceError
from bottleneck.threads import thread_budget

if TYPE_CHECKING:
    from bottleneck.data.source import Source

MEMORY = 512 << 20  # bytes
TIME_LIMIT = 30.0  # seconds for one image


class Readable(Protocol):
    """A source of bytes, and of (size in bytes, time of last change in ns), by key."""

    def read(self, key: str) -> bytes: ...

    def stat(self, key: str) -> tuple[int, int]: ...


@dataclass(frozen=True, eq=False)
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
        None while `error` is None, too: a copy of bytes that are known or came earlier in this run.
    views : (V, H, W, C) uint8 ndarray or None
    error : str or None
        Why there are no pixels.
    passing : bool
        Whether the error may be gone at the next run: it lies in the network, a permission, time or memory,
        not in the image's bytes.
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
    passing: bool = False
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
    source : called from several threads at once
    keys : what to load, in this order
    workers : decoder threads; 0 counts as 1
    known : digests whose images need no pixels
    views : also make augmented views of each image
    memory : bytes that the images being decoded may take together, and that those waiting for the caller may
        An image that needs more by itself is decoded alone; a file larger than this is a failure.
    time_limit : seconds for one image, after which it is a failure and its thread is given up

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
    threads = DecoderThreads(run.load, max(1, workers))
    waiting: deque[Job] = deque()
    upcoming, tick = iter(enumerate(keys)), min(time_limit, 1.0)
    try:
        while True:
            for index, key in islice(upcoming, ahead - len(waiting)):
                waiting.append(Job(index, key))
                threads.submit(waiting[-1])
            if not waiting:
                return
            job = waiting.popleft()
            checked = time.monotonic()
            while not job.done.wait(tick):
                now = time.monotonic()
                run.abandon_late((job, *waiting), threads, time_limit, pause=now - checked - tick)
                checked = now
            yield run.in_order(job.outcome())
    finally:
        threads.stop()


def readable_pixels(
    source: Source,
    keys: Sequence[str],
    preprocess: Preprocess,
    *,
    workers: int,
    advance: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Return pixels (B, H, W, C) of the images `keys`, without copies and those that cannot be read.

    Raises SourceError, with the reason of the first, where that leaves none.
    """
    pixels, reason = [], None
    for image in load_images(source, keys, preprocess, workers=workers):
        if image.pixels is not None:
            pixels.append(image.pixels)
        reason = reason or image.error
        advance(1)
    if not pixels:
        raise SourceError(
            f"None of {len(keys)} images of {source.root} can be read; {keys[0]}: {reason}.",
            "Repair them, or name the place where they are now.",
        )
    return np.stack(pixels)


def fill_pixels(
    out: np.ndarray,
    source: Readable,
    keys: Sequence[str],
    preprocess: Preprocess,
    *,
    views: ViewRecipe | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> list[LoadedImage]:
    """Write the pixels of the images `keys`, or the first view of each, into `out` (n, H, W, C).

    Rows of images that cannot be read are not written. Returns the n images in order, without their pixels.
    """
    images: list[LoadedImage] = []
    first: dict[bytes | None, int] = {}  # a copy comes without pixels: they are those of the first
    for image in load_images(source, keys, preprocess, workers=thread_budget().decode, views=views):
        if image.error is None:
            pixels = image.pixels if image.views is None else image.views[0]
            row = first.setdefault(image.digest, image.index)
            out[image.index] = out[row] if pixels is None else pixels
        images.append(replace(image, pixels=None, views=None))
        advance(1)
    return images


def _images_ahead(preprocess: Preprocess, views: ViewRecipe | None, workers: int, memory: int) -> int:
    """Return how many images may be in work or waiting for the caller."""
    one = preprocess.size**2 * preprocess.channels * (1 + (views.count if views else 0))
    return max(workers + 1, min(16 * workers + 64, memory // one))


class _Run:
    """What the images of one call share: source, recipe, memory, and the digests seen so far."""

    def __init__(
        self,
        source: Readable,
        preprocess: Preprocess,
        known: Container[bytes],
        views: ViewRecipe | None,
        memory: int,
    ) -> None:
        self.source = source
        self.preprocess = preprocess
        self.known = known
        self.views = views
        self.budget = MemoryBudget(memory)
        # digest -> lowest index that has it, among the images in work
        self.claimed: dict[bytes, int] = {}
        self.claiming = threading.Lock()
        # digest -> error of the first image that has it and whether it is passing, among those returned
        self.returned: dict[bytes, tuple[str | None, bool]] = {}

    def load(self, job: Job) -> LoadedImage:
        """Read and decode one image, in a worker."""
        started = time.perf_counter()
        image = LoadedImage(job.index, job.key)
        try:
            size, mtime_ns = self.source.stat(job.key)
            image = replace(image, size=size, mtime_ns=mtime_ns)
            data = self._read(job.key, size)
        except (ImageError, OSError) as error:
            return _failed(image, error, read_seconds=time.perf_counter() - started)
        digest = hashlib.sha256(data).digest()
        read = time.perf_counter()
        image = replace(image, digest=digest, read_seconds=read - started)
        if digest in self.known or digest in self.returned or not self._claim(digest, job.index):
            return image
        try:
            pixels, views = self._decode(data, digest, job)
        except ImageError as error:
            return _failed(image, error, decode_seconds=time.perf_counter() - read)
        return replace(image, pixels=pixels, views=views, decode_seconds=time.perf_counter() - read)

    def _read(self, key: str, size: int) -> bytes:
        limit = self.budget.memory
        if size > limit:
            raise ImageError(f"is a file of {size >> 20} MiB; the limit is {limit >> 20}")
        return self.source.read(key)

    def _decode(self, data: bytes, digest: bytes, job: Job) -> tuple[np.ndarray, np.ndarray | None]:
        encoded = EncodedImage(data)
        with self.budget.reserve(job, encoded.memory):
            if self.views is None:
                return fast_pixels(encoded.array(self.preprocess.mode), self.preprocess), None
            image = encoded.decode(self.preprocess.mode)
            views = self.views.apply(image, self.preprocess, digest)
            return fast_pixels(as_array(image), self.preprocess), views

    def _claim(self, digest: bytes, index: int) -> bool:
        """Return True where no earlier image in work has these bytes, so that this one decodes them."""
        with self.claiming:
            first = min(self.claimed.get(digest, index), index)
            self.claimed[digest] = first
            return first == index

    def abandon_late(
        self, jobs: Iterable[Job], threads: DecoderThreads, time_limit: float, pause: float
    ) -> None:
        """Abandon all jobs beyond the time limit, with an error for their images, and free their memory.

        All jobs are checked: a later image may hold the memory that the awaited one needs.

        pause : seconds for which the whole process stood still (Ctrl-Z); they do not count.
        """
        for job in jobs:
            if pause > 1:
                job.exclude(pause)
            if job.elapsed() > time_limit:
                self.budget.release(job)
                reason = f"took longer than {time_limit:g} seconds to read and decode"
                threads.abandon(job, LoadedImage(job.index, job.key, error=reason, passing=True))

    def in_order(self, image: LoadedImage) -> LoadedImage:
        """Return the image as if all images had been loaded one by one.

        A copy that was decoded before the first of its kind loses its pixels; a copy of an image
        that failed fails too.
        """
        digest = image.digest
        if digest is None:
            return image
        if digest in self.returned:
            error, passing = self.returned[digest]
            return replace(image, pixels=None, views=None, error=error, passing=passing)
        if image.pixels is None and image.error is None and digest not in self.known:
            return replace(image, error="has the same bytes as an image that took too long", passing=True)
        self.returned[digest] = image.error, image.passing
        with self.claiming:
            self.claimed.pop(digest, None)
        return image


def _failed(image: LoadedImage, error: ImageError | OSError, **seconds: float) -> LoadedImage:
    """Return the image with one line on why it failed, without its name."""
    if isinstance(error, ImageError):
        return replace(image, error=str(error), passing=error.passing, **seconds)
    reason = f"cannot be read: {error.strerror or one_line(error)}"
    return replace(image, error=reason, passing=True, **seconds)
