"""A source of images: keys that can be read, and a table of samples; parts of it. `read_source` opens one.

Shapes: I images, S samples.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from bottleneck.data.kept_images import KeptImages
from bottleneck.data.shards import plan_of, shard_number, shard_of, shards_of, shared_images
from bottleneck.data.splits import strata
from bottleneck.data.storage import SUFFIXES, Files, LocalFiles, RemoteFiles
from bottleneck.data.table_file import encodable
from bottleneck.errors import ImageError, Note, SourceError, counted, verb
from bottleneck.files import UNKNOWN_STAT, FileStat
from bottleneck.remote.filesystem import is_remote, open_url
from bottleneck.remote.retries import Retrier
from bottleneck.samples import SampleTable, Shard
from bottleneck.threads import REMOTE_READS

EXAMPLES = 128  # images on which an engine is calibrated
LONGEST_NAME = 120  # bytes of a source's part in the name of a file


@dataclass(frozen=True)
class Source:
    """Images, their samples, and where to read them.

    Parameters
    ----------
    root : str
        Absolute folder or URL to which the keys are relative; for a manifest the folder that holds it.
    images : tuple of I str
        Keys, unique, ordered by code point.
    samples : SampleTable
        `samples.image` are indices into `images`. In the order of the images, or of the manifest.
    ignored : int
        Number of files that are no images by their names, hidden files included.
    absent : dict of str to str
        Images that are known to be unreadable without reading any, with the reason; not in `images`.
    files : Files
        Reads the bytes.
    location : str
        Absolute path or URL of the source itself: the folder, or the manifest, shard or image; `root` by
        default.
    notes : tuple of Note
        What was decided: guessed, dropped, merged.
    columns : dict of str to tuple of str
        Of a manifest: the columns in use by role, and the "unused" ones.
    ignored_by_suffix : dict of str to int
        The number of ignored files by suffix, "hidden" and "no suffix" beside them.
    cells : dict of str to list
        Of a manifest that is read for its inputs alone (`ReadConfig.inputs_only`): the S cells of each column
        beside those of images.
    limit : int or None
        The number of samples that were taken of more, by `ReadConfig.limit`.
    whole : (int, int)
        The numbers of images and samples of the whole source, of which this may be a shard.
    examples : tuple of str
        Keys of up to EXAMPLES images spread evenly over the whole source.
    retrier : Retrier
        Of the requests to the network, which counts them.
    kept : KeptImages or None
        The folder through which files are read over a network.
    one_of_several : bool
        Whether other sources are read beside it, which may have the same keys.
    """

    root: str
    images: tuple[str, ...]
    samples: SampleTable
    ignored: int
    absent: dict[str, str]
    files: Files = field(repr=False)
    location: str = ""
    notes: tuple[Note, ...] = ()
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored_by_suffix: dict[str, int] = field(default_factory=dict)
    cells: dict[str, list[Any]] = field(default_factory=dict)
    limit: int | None = None
    whole: tuple[int, int] = (0, 0)
    examples: tuple[str, ...] = ()
    retrier: Retrier = field(default_factory=Retrier, repr=False, compare=False)
    kept: KeptImages | None = None
    one_of_several: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "location", self.location or self.root)
        if self.samples.shard is None:
            object.__setattr__(self, "whole", (len(self.images), len(self.samples)))
            object.__setattr__(self, "examples", spread(self.images, EXAMPLES))

    def read(self, key: str) -> bytes:
        """Return the bytes of an image. Raises ImageError or OSError."""
        files = self._files(key)
        return self.kept.read(files, key) if self.kept and is_remote(files.root) else files.read(key)

    def shown(self, key: str) -> str:
        """Return the name of an image in results: of one of several sources its whole path, else its key."""
        if not self.one_of_several or "://" in key or key.startswith("/"):
            return key
        return f"{self.root.rstrip('/')}/{key}"

    def stat(self, key: str) -> FileStat:
        """Return what tells whether an image has changed. Raises ImageError or OSError."""
        files = self._files(key)
        return self.kept.stat(files, key) if self.kept and is_remote(files.root) else files.stat(key)

    def stats(self, keys: Sequence[str]) -> list[FileStat]:
        """Return `stat` of many images, unknown where it cannot be had.

        An image of unknown size is always read. If that fails too, the loader reports the reason.
        """

        def stat(key: str) -> FileStat:
            try:
                return self._files(key).stat(key)
            except Exception:  # of any library
                return UNKNOWN_STAT

        if not self.reads_at_once:
            return list(map(stat, keys))
        with ThreadPoolExecutor(self.reads_at_once) as pool:
            # What the user allows (`urls.allow`) holds in the threads as well
            asked = [pool.submit(copy_context().run, stat, key) for key in keys]
            return [future.result() for future in asked]

    @property
    def reads_at_once(self) -> int:
        """Reads to have in flight, so that a network's latency is hidden; 0 where all images are near."""
        urls = (key for key in self.images if "://" in key)
        return REMOTE_READS if is_remote(self.root) or any(map(is_remote, urls)) else 0

    def reading_notes(self) -> list[Note]:
        """Return notes on what happened while images were read."""
        return [*self.retrier.notes(), *(self.kept.notes() if self.kept else ())]

    def take(self, rows: np.ndarray) -> Source:
        """Return the source of the samples `rows` (indices or a mask) and their images; `absent` stays."""
        samples = self.samples.take(rows)
        needed, image = np.unique(samples.image, return_inverse=True)
        samples = replace(samples, image=image.reshape(samples.image.shape).astype(np.int64))
        kept = np.arange(len(self.samples))[rows].tolist()
        cells = {column: [values[row] for row in kept] for column, values in self.cells.items()}
        return replace(self, images=tuple(self.images[i] for i in needed), samples=samples, cells=cells)

    def _files(self, key: str) -> Files:
        """Return where `key` is read: a manifest may also name images by URL."""
        if "://" not in key:
            return self.files
        try:
            filesystem, _ = open_url(key)
            return RemoteFiles(filesystem, "", key, retrier=self.retrier)
        except SourceError as error:  # one address that cannot be opened is one failure
            raise ImageError(error.message.rstrip("."), passing=True) from error


def spread(keys: Sequence[str], count: int) -> tuple[str, ...]:
    """Return up to `count` of the keys, evenly spaced, the first and the last among them."""
    if not keys:
        return ()
    # np.unique would import numpy.ma.
    return tuple(keys[i] for i in dict.fromkeys(np.linspace(0, len(keys) - 1, count).astype(int)))


def image_files(paths: Sequence[str]) -> Source:
    """Return a source of images named one by one, whose keys are the paths or URLs as given.

    An image named twice is two samples.

    Raises
    ------
    SourceError
        A file is no image by its name, or its name is not valid UTF-8.
    """
    for path in paths:
        if not path.lower().endswith(SUFFIXES):
            raise SourceError(f"{encodable(path)} is no image by its name; expected {' '.join(SUFFIXES)}.")
        if encodable(path) != path:
            raise SourceError(f"The image {encodable(path)} has a name that is not valid UTF-8; rename it.")
    images = {path: index for index, path in enumerate(dict.fromkeys(paths))}
    samples = SampleTable(
        key=np.array(paths, object),
        image=np.array([[images[path]] for path in paths], np.int64),
        split=np.full(len(paths), "train", object),
    )
    here = os.getcwd()
    return Source(here, tuple(images), samples, 0, {}, LocalFiles(here))


def evenly(source: Source, limit: int) -> Source:
    """Keep `limit` samples, evenly spaced by split, class and key: each class keeps its share."""
    samples = source.samples
    S = len(samples)
    if limit >= S:
        return source
    rank = np.argsort(np.argsort(samples.key))
    order = np.lexsort((rank, strata(samples), samples.split.astype(str)))
    return replace(source.take(np.sort(order[np.arange(limit) * S // limit])), limit=limit)


def take_shard(source: Source, text: str) -> Source:
    """Return the samples and images of one shard, with a note that says which. text : "I/N" or "auto"."""
    number, of, where = shard_number(text)
    samples = source.samples
    inside = shards_of(source.images, samples, of) == number
    rows, S = np.flatnonzero(inside), len(samples)
    if not len(rows):
        raise SourceError(
            f"Shard {number} of {of} of {source.location} has no sample; the source has {S:,}.",
            "Use fewer shards.",
        )
    taken = source.take(rows)
    message = (
        f"Shard {number} of {of}, by {where}: {len(rows):,} of {counted(S, 'sample')}. Splits and classes "
        "are those of the whole source."
    )
    notes = [Note("shard-taken", message, details={"shard": number, "of": of})]
    if shared := shared_images(samples, inside):
        text = (
            f"{shared:,} of its {counted(len(taken.images), 'image')} {verb(shared)} also of samples in "
            f"other shards, and {verb(shared)} computed there too; merging keeps one row of each. A --group "
            "column that joins such samples avoids this."
        )
        notes.append(Note("images-in-other-shards", text, details={"images": shared}))
    return replace(
        taken,
        samples=replace(
            taken.samples, shard=Shard(of, (number,), plan_of(source.images, samples)), position=rows
        ),
        absent={key: why for key, why in source.absent.items() if shard_of(key, of) == number},
        whole=source.whole,
        examples=source.examples,
        notes=(*source.notes, *notes),
    )


def source_name(location: str) -> str:
    """Return the whole name of a folder, file or URL as a part of the names of files made of it."""
    name = re.sub(r'[\\:*?"<>|\x00-\x1f]+', "-", PurePath(location).name).strip("-") or "images"
    if len(name.encode()) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME // 4]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name
