"""A thread that commits computed rows as parts, so that the network does not wait for the disk.

Shapes: B rows of one batch.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.errors import CacheError
from bottleneck.files import write_error
from bottleneck.store.parts import PartContent, PartsFolder
from bottleneck.store.spec import NodeSpec
from bottleneck.store.tables import Failure, ImageRow, ImageTable

PART_ROWS = 4096
PART_BYTES = 64 * 1024 * 1024
PART_SECONDS = 20.0  # a kill costs at most the rows of so many seconds
QUEUE_BATCHES = 2


@dataclass(frozen=True)
class Batch:
    """Computed rows: (key, digest, stat) of each image, float32 arrays (B, …) by node name, and measures.

    measured : measures of the images' pixels by digest, as of `ImageTable.of`.
    engines : by node, the engine that computed the rows.
    """

    images: list[ImageRow]
    features: Mapping[str, np.ndarray]
    views: Mapping[str, np.ndarray]
    measured: Mapping[bytes, bytes]
    engines: Mapping[str, str]


@dataclass(frozen=True)
class Taken:
    """An image that uses the row of another image with the same digest."""

    image: ImageRow


class Committer:
    """Collects batches in a thread and commits a part whenever one is full.

    An error in the thread is raised by the caller's next `put` or by `finish`; nothing is written after it.

    Attributes
    ----------
    seconds : time that committing parts has taken
    """

    def __init__(self, parts: PartsFolder) -> None:
        self._parts = parts
        self._queue: queue.Queue[Batch | Taken | Failure | None] = queue.Queue(QUEUE_BATCHES)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._finishing = False
        self.seconds = 0.0
        self._due: float
        self._clear()

    def put(self, item: Batch | Taken | Failure) -> None:
        """Hand over work; wait if the disk is slower than the network."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cache-writer", daemon=True)
            self._thread.start()
        while True:
            self._raise()
            try:
                return self._queue.put(item, timeout=0.5)
            except queue.Full:
                continue

    def finish(self) -> None:
        """Commit all collected rows and end the thread."""
        self._finishing = True
        self.stop()
        self._raise()

    def stop(self) -> None:
        """End the thread. Rows that it has collected are committed first, since they are computed."""
        if self._thread is None:
            return
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join()
        self._thread = None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while True:
                try:
                    item = self._queue.get(timeout=max(0.01, self._due - time.monotonic()))
                except queue.Empty:
                    self._commit()
                    continue
                if item is None:
                    break
                self._collect(item)
            if self._images or self._finishing:
                self._commit()
        except OSError as error:
            self._error = write_error(error, self._parts.path)
        except BaseException as error:
            self._error = error

    def _collect(self, item: Batch | Taken | Failure) -> None:
        if isinstance(item, Batch):
            batch = [_stored_rows(item, self._parts.nodes[name]) for name in item.features]
            if self._images and tuple(item.features) != tuple(self._features):
                self._commit()
            self._images += item.images
            self._measured |= item.measured
            self._engines |= item.engines
            for name, (features, views) in zip(item.features, batch, strict=True):
                self._features.setdefault(name, []).append(features)
                if views is not None:
                    self._views.setdefault(name, []).append(views)
                self._bytes += features.nbytes + (0 if views is None else views.nbytes)
        elif isinstance(item, Taken):
            self._taken.append(item.image)
        else:
            self._failures.append(item)
        records = len(self._images) + len(self._taken) + len(self._failures)
        self._due = min(self._due, time.monotonic() + PART_SECONDS)
        if records >= PART_ROWS or self._bytes >= PART_BYTES or time.monotonic() >= self._due:
            self._commit()

    def _commit(self) -> None:
        if self._images or self._taken or self._failures:
            started = time.perf_counter()
            content = PartContent(
                ImageTable.of(self._images, self._measured),
                {name: np.concatenate(rows) for name, rows in self._features.items()},
                {name: np.concatenate(rows) for name, rows in self._views.items()},
                ImageTable.of(self._taken),
                self._failures,
                self._engines,
            )
            self._parts.commit(content)
            self.seconds += time.perf_counter() - started
        self._clear()

    def _clear(self) -> None:
        self._images: list[ImageRow] = []
        self._measured: dict[bytes, bytes] = {}
        self._engines: dict[str, str] = {}
        self._features: dict[str, list[np.ndarray]] = {}
        self._views: dict[str, list[np.ndarray]] = {}
        self._taken: list[ImageRow] = []
        self._failures: list[Failure] = []
        self._bytes = 0
        self._due = time.monotonic() + 1e6


def _stored_rows(batch: Batch, node: NodeSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a node's features and views in the node's dtype. Raises CacheError if a value does not fit."""
    features = _cast(batch.features[node.name], node, batch.images)
    return features, None if node.views is None else _cast(batch.views[node.name], node, batch.images)


def _cast(rows: np.ndarray, node: NodeSpec, images: Sequence[ImageRow]) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(rows, dtype=node.dtype)
    flat = cast.reshape(len(cast), -1)
    if np.isfinite(flat).all():
        return cast
    index = int(np.flatnonzero(~np.isfinite(flat).all(axis=1))[0])
    given = np.asarray(rows[index], np.float32)
    where = f"{images[index][0]!r} at node {node.name!r}"
    if np.isfinite(given).all():
        raise CacheError(
            f"A feature of {where} has size {np.abs(given).max():.6g}, beyond float16's 65504.",
            "Store them with --dtype float32.",
        )
    raise CacheError(
        f"The network gave {'NaN' if np.isnan(given).any() else 'infinity'} for {where}.",
        "Try --precision fp32; if that gives the same, the weights or the image are broken.",
    )
