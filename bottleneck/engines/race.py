"""Time the engines that agree on a user's images, and remember the fastest for this machine and network.

Shapes: B images of (H, W, C) uint8.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from bottleneck.engines.runtimes import describe, is_installed
from bottleneck.errors import WriteError
from bottleneck.files import user_cache, write_whole
from bottleneck.processor import processor_name

Candidate = tuple[str, str]  # engine and precision

RACE_IMAGES = 32  # with a smaller first batch, a race would take longer than it saves
_IMAGES_PER_THREAD = 4  # of a call: one pass for each thread
_ROUNDS = 5
_SECONDS = 1.5  # after which no other round begins


class Runner(Protocol):
    """What a race needs of an engine: its name, and uint8 (B, H, W, C) → one array per node."""

    @property
    def name(self) -> str: ...

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]: ...


AnyRunner = TypeVar("AnyRunner", bound=Runner)


def fastest(
    engines: Sequence[AnyRunner], example: np.ndarray, key: str, group: Sequence[Candidate], threads: int
) -> AnyRunner:
    """Return the engine that passes most images of `example` per second, and remember it.

    Engines take turns, and the best of a few calls counts, so that other work on the machine hardly matters.

    Parameters
    ----------
    example : uint8 array of shape (B, H, W, C)
    key, group, threads : what the winner is remembered for, see `remembered_winner`
    """
    if len(engines) < 2:
        return engines[0]
    pixels, seconds = example[: _IMAGES_PER_THREAD * max(2, threads)], [np.inf] * len(engines)
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        for index, engine in enumerate(engines):
            started = time.perf_counter()
            engine(pixels)
            seconds[index] = min(seconds[index], time.perf_counter() - started)
        if time.perf_counter() - began > _SECONDS:
            break
    winner = engines[int(np.argmin(seconds))]
    rates = {engine.name: round(len(pixels) / each, 1) for engine, each in zip(engines, seconds, strict=True)}
    record = {"winner": winner.name, "images_per_second": rates}
    with suppress(OSError, WriteError):  # then the next run times them again
        write_whole(_record(key, group, threads), json.dumps(record).encode())
    return winner


def remembered_winner(key: str, group: Sequence[Candidate], threads: int) -> Candidate | None:
    """Return the candidate that won an earlier race of the same group; None if there was none.

    Parameters
    ----------
    key : fingerprint of trunk, weights, nodes and preprocessing
    group : the candidates
    threads : of the network
    """
    if len(group) < 2:
        return None
    try:
        name = json.loads(_record(key, group, threads).read_bytes())["winner"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((candidate for candidate in group if candidate[0] == name), None)


def _record(key: str, group: Sequence[Candidate], threads: int) -> Path:
    """The file of a race: another processor, number of threads or version is another race."""
    versions = [describe(name) for name, _ in group if is_installed(name)]
    text = json.dumps([key, group, threads, processor_name(), versions])
    return user_cache() / "races" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
