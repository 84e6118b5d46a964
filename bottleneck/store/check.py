"""Everything that can be checked of a cache, file by file. `verify` runs this in a process of its own.

Run as `python -m bottleneck.store.check PATH`, it prints one JSON object: problems, and what was checked.

Shapes: I images, S samples, C classes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np

from bottleneck.errors import BottleneckError, first_line
from bottleneck.store.cachefile import CacheFile, find_companions
from bottleneck.store.layout import blocks_of, checksum, parts_folder, row_bytes
from bottleneck.store.log import read_log
from bottleneck.store.parts import require_intact
from bottleneck.store.plan import duplicates

MEMORY_LIMIT = 8 << 30  # address space of the checking process


class Check:
    """One pass over a cache.

    Attributes
    ----------
    problems : list of str, one line each
    checked : dict with the numbers of files, datasets, bytes, images and samples
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.checked = {"files": 0, "datasets": 0, "bytes": 0, "images": 0, "samples": 0}

    def cache(self, path: Path) -> None:
        """Check a main file with its companions and parts, or a companion, or a parts folder."""
        if path.is_dir():
            self.parts(path)
            return
        if path.exists():
            self.main(path)
        if parts_folder(path).is_dir():
            self.parts(parts_folder(path))

    def main(self, path: Path) -> None:
        """Check a finished file and, for a main file, its companions."""
        with self._reporting(), CacheFile(path) as main:
            self.file(main)
            if main.map_name is not None:
                return
            self.checked["images"], self.checked["samples"] = len(main.images), len(main.samples)
            companions, broken = find_companions(path, main.spec.fingerprint, main.source_root)
            self.problems += [str(error.message) for error in broken.values()]
            for companion in companions.values():
                with companion:
                    self.file(companion)

    def parts(self, folder: Path) -> None:
        """Check a commit log and every file that it names."""
        with self._reporting():
            state = read_log(folder)
            if state is None:
                return
            for entry in [*state.parts, *([state.table] if state.table else [])]:
                path = folder / entry.name
                if not path.exists():
                    continue
                with self._reporting():
                    require_intact(folder, entry, thorough=True)
                    with CacheFile(path) as part:
                        self.file(part)
                        if part.spec != state.spec or part.source_root != state.source_root:
                            self.problems.append(f"{path} belongs to another run than the log.")
                        if entry == state.table:  # of a run that finished in its parts
                            self.checked |= {"images": len(part.images), "samples": len(part.samples)}
                        if len(part.images) != entry.rows:
                            self.problems.append(f"{path} has {len(part.images)} rows, its log {entry.rows}.")

    def file(self, file: CacheFile) -> None:
        """Check one open file: checksums, counts, uniqueness, ranges."""
        self.checked["files"] += 1
        file.file.visititems(lambda path, item: self._dataset(file, path, item))
        with self._reporting():
            if file.map_name is None:
                self._unique(file, "images/key", file.images.key)
            else:
                self._unique(file, "images/digest", file.images.digests())
            self._failures(file)
            self._unique(file, "samples/key", file.samples.key)  # reading them checks their ranges
            for group in ("features", "views"):
                for link, dataset in file.file.get(group, {}).items():
                    self._features(file, f"{group}/{link}", dataset)

    def _dataset(self, file: CacheFile, path: str, item) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        self.checked["datasets"] += 1
        self.checked["bytes"] += item.nbytes
        try:
            same = checksum(item) == item.attrs.get("sha256")
        except (OSError, RuntimeError) as error:
            self._problem(file, f"/{path} cannot be read ({first_line(error)})")
            return
        if not same:
            self._problem(file, f"/{path} does not match its sha256")

    def _features(self, file: CacheFile, path: str, dataset: h5py.Dataset) -> None:
        for start, stop in blocks_of(len(dataset), row_bytes(dataset)):
            if not np.isfinite(dataset[start:stop]).all():
                self._problem(file, f"/{path} has a value that is not finite in rows {start} to {stop - 1}")
                return

    def _failures(self, file: CacheFile) -> None:
        keys = [failure.key for failure in file.failures]
        self._unique(file, "failures/key", keys)
        both = set(keys) & set(file.images.key)
        if both:
            self._problem(file, f"{min(both)!r} is both an image and a failure")

    def _unique(self, file: CacheFile, path: str, keys) -> None:
        twice = duplicates(keys)
        if twice:
            self._problem(file, f"/{path} has {twice[0]!r} twice")

    def _problem(self, file: CacheFile, what: str) -> None:
        self.problems.append(f"{file.path}: {what}.")

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """A failure inside becomes a problem."""
        try:
            yield
        except BottleneckError as error:
            if error.message not in self.problems:
                self.problems.append(error.message)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
            self.problems.append(f"It cannot be read: {first_line(error)}.")


def _bound_memory() -> None:
    """Let a damaged size fail as MemoryError instead of taking the machine's memory."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(path: str) -> None:
    """Check the cache at `path` and print the outcome."""
    _bound_memory()
    check = Check()
    check.cache(Path(path))
    print(json.dumps({"problems": check.problems, "checked": check.checked}))


if __name__ == "__main__":
    main(os.fsdecode(sys.argv[1]))
