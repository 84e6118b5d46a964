"""Verify a cache without trusting it: the checks run in a child process with a time and a memory limit.

A damaged header can crash or hang the HDF5 library; here that ends a child, and is reported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import bottleneck
from bottleneck.errors import CacheError
from bottleneck.store.guard import MAKE_ONE
from bottleneck.store.layout import parts_folder

START_SECONDS = 60.0
BYTES_PER_SECOND = 20e6  # slower than any disk worth waiting for


@dataclass(frozen=True)
class Report:
    """What verification found.

    Parameters
    ----------
    ok : bool
    problems : list of str
        One line each; empty where `ok`.
    checked : dict
        Numbers of "files", "datasets", "bytes", "images" and "samples"; empty where the check did not end.
    """

    ok: bool
    problems: list[str] = field(default_factory=list)
    checked: dict = field(default_factory=dict)


def verify(path: str | os.PathLike, timeout: float | None = None) -> Report:
    """Check all that a cache says of itself.

    Every sha256 (features, views, keys, digests, samples, labels, covariates, failures, and the structure
    with all attributes), fingerprints, counts, uniqueness, ranges; of an unfinished run log and parts.

    Parameters
    ----------
    path : NAME.h5 (with its companions and parts), a companion, or NAME.h5.parts
    timeout : float, optional
        Seconds; by default a minute and what a slow disk needs for the bytes.

    Raises
    ------
    CacheError
        There is nothing at `path`.
    """
    path = Path(path)
    if not path.exists() and not parts_folder(path).is_dir():
        raise CacheError(f"There is no feature cache {path}.", MAKE_ONE)
    limit = START_SECONDS + _bytes(path) / BYTES_PER_SECOND if timeout is None else timeout
    package = str(Path(bottleneck.__file__).parents[1])
    found = os.environ.get("PYTHONPATH")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([package, *([found] if found else [])])}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "bottleneck.store.check", os.path.abspath(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit,
            env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Report(
            False, [f"{path}: the check did not end within {limit:.0f} s; its structure is damaged."]
        )
    return _outcome(path, child)


def _outcome(path: Path, child: subprocess.CompletedProcess) -> Report:
    try:
        found = json.loads(child.stdout)
    except ValueError:
        lines = child.stderr.decode("utf-8", "replace").split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        how = f"signal {-child.returncode}" if child.returncode < 0 else reason
        return Report(False, [f"{path}: the check crashed ({how}); the file's structure is damaged."])
    return Report(not found["problems"], found["problems"], found["checked"])


def _bytes(path: Path) -> int:
    """Bytes of a cache with all that belongs to it."""
    folder = path if path.is_dir() else path.parent
    names = [entry for entry in folder.iterdir() if path.is_dir() or entry.name.startswith(path.stem)]
    inside = list(parts_folder(path).iterdir()) if parts_folder(path).is_dir() else []
    return sum(entry.stat().st_size for entry in [*names, *inside] if entry.is_file())
