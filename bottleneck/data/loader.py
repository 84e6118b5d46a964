"""Read and decode images in threads, and return them in order, within fixed memory and time.

Files of this machine are read by the threads that decode. Over a network reading is waiting: it has threads
of its own, so that many reads are in flight whatever the number of cores.

A file is read once; its sha256 and its pixels come from the same bytes. An image that cannot be read or
decoded keeps its position and has an error. Copies of known bytes are not decoded. What is returned for an
image depends on its bytes and on the images before it, never on which thread was first.

Shapes: H, W height and width, C channels, V views.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bottleneck.data.antialias import expect
from bottleneck.data.decode import IMAGE_NOTES, EncodedImage
from bottleneck.data.modes import as_array
from bottleneck.data.preprocess import Mirror, Preprocess, Views
from bottleneck.data.workers import Job, MemoryBudget, WorkThreads
from bottleneck.errors import ImageError, Note, SourceError
from bottleneck.files import UNKNOWN_STAT, FileStat
from bottleneck.remote.retries import seconds_with_retries
from bottleneck.remote.urls import one_line, without_secrets
from bottleneck.threads import thread_budget, trim_memory

if TYPE_CHECKING:
    from bottleneck.data.source import Source

MEMORY = 512 << 20  # bytes
FILES_SHARE = 8  # of the memory, this part is for the files' bytes
REMOTE_SHARE = 4  # and this one where reads over a network are in flight
TRIMMED = 64 << 20  # bytes above which freed memory goes back to the system at once
NAMED = 5  # images that a note names
UNKNOWN_SIZE = 4 << 20  # bytes taken for a file whose size no one tells
# For one image; the limits of requests over a network are in `remote.retries`. Where other programs use the
# cores, a good image may take many times its processor time.
TIME_LIMIT = 30.0  # seconds of processor time
WAIT_LIMIT = 300.0  # seconds by the clock: a disk that does not answer takes no processor time
SLACK = 5.0  # seconds beyond the limit of a request, which ends by itself


class Readable(Protocol):
    """A source of bytes, and of the fields of a `FileStat`, by key."""

    def read(self, key: str) -> bytes: ...

    def stat(self, key: str) -> tuple[int, ...]: ...


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """One image of a run, in the order of its keys.

    Parameters
    ----------
    index, key : int, str
        Position in the keys given, and the key there.
    stat : FileStat
        Of the file, taken before it was read; unknown where that failed.
    digest : bytes or None
        sha256 of the bytes; None where they could not be read.
    pixels : (H, W, C) uint8 ndarray or None
        None while `error` is None, too: a copy of bytes that are known or came earlier in this run.
    views : (V, H, W, C) uint8 ndarray or None
    size : tuple of int
        Width and height of the image as stored; (0, 0) where there are no pixels.
    error : str or None
        Why there are no pixels.
    passing : bool
        Whether the error may be gone at the next run: it lies in the network, a permission, time or memory,
        not in the image's bytes.
    notes : tuple of str
        What was decided in decoding: codes of `decode.IMAGE_NOTES`.
    read_seconds, decode_seconds : float
        Wall time spent.
    """

    index: int
    key: str
    stat: FileStat = UNKNOWN_STAT
    digest: bytes | None = None
    pixels: np.ndarray | None = None
    views: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    error: str | None = None
    passing: bool = False
    notes: tuple[str, ...] = ()
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


def load_images(
    source: Readable,
    keys: Sequence[str],
    preprocess: Preprocess,
    *,
    workers: int,
    known: Container[bytes] = (),
    views: Views | None = None,
    memory: int = MEMORY,
    time_limit: float = TIME_LIMIT,
    wait_limit: float = WAIT_LIMIT,
) -> Generator[LoadedImage, None, None]:
    """Read and decode images in threads, a bounded number ahead of the caller.

    Parameters
    ----------
    source : called from several threads at once
    keys : what to load, in this order
    workers : decoder threads; 0 counts as 1
    known : digests whose images need no pixels
    views : also make views of each image: augmented ones, or its mirror image
    memory : bytes that the images being decoded may take together, and that those waiting for the caller may
        An image or a file that needs more by itself is a failure. The size of the pixels wanted, the user's
        own choice, never makes one: where they need all of the memory, images are decoded one by one.
    time_limit, wait_limit : seconds for one image, of its thread's processor time and by the clock; beyond
        one of them it is a failure and its thread is given up. Where the system does not tell that processor
        time, both are by the clock. Reading over a network has a limit of its own,
        `retries.seconds_with_retries`.

    Yields
    ------
    LoadedImage
        One for each key. Closing the generator stops the threads.

    Whatever reading or decoding an image raises, of our own code or of any library, is that image's failure.
    """
    expect(len(keys))
    workers, reads = max(1, workers), getattr(source, "reads_at_once", 0)
    run = _Run(source, preprocess, known, views, memory, bool(reads))
    ahead = _images_ahead(preprocess, views, workers, memory)
    threads = decoders = WorkThreads(run.decode if reads else run.load, workers, "bottleneck-decode")
    if reads:
        threads = WorkThreads(run.fetch, reads, "bottleneck-read", then=decoders)
    waiting: deque[Job] = deque()
    upcoming, tick = iter(enumerate(keys)), min(time_limit, wait_limit, 1.0)
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
                limits, pause = (time_limit, wait_limit), now - checked - tick
                run.abandon_late((job, *waiting), decoders, limits, pause)
                checked = now
            yield run.in_order(job.outcome())
    finally:
        threads.stop()
        if decoders is not threads:
            decoders.stop()


class NotedImages:
    """The notes on images, grouped by kind: how many images each concerns, and the names of the first."""

    def __init__(self) -> None:
        self._keys: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, image: LoadedImage) -> None:
        """Add the notes on an image."""
        for code in image.notes:
            self._counts[code] += 1
            self._keys.setdefault(code, []).extend([image.key] if self._counts[code] <= NAMED else [])

    def notes(self) -> list[Note]:
        """Return a note for each kind."""
        found = []
        for code, keys in self._keys.items():
            count = self._counts[code]
            more = f" and {count - len(keys):,} more" if count > len(keys) else ""
            message = f"Images that {IMAGE_NOTES[code]}: {', '.join(keys)}{more}."
            found.append(Note(code, message, details={"count": count, "images": keys}))
        return found


def readable_pixels(
    source: Source,
    keys: Sequence[str],
    preprocess: Preprocess,
    *,
    workers: int,
    advance: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Return pixels (B, H, W, C) of the images `keys`, as `readable_images` does."""
    return readable_images(source, keys, preprocess, workers=workers, advance=advance)[0]


def readable_images(
    source: Source,
    keys: Sequence[str],
    preprocess: Preprocess,
    *,
    workers: int,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, list[bytes]]:
    """Return pixels (B, H, W, C) and sha256 of the images `keys`, without copies and unreadable ones.

    Raises SourceError, with the reason of the first, where that leaves none.
    """
    pixels, digests, reason = [], [], None
    for image in load_images(source, keys, preprocess, workers=workers):
        if image.pixels is not None:
            pixels.append(image.pixels)
            digests.append(image.digest or b"")
        reason = reason or image.error
        advance(1)
    if not pixels:
        raise SourceError(
            f"None of {len(keys)} images of {source.root} can be read; {keys[0]}: {reason}.",
            "Repair them, or name the place where they are now.",
        )
    return np.stack(pixels), digests


def fill_pixels(
    out: np.ndarray,
    source: Readable,
    keys: Sequence[str],
    preprocess: Preprocess,
    *,
    views: Views | None = None,
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


def _images_ahead(preprocess: Preprocess, views: Views | None, workers: int, memory: int) -> int:
    """Return how many images may be in work or waiting for the caller."""
    return max(workers + 1, min(16 * workers + 64, memory // _result_bytes(preprocess, views)))


def _result_bytes(preprocess: Preprocess, views: Views | None) -> int:
    """Return the bytes of one image's pixels and views."""
    return preprocess.size**2 * preprocess.channels * (1 + (views.count if views else 0))


class _Run:
    """What the images of one call share: source, recipe, memory, and the digests seen so far."""

    def __init__(
        self,
        source: Readable,
        preprocess: Preprocess,
        known: Container[bytes],
        views: Views | None,
        memory: int,
        remote: bool,
    ) -> None:
        self.source = source
        self.remote = remote
        self.preprocess = preprocess
        self.known = known
        self.views = views
        # An image holds a share of the first while it waits for its share of the second: never the reverse
        share = memory // (REMOTE_SHARE if remote else FILES_SHARE)
        self.files = MemoryBudget(share)
        self.budget = MemoryBudget(memory - share)
        self.result_bytes = _result_bytes(preprocess, views)
        # digest -> lowest index that has it, among the images in work
        self.claimed: dict[bytes, int] = {}
        self.claiming = threading.Lock()
        # digest -> error of the first image that has it and whether it is passing, among those returned
        self.returned: dict[bytes, tuple[str | None, bool]] = {}

    def load(self, job: Job) -> LoadedImage:
        """Read and decode one image, in a worker. Whatever it raises is this image's failure."""
        return self.fetch(job) or self.decode(job)

    def fetch(self, job: Job) -> LoadedImage | None:
        """Read the file of one image into `job`; its memory is held until `decode`. Returns a failure."""
        started = time.perf_counter()
        job.image = LoadedImage(job.index, job.key)
        try:
            job.image = LoadedImage(job.index, job.key, FileStat(*self.source.stat(job.key)))
            size = job.image.stat.size
            self.files.take(job, size if size > 0 else UNKNOWN_SIZE)
            job.data = self._read(job.key, size)
            job.image = replace(job.image, read_seconds=time.perf_counter() - started)
            if job.abandoned:  # meanwhile; what it held was released before it took this
                self.files.release(job)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # libraries in Rust raise a BaseException where they panic
            self.files.release(job)
            return replace(_failed(job.image, error), read_seconds=time.perf_counter() - started)
        return None

    def decode(self, job: Job) -> LoadedImage:
        """Decode the image of a file that was read."""
        started, image, data = time.perf_counter(), job.image, job.data
        digest = None
        try:
            digest = hashlib.sha256(data).digest()
            done = self._decoded(image, digest, data, job)
            whole = not self.remote or image.stat.size > 0  # else no one told how many bytes there are
            return done if whole or done.error is None else replace(done, passing=True)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            failed = _failed(replace(image, digest=digest), error)
            return replace(failed, decode_seconds=time.perf_counter() - started)
        finally:
            job.data = b""
            self.files.release(job)

    def _read(self, key: str, size: int) -> bytes:
        limit = self.budget.memory
        if size > limit:
            raise ImageError(f"is a file of {size >> 20} MiB; the limit is {limit >> 20}")
        return self.source.read(key)

    def _decoded(self, image: LoadedImage, digest: bytes, data: bytes, job: Job) -> LoadedImage:
        """Return the image with its digest, and with pixels unless its bytes are known or came earlier."""
        started = time.perf_counter()
        if digest in self.known or digest in self.returned or not self._claim(digest, job.index):
            return replace(image, digest=digest)
        encoded = EncodedImage(data)
        needed = encoded.memory(self.preprocess) + max(0, len(data) - self.files.memory)
        if needed > self.budget.memory:
            raise ImageError(
                f"needs {needed >> 20} MiB to decode, and {self.budget.memory >> 20} are allowed: "
                "scale it down"
            )
        with self.budget.reserve(job, needed + self.result_bytes):
            try:
                pixels, views = self._pixels(encoded, digest)
                image = replace(
                    image,
                    digest=digest,
                    pixels=pixels,
                    views=views,
                    size=encoded.size,
                    notes=tuple(encoded.notes),
                    decode_seconds=time.perf_counter() - started,
                )
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                failed = _failed(replace(image, digest=digest), error)
                image = replace(failed, decode_seconds=time.perf_counter() - started)
            encoded.close()
            if needed > TRIMMED:  # while others still wait for this share
                trim_memory()
        return image

    def _pixels(self, encoded: EncodedImage, digest: bytes) -> tuple[np.ndarray, np.ndarray | None]:
        if self.views is None:
            return encoded.pixels(self.preprocess), None
        if isinstance(self.views, Mirror):
            pixels, mirrored = encoded.both_ways(self.preprocess)
            return pixels, mirrored[None]
        image = encoded.image(self.preprocess)
        views = self.views.apply(image, self.preprocess, digest)
        return encoded.cut(as_array(image), self.preprocess), views

    def _claim(self, digest: bytes, index: int) -> bool:
        """Return True where no earlier image in work has these bytes, so that this one decodes them."""
        with self.claiming:
            first = min(self.claimed.get(digest, index), index)
            self.claimed[digest] = first
            return first == index

    def abandon_late(
        self, jobs: Iterable[Job], decoders: WorkThreads, limits: tuple[float, float], pause: float
    ) -> None:
        """Abandon all jobs beyond a time limit, with an error for their images, and free their memory.

        All jobs are checked: a later image may hold the memory that the awaited one needs.

        limits : `time_limit` and `wait_limit` of `load_images`.
        pause : seconds for which the whole process stood still (Ctrl-Z); they do not count.
        """
        for job in jobs:
            if pause > 1:
                job.exclude(pause)
            threads = job.threads or decoders
            if reason := self._late(job, threads is decoders, *limits):
                self.files.release(job)
                self.budget.release(job)
                error = f"took longer than {reason}"
                threads.abandon(job, LoadedImage(job.index, job.key, error=error, passing=True))

    def _late(self, job: Job, is_decoding: bool, time_limit: float, wait_limit: float) -> str:
        """Return the limit that a job is beyond, in words; "" where it is within its limits."""
        if not is_decoding:
            limit = SLACK + seconds_with_retries(job.image.stat.size if job.image else 0)
            return f"{limit:g} seconds to read" if job.elapsed() > limit else ""
        if job.processor_seconds() > time_limit:
            return f"{time_limit:g} seconds of processor time to read and decode"
        return f"{wait_limit:g} seconds to read and decode" if job.elapsed() > wait_limit else ""

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


def _failed(image: LoadedImage, error: BaseException) -> LoadedImage:
    """Return the image with one line on why it failed, without its name."""
    if isinstance(error, ImageError):
        return replace(image, error=str(error), passing=error.passing)
    if isinstance(error, MemoryError):
        return replace(image, error="needs more memory than there is", passing=True)
    if isinstance(error, OSError):
        reason = f"cannot be read: {without_secrets(error.strerror or one_line(error))}"
        return replace(image, error=reason, passing=not isinstance(error, FileNotFoundError))
    what = "cannot be read" if image.digest is None else "cannot be decoded"
    reason = f"{what}: {type(error).__name__}: {one_line(error)}"
    return replace(image, error=reason, passing=image.digest is None)
