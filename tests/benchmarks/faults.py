"""What is lost when runs are killed, disks are full and bits flip: `tests/store/faults`, beside plain files.

    python -m tests.benchmarks.faults [--short]

Each script of `tests/store/faults` runs as it is; its defects are counted. Beside two of them stand the files
that people write by themselves: an HDF5 file that is appended in place and killed, and an .npy file with a
bit flipped.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.measurement import Row, main
from tests.benchmarks.peers import plain_hdf5
from tests.benchmarks.process import ROOT, run_child

SCRIPTS = {
    "kill": "kill −9 at random moments, then resume",
    "stops": "a stop at every step of the protocol, and files cut at random",
    "damage": "single flipped bits, and zeroed chunks",
    "full_disk": "a disk that is full after so many bytes",
    "writers": "two writers of one cache",
    "signals": "one to five of SIGINT, SIGTERM, SIGHUP",
    "extract_signals": "the same signals at real extract commands",
}
SHORT = ("kill", "damage", "full_disk", "writers")
LINE = re.compile(r"^(.{40,}?|.+?)\s+([\d.]+)$")
UNIT = "defects"
PARTS, ROWS = 40, 16


def rows(short: bool) -> Iterator[Row]:
    """Defects of each fault, and what becomes of plain files."""
    for name in SHORT if short else SCRIPTS:
        yield script(name, short)
    rounds = 20 if short else 200
    killed = run_child("faults", "killed_hdf5", rounds=rounds).found
    yield Row(
        f"plain HDF5 file, killed while it is appended: of {rounds} files do not open, or hold other rows",
        "files",
        (killed["lost"],),
        conditions="a peer; compare with the first line",
    )
    silent = run_child("faults", "flipped_npy", rounds=rounds * 5).found
    yield Row(
        f"plain .npy file: of {rounds * 5} flipped bits are read without a word",
        "bits",
        (silent["silent"],),
        conditions="a peer; compare with the line of flipped bits",
    )


def script(name: str, short: bool) -> Row:
    """The defects that a script of `tests/store/faults` counts."""
    words = [sys.executable, "-m", f"tests.store.faults.{name}", *([] if short else ["--long"])]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=3600)
    found = {
        match[1].strip(): float(match[2]) for match in map(LINE.match, done.stdout.splitlines()) if match
    }
    defects = [value for what, value in found.items() if what.startswith("defect")]
    if not defects:
        last = (done.stderr.strip().splitlines() or ["it printed no count"])[-1]
        return Row(SCRIPTS[name], UNIT, reason=last, failed=True)
    counts = "; ".join(f"{what} {value:g}" for what, value in found.items() if not what.startswith("defect"))
    return Row(SCRIPTS[name], UNIT, (sum(defects),), at_most=0.0, conditions=counts)


# ---- each in a process of its own


def killed_hdf5(rounds: int) -> dict:
    """Kill the peer at random moments; count files that do not open, or hold a row that was never written."""
    import h5py

    dice, lost = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        plain_hdf5(f"{folder}/whole.h5", PARTS, ROWS)
        span = time.perf_counter() - started
        with h5py.File(f"{folder}/whole.h5") as file:
            whole = np.asarray(file["x"])
        for number in range(rounds):
            path = f"{folder}/{number}.h5"
            child = os.fork()
            if not child:
                try:
                    plain_hdf5(path, PARTS, ROWS)
                finally:
                    os._exit(0)
            time.sleep(dice.uniform(0.2, 1) * span)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            try:
                with h5py.File(path) as file:
                    rows = np.asarray(file["x"])
                lost += not np.array_equal(rows, whole[: len(rows)])
            except (OSError, KeyError):
                lost += 1
    return {"lost": lost}


def flipped_npy(rounds: int) -> dict:
    """Flip a bit of an .npy file of features, and count the files that are read as if nothing were wrong."""
    dice, silent = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npy")
        np.save(path, np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16))
        whole, data = np.load(path), path.read_bytes()
        for _ in range(rounds):
            damaged = bytearray(data)
            damaged[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            path.write_bytes(damaged)
            try:
                read = np.load(path)
            except (ValueError, OSError, SyntaxError, TypeError, EOFError, MemoryError):
                continue
            silent += not np.array_equal(read, whole, equal_nan=True)
    return {"silent": silent}


if __name__ == "__main__":
    main(rows, __doc__)
