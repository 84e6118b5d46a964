"""Single-bit flips and zeroed chunks anywhere in a cache: found by verify, or without effect on what is read.

    python -m tests.store.faults.damage [--long]

Each check runs in a fork with a time limit, as `verify` runs it in a child: a crash or a hang there counts as
found, since `verify` reports it. Every twentieth goes through `verify` itself.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import h5py

from bottleneck.store.verify import Check, verify
from tests.helpers.world import MAP, VIEWED, A, B, content, world_of
from tests.store.faults.runner import in_child, main

NODES = [A, B, MAP, VIEWED]
THROUGH_VERIFY = 20


def sound(path: Path) -> bool:
    """True where every check passes."""
    check = Check()
    check.cache(path)
    return not check.problems


class Tally:
    """Counts what became of each damage."""

    def __init__(self, path: Path, expected: dict) -> None:
        self._path, self._expected, self._number = path, expected, 0
        self.found = self.harmless = self.silent = self.crashes = self.disagreements = 0

    def judge(self, what: str) -> None:
        """Check the cache as it is now."""
        outcome = in_child(lambda: sound(self._path))
        self.crashes += outcome in ("crash", "hang")
        self._number += 1
        if self._number % THROUGH_VERIFY == 1:
            self.disagreements += verify(self._path, timeout=60).ok != (outcome == "true")
        if outcome != "true":
            self.found += 1
        elif in_child(lambda: content(self._path) == self._expected) == "true":
            self.harmless += 1
        else:
            self.silent += 1
            print(f"read silently: {what}")

    def figures(self, name: str) -> dict:
        """The counts, by name."""
        return {
            name: self._number,
            f"{name}: found": self.found,
            f"{name}: of these by a crash or hang": self.crashes,
            f"{name}: without effect": self.harmless,
            f"defect: {name} read silently": self.silent,
            f"defect: {name}, verify differs": self.disagreements,
        }


def chunks(path: Path) -> list[tuple[str, int, int]]:
    """(dataset, offset, bytes) of every chunk of a file."""
    found: list[tuple[str, int, int]] = []

    def visit(name: str, item) -> None:
        if isinstance(item, h5py.Dataset) and item.chunks:
            for number in range(item.id.get_num_chunks()):
                info = item.id.get_chunk_info(number)
                found.append((name, info.byte_offset, info.size))

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Change bytes in place."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def run(folder: Path, rounds: int, seed: int = 0) -> dict:
    """Flip single bits and zero whole chunks; a tenth as many chunks as bits."""
    dice = random.Random(seed)
    whole = folder / "whole"
    whole.mkdir()
    world = world_of(9)
    world.extract(whole / "cache.h5", NODES)
    expected = world.expected(NODES)
    place = folder / "damaged"
    files = sorted(whole.glob("*.h5"))
    shutil.copytree(whole, place)
    flips, zeroes = Tally(place / "cache.h5", expected), Tally(place / "cache.h5", expected)
    for _ in range(rounds):
        victim = dice.choices(files, [file.stat().st_size for file in files])[0]
        data = victim.read_bytes()
        offset, bit = dice.randrange(len(data)), dice.randrange(8)
        overwrite(place / victim.name, offset, bytes([data[offset] ^ (1 << bit)]))
        flips.judge(f"bit {bit} of byte {offset} of {victim.name}")
        shutil.copy(victim, place / victim.name)
    for _ in range(rounds // 10):
        victim = dice.choice(files)
        name, offset, size = dice.choice(chunks(victim))
        overwrite(place / victim.name, offset, bytes(size))
        zeroes.judge(f"/{name} of {victim.name}")
        shutil.copy(victim, place / victim.name)
    return flips.figures("flips") | zeroes.figures("zeroed chunks")


if __name__ == "__main__":
    main(run, short=30, long=1000)
