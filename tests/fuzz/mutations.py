"""Damage to valid bytes: flips, cuts, splices, and fields of lengths set to what a program least expects."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

import hypothesis.strategies as st

FIELDS = ("<H", ">H", "<I", ">I", "<Q", ">Q")
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
LONGEST = 1 << 20  # bytes of an input


def _flip(dice: random.Random, data: bytearray, other: bytes) -> None:
    for _ in range(dice.choice((1, 1, 1, 8, 64))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _bytes(dice: random.Random, data: bytearray, other: bytes) -> None:
    at = dice.randrange(len(data))
    data[at : at + dice.randrange(1, 9)] = dice.randbytes(dice.randrange(1, 9))


def _cut(dice: random.Random, data: bytearray, other: bytes) -> None:
    del data[dice.randrange(len(data)) :]


def _delete(dice: random.Random, data: bytearray, other: bytes) -> None:
    at = dice.randrange(len(data))
    del data[at : at + dice.randrange(1, 600)]


def _repeat(dice: random.Random, data: bytearray, other: bytes) -> None:
    at = dice.randrange(len(data))
    piece = bytes(data[at : at + dice.randrange(1, 600)])
    data[at:at] = piece * dice.choice((1, 2, 50))


def _splice(dice: random.Random, data: bytearray, other: bytes) -> None:
    data[dice.randrange(len(data)) :] = other[dice.randrange(len(other)) :] if other else b""


def _zero(dice: random.Random, data: bytearray, other: bytes) -> None:
    at = dice.randrange(len(data))
    size = min(dice.choice((4, 64, 512)), len(data) - at)
    data[at : at + size] = bytes(size)


def _field(dice: random.Random, data: bytearray, other: bytes) -> None:
    kind = dice.choice(FIELDS)
    size = struct.calcsize(kind)
    at = dice.randrange(min(len(data), dice.choice((16, 64, 512, LONGEST))))
    number = dice.choice(NUMBERS) % (1 << 8 * size)
    data[at : at + size] = struct.pack(kind, number)


def _digits(dice: random.Random, data: bytearray, other: bytes) -> None:
    """Set a number that is written as text to another one."""
    places = [at for at in range(len(data)) if 48 <= data[at] <= 57]
    if places:
        at = dice.choice(places)
        data[at : at + 1] = str(dice.choice((-1, 1e308, *NUMBERS))).encode()


KINDS: tuple[Callable[[random.Random, bytearray, bytes], None], ...] = (
    _flip,
    _bytes,
    _cut,
    _delete,
    _repeat,
    _splice,
    _zero,
    _field,
    _digits,
)


def mutated(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of `seeds` with one to six mutations."""

    def damage(number: int) -> bytes:
        dice = random.Random(number)
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.choice((1, 1, 2, 3, 6))):
            if data:
                dice.choice(KINDS)(dice, data, dice.choice(seeds))
        return bytes(data[:LONGEST])

    return st.integers(0, 2**64 - 1).map(damage)
