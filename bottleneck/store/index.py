"""Find rows by digest or by key among many millions: sorted arrays, no Python object for a row.

Shapes: n entries, N that are looked for, w bytes of an entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from threading import Lock

import numpy as np

from bottleneck.store.tables import DIGEST_BYTES, ImageTable

KEY_BYTES = 16  # of the hash of a key: two of 10⁹ keys have one hash with a probability below 10⁻²⁰
BLOCK = 1 << 16  # entries that are looked for at a time, where all are
PREFIX = 8  # bytes by which entries are sorted; those that share it are compared whole


class _Run:
    """Entries (n, w), sorted by their first bytes, then by position. start : position of the first."""

    def __init__(self, entries: np.ndarray, start: int) -> None:
        self.entries, self.start = entries, start
        prefix = _prefix(entries)
        order = np.argsort(prefix, kind="stable")
        self._sorted, self._order = prefix[order], order.astype(np.uint32 if len(order) < 2**32 else np.int64)

    def find(self, wanted: np.ndarray, last: bool) -> np.ndarray:
        """Return the position (N,) of the first equal entry, or of the last; −1 where there is none."""
        prefix, found = _prefix(wanted), np.full(len(wanted), -1, np.int64)
        at = np.searchsorted(self._sorted, prefix, "right" if last else "left") - last
        left = np.arange(len(wanted))
        while len(left):
            inside = (at >= 0) & (at < len(self._sorted))
            left, at = left[inside], at[inside]
            inside = self._sorted[at] == prefix[left]
            left, at = left[inside], at[inside]
            entry = self._order[at]
            same = (self.entries[entry] == wanted[left]).all(axis=1)
            found[left[same]] = self.start + entry[same].astype(np.int64)
            left, at = left[~same], at[~same] + (-1 if last else 1)
        return found


class Runs:
    """Entries of w bytes, each with its position in the order in which they were added.

    They lie in sorted runs. A run is joined with the one before unless that is more than twice as long, so
    there are few, and each entry is sorted a few times in all.
    """

    def __init__(self) -> None:
        self._runs: tuple[_Run, ...] = ()
        self._new: list[np.ndarray] = []
        self._count = 0
        self._lock = Lock()  # threads may ask while one adds

    def __len__(self) -> int:
        return self._count

    def add(self, entries: np.ndarray) -> None:
        """Add entries (n, w) uint8."""
        if len(entries):
            with self._lock:
                self._new.append(entries)
                self._count += len(entries)

    def find(self, wanted: np.ndarray, last: bool = False) -> np.ndarray:
        """Return the position (N,) int64 of the first entry equal to each of (N, w); −1 where there is none.

        last : of the last such entry
        """
        runs, found = self._sorted(), np.full(len(wanted), -1, np.int64)
        for run in reversed(runs) if last else runs:
            left = np.flatnonzero(found < 0)
            found[left] = run.find(wanted[left], last)
        return found

    def distinct(self) -> np.ndarray:
        """Return (n,) bool, whether an entry is the last of its value."""
        latest = np.zeros(self._count, bool)
        for run in self._sorted():
            for start in range(0, len(run.entries), BLOCK):
                block = run.entries[start : start + BLOCK]
                at = np.arange(run.start + start, run.start + start + len(block))
                latest[at] = self.find(block, last=True) == at
        return latest

    def _sorted(self) -> tuple[_Run, ...]:
        """Return all runs, the new entries among them."""
        with self._lock:
            if self._new:
                runs, entries, self._new = [*self._runs], self._new, []
                start = self._count - sum(map(len, entries))
                while runs and len(runs[-1].entries) <= 2 * (self._count - start):
                    before = runs.pop()
                    entries.insert(0, before.entries)
                    start = before.start
                runs.append(_Run(entries[0] if len(entries) == 1 else np.concatenate(entries), start))
                self._runs = tuple(runs)
            return self._runs


def _prefix(entries: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(entries[:, :PREFIX]).view(np.uint64)[:, 0]


def hashes_of(keys: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return a hash (n, 16) uint8 of each key; `keys` are texts, or their bytes (n,) as stored."""
    out = np.empty((len(keys), KEY_BYTES), np.uint8)
    for start in range(0, len(keys), BLOCK):
        part = keys[start : start + BLOCK]
        stored = isinstance(part, np.ndarray) and part.dtype.kind == "S"
        raw: Iterable[bytes] = part.tolist() if stored else map(_encoded, part)  # type: ignore[union-attr]
        hashed = b"".join(hashlib.blake2b(key, digest_size=KEY_BYTES).digest() for key in raw)
        out[start : start + BLOCK] = np.frombuffer(hashed, np.uint8).reshape(-1, KEY_BYTES)
    return out


def _encoded(key: str) -> bytes:
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # it is stored with a replacement, and found under that name alone
        return key.encode("utf-8", "surrogatepass")


def first_equal(entries: np.ndarray) -> np.ndarray:
    """Return (n,) int64, for each of the entries (n, w) the position of the first that equals it."""
    runs, first = Runs(), np.zeros(len(entries), np.int64)
    runs.add(entries)
    for start in range(0, len(entries), BLOCK):
        first[start : start + BLOCK] = runs.find(entries[start : start + BLOCK])
    return first


def repeated(entries: np.ndarray) -> np.ndarray:
    """Return the positions of the entries (n, w) that an earlier one equals, ascending."""
    return np.flatnonzero(first_equal(entries) != np.arange(len(entries)))


class Added:
    """Digests that one run has computed: a small set of the latest, and runs of all before."""

    def __init__(self) -> None:
        self._latest: set[bytes] = set()
        self._before = Runs()

    def add(self, digests: Iterable[bytes]) -> None:
        """Add digests of 32 bytes."""
        self._latest.update(digests)
        if len(self._latest) >= BLOCK:
            self._before.add(np.frombuffer(b"".join(self._latest), np.uint8).reshape(-1, DIGEST_BYTES))
            self._latest.clear()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._latest or bool(self._before.find(as_row(digest))[0] >= 0)


def as_row(digest: bytes) -> np.ndarray:
    """Return one digest as (1, 32) uint8."""
    return np.frombuffer(digest, np.uint8)[None]


class Records:
    """Digest and file of each image, by key. Of several records of one key, the one added last counts."""

    def __init__(self) -> None:
        self._keys = Runs()
        self._digest: list[np.ndarray] = []
        self._stat: list[np.ndarray] = []
        self._dropped = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """Return the number of records that were added, those that no longer count included."""
        return len(self._keys)

    def add(self, images: ImageTable) -> None:
        """Add the images of a file."""
        self._keys.add(hashes_of(images.name))
        self._digest.append(images.digest)
        self._stat.append(images.stat)

    def drop(self, positions: np.ndarray) -> None:
        """Stop counting the records at `positions`."""
        self._dropped = np.union1d(self._dropped, positions[positions >= 0])

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Return the position (N,) of the record of each key, by `hashes_of`; −1 where there is none."""
        found = self._keys.find(hashes, last=True)
        if len(self._dropped):
            found[np.isin(found, self._dropped)] = -1
        return found

    def positions(self) -> np.ndarray:
        """Return the positions of the records that count, ascending."""
        latest = self._keys.distinct()
        latest[self._dropped] = False
        return np.flatnonzero(latest)

    @property
    def digest(self) -> np.ndarray:
        """Digests (n, 32) by position."""
        return _joined(self._digest, (0, DIGEST_BYTES), np.uint8)

    @property
    def stat(self) -> np.ndarray:
        """Files (n, 4) by position."""
        return _joined(self._stat, (0, 4), np.int64)


def _joined(blocks: list[np.ndarray], empty: tuple[int, int], dtype: type) -> np.ndarray:
    """Return all blocks as one array, which takes their place."""
    if len(blocks) != 1:
        blocks[:] = [np.concatenate(blocks) if blocks else np.zeros(empty, dtype)]
    return blocks[0]
