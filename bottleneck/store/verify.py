"""Verify a cache without trusting it. The checks run in a child process with limits on time and memory.

A damaged header can crash or hang the HDF5 library; then the child ends, and that is reported.

Run as `python -m bottleneck.store.verify PATH`, this module is the child: it prints one JSON object with the
problems and the numbers of what was checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

import bottleneck
from bottleneck.errors import BottleneckError, counted, first_line
from bottleneck.remote.path import RemotePath, path_of
from bottleneck.store.cachefile import CacheFile, describe_rows, find_companions
from bottleneck.store.index import Runs, hashes_of, repeated
from bottleneck.store.layout import blocks_of, checksum, parts_folder, row_bytes, statistics_path, sums_path
from bottleneck.store.parts import read_log, require_intact
from bottleneck.store.validate import no_cache

START_SECONDS = 60.0
BYTES_PER_SECOND = 20e6  # of the slowest disk that is waited for
SLOW_NETWORK = 1e6  # and of the slowest network
ROWS = ("features/", "views/", sums_path("features/"), sums_path("views/"))
MEMORY_LIMIT = 8 << 30  # address space of the child


@dataclass(frozen=True)
class Report:
    """Outcome of a verification.

    Parameters
    ----------
    ok : bool
    problems : list of str
        One line each; empty if `ok`.
    mend : str
        The command that computes the damaged rows again, if nothing but rows of features is damaged.
    checked : dict
        Numbers of "files", "datasets", "bytes", "images" and "samples"; empty if the check did not end.
    """

    ok: bool
    problems: list[str] = field(default_factory=list)
    mend: str = ""
    checked: dict[str, int] = field(default_factory=dict)


def verify(path: str | os.PathLike[str], timeout: float | None = None) -> Report:
    """Check everything that a cache states about itself.

    These are every sha256 (features, views, keys, digests, samples, labels, covariates, failures, and the
    structure with all attributes), fingerprints, counts, uniqueness, ranges, and log and parts of an
    unfinished run.

    Parameters
    ----------
    path : NAME.h5 (with its companions and parts), a companion, or NAME.h5.parts
    timeout : float, optional
        Seconds; by default a minute and the time that a slow disk needs for the bytes.

    Raises
    ------
    CacheError
        There is nothing at `path`.
    """
    path = path_of(path)
    if not path.exists() and not parts_folder(path).is_dir():
        raise no_cache(path)
    speed = SLOW_NETWORK if isinstance(path, RemotePath) else BYTES_PER_SECOND
    limit = START_SECONDS + _bytes(path) / speed if timeout is None else timeout
    package = str(Path(bottleneck.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "bottleneck.store.verify", str(path.absolute())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit,
            env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Report(
            False, [f"{path}: the check did not end within {limit:.0f} s; its structure is damaged."]
        )
    return _report(path, child)


def _report(path: Path, child: subprocess.CompletedProcess[bytes]) -> Report:
    try:
        result = json.loads(child.stdout)
    except ValueError:
        lines = child.stderr.decode("utf-8", "replace").split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        how = f"signal {-child.returncode}" if child.returncode < 0 else reason
        return Report(False, [f"{path}: the check crashed ({how}); the file's structure is damaged."])
    return Report(not result["problems"], **result)


def _bytes(path: Path) -> int:
    """Return the bytes of all files of a cache."""
    folder = path if path.is_dir() else path.parent
    files = [entry for entry in folder.iterdir() if path.is_dir() or entry.name.startswith(path.stem)]
    parts = list(parts_folder(path).iterdir()) if parts_folder(path).is_dir() else []
    return sum(entry.stat().st_size for entry in [*files, *parts] if entry.is_file())


class Check:
    """One pass over a cache, in this process.

    Attributes
    ----------
    problems : list of str, one line each
    mend : str, see `Report`
    checked : dict with the numbers of files, datasets, bytes, images and samples
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._rows_damaged: list[tuple[str, str]] = []  # a problem, and the command that mends it
        self.checked = {"files": 0, "datasets": 0, "bytes": 0, "images": 0, "samples": 0}

    @property
    def mend(self) -> str:
        mended = dict(self._rows_damaged)
        return mended[self.problems[0]] if self.problems and mended.keys() >= set(self.problems) else ""

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
        """Check a finished file and, if it is a main file, its companions."""
        with self._reporting(), CacheFile(path) as main:
            self.file(main)
            if main.map_name is not None:
                return
            self.checked |= {"images": len(main.images), "samples": len(main.samples)}
            if main.origin.spec.backbone.get("calibrated"):
                self._statistics(path)
            companions, errors = find_companions(path, main.origin.spec)
            self.problems += [error.message for error in errors.values()]
            for companion in companions.values():
                with companion:
                    self.file(companion)

    def _statistics(self, path: Path) -> None:
        """Check the file without which the random network of a cache cannot be rebuilt."""
        beside = statistics_path(path)
        try:
            tensors = load(beside.read_bytes())
            fault = "" if tensors else "holds no tensors"
        except FileNotFoundError:
            fault = "is missing"
        except (OSError, SafetensorError) as error:
            fault = f"cannot be read ({first_line(error)})"
        if fault:
            self.problems.append(
                f"{beside} {fault}: it has the BatchNorm statistics of the cache's random network, "
                "which `extract`, `finetune` and heads on images need."
            )

    def parts(self, folder: Path) -> None:
        """Check a commit log and every file that it names."""
        with self._reporting():
            log = read_log(folder)
            for entry in () if log is None else log.files:
                path = folder / entry.name
                if log is None or not path.exists():
                    continue
                with self._reporting():
                    require_intact(folder, entry, thorough=True)
                    with CacheFile(path) as part:
                        self.file(part)
                        if part.origin != log.origin:
                            self.problems.append(f"{path} belongs to another run than the log.")
                        if entry == log.table:  # of a run that finished in its parts
                            self.checked |= {"images": len(part.images), "samples": len(part.samples)}
                        if len(part.images) != entry.rows:
                            self.problems.append(
                                f"{path} has {counted(len(part.images), 'row')}, its log {entry.rows}."
                            )

    def file(self, file: CacheFile) -> None:
        """Check one open file: checksums, counts, uniqueness, ranges."""
        self.checked["files"] += 1
        file.file.visititems(lambda path, item: self._dataset(file, path, item))
        with self._reporting():
            for path, rows in file.damage(file.nodes.values()).items():
                self._rows_problem(file, describe_rows(path, rows))
            if file.map_name is None:
                self._unique(file, "images/key", hashes_of(file.images.name), file.images.name)
            else:
                self._unique(file, "images/digest", file.digest, file.digest)
            self._failures(file)
            keys = file.samples.key  # reading the samples checks their ranges
            self._unique(file, "samples/key", hashes_of(keys), keys)
            for group in ("features", "views"):
                for link, dataset in file.file.get(group, {}).items():
                    self._finite(file, f"{group}/{link}", dataset)

    def _dataset(self, file: CacheFile, path: str, item: h5py.Group | h5py.Dataset) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        self.checked["datasets"] += 1
        self.checked["bytes"] += item.nbytes
        report = self._rows_problem if path.startswith(ROWS) else self._problem
        try:
            same = checksum(item) == item.attrs.get("sha256")
        except (OSError, RuntimeError) as error:
            report(file, f"/{path} cannot be read ({first_line(error)})")
            return
        if not same:
            report(file, f"/{path} does not match its sha256")

    def _finite(self, file: CacheFile, path: str, dataset: h5py.Dataset) -> None:
        for start, stop in blocks_of(len(dataset), row_bytes(dataset)):
            if not np.isfinite(dataset[start:stop]).all():
                self._problem(file, f"/{path} has a value that is not finite in rows {start} to {stop - 1}")
                return

    def _failures(self, file: CacheFile) -> None:
        keys = [failure.key for failure in file.failures]
        hashes, images = hashes_of(keys), Runs()
        self._unique(file, "failures/key", hashes, keys)
        images.add(hashes_of(file.images.name))
        both = np.flatnonzero(images.find(hashes) >= 0)
        if len(both):
            self._problem(file, f"{min(keys[i] for i in both)!r} is both an image and a failure")

    def _unique(
        self, file: CacheFile, path: str, entries: np.ndarray, values: Sequence[str] | np.ndarray
    ) -> None:
        """Report a value that occurs twice; `entries` (n, w) stand for the values."""
        twice = repeated(entries)
        if len(twice):
            value = values[twice[0]]
            shown = value.tobytes() if isinstance(value, np.ndarray) else value
            shown = shown.decode("utf-8", "surrogateescape") if values is file.images.name else shown
            self._problem(file, f"/{path} has {shown!r} twice")

    def _problem(self, file: CacheFile, what: str) -> None:
        self.problems.append(f"{file.path}: {what}.")

    def _rows_problem(self, file: CacheFile, what: str) -> None:
        self._problem(file, what)
        self._rows_damaged.append((self.problems[-1], file.mend))

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn an error of the block into a problem."""
        try:
            yield
        except BottleneckError as error:
            if error.message not in self.problems:
                self.problems.append(error.message)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
            self.problems.append(f"It cannot be read: {first_line(error)}.")


def _bound_memory() -> None:
    """Let a damaged size fail as MemoryError before it takes the machine's memory."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(path: str) -> None:
    """Check the cache at `path` and print the outcome."""
    _bound_memory()
    check = Check()
    check.cache(path_of(path))
    print(json.dumps({"problems": check.problems, "mend": check.mend, "checked": check.checked}))


if __name__ == "__main__":
    main(os.fsdecode(sys.argv[1]))
