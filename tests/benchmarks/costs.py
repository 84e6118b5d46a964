"""What a million, a hundred million and a thousand million images cost: arithmetic on measured figures.

    python -m tests.benchmarks.costs

A machine takes images as slowly as its slowest part: its cores for decoding and network together, the reads
that are under way, or the network link. docs/scaling.md shows the tables and says where the figures are from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SIZES = (1_000_000, 100_000_000, 1_000_000_000)
DECODE, ENGINE = 1.9e-3, 5.4e-3  # core-seconds an image
IMAGE = 120_000  # bytes of a file
ROW = 2_700  # bytes of a row on disk: 1,280 features in float16, and key, digest, size, time, label
STATE = 1_200  # bytes of a row in memory, of the process that writes
HEAD = 0.82e-3  # core-seconds a row of the sweep
PASSES = 281  # of the sweep over the features
IN_FLIGHT, LATENCY = 32, 0.05  # reads of one process, and seconds of one
LINK, DISK = 1.25e9, 2e9  # bytes a second: 10 Gbit/s, and a disk
IN_SHARD = 1000  # images of a tar shard


@dataclass(frozen=True)
class Machine:
    """Machines of one kind: how many, cores of each, and whether a GPU takes the network from the cores."""

    name: str
    count: int
    cores: int
    gpu: bool = False

    def limits(self, per_request: int | None) -> dict[str, float]:
        """Return images a second of all machines by what limits them; None for images on a local disk."""
        cores = self.cores / (DECODE if self.gpu else DECODE + ENGINE)
        found = {"decoding" if self.gpu else "cores": cores}
        if per_request is not None:
            found["requests"] = IN_FLIGHT / LATENCY * per_request
            found["link"] = LINK / IMAGE
        return {name: self.count * rate for name, rate in found.items()}


MACHINES = (
    Machine("2 cores", 1, 2),
    Machine("16 cores", 1, 16),
    Machine("16 cores and a GPU", 1, 16, gpu=True),
    Machine("64 machines of 16 cores", 64, 16),
)
SOURCES = {"local disk": None, "files, 50 ms away": 1, "tar shards, 50 ms away": IN_SHARD}


def extraction() -> list[list[str]]:
    """Return the rows of the table of extraction: time of each size on each machine, and what limits it."""
    rows = [["machine", "images", "images/s", *(f"{short(size)} images" for size in SIZES), "limit"]]
    for machine in MACHINES:
        for name, per_request in SOURCES.items():
            limits = machine.limits(per_request)
            limit = min(limits, key=limits.__getitem__)
            hours = (duration(size / limits[limit]) for size in SIZES)
            rows.append([machine.name, name, f"{limits[limit]:,.0f}", *hours, limit])
    return rows


def volumes() -> list[list[str]]:
    """Return the rows of what a number of images takes, whatever the machine."""
    rows = [["", *(f"{short(size)} images" for size in SIZES)]]
    amounts = {
        "core-hours (decoding and network)": lambda n: f"{n * (DECODE + ENGINE) / 3600:,.0f}",
        "images read": lambda n: volume(n * IMAGE),
        "requests, a file each": lambda n: f"{n:,}",
        f"requests, tar shards of {IN_SHARD:,}": lambda n: f"{n // IN_SHARD:,}",
        "features on disk": lambda n: volume(n * ROW),
        "memory of the process that writes, at most": lambda n: volume(n * STATE),
        "core-hours of the sweep of heads": lambda n: f"{n * HEAD / 3600:,.1f}",
        "features read by the sweep, if memory does not hold them": lambda n: volume(n * 2560 * PASSES),
        "hours of that at 2 GB/s": lambda n: f"{n * 2560 * PASSES / DISK / 3600:,.1f}",
    }
    return rows + [[name, *map(amount, SIZES)] for name, amount in amounts.items()]


def short(size: int) -> str:
    """Return a number of images as people write it."""
    return f"{size // 10**9} G" if size >= 10**9 else f"{size // 10**6} M"


def duration(seconds: float) -> str:
    """Return minutes below two hours, days from three days on, hours between."""
    for unit, name, least in ((86400, "days", 3), (3600, "h", 2), (60, "min", 0)):
        if seconds >= least * unit:
            return f"{seconds / unit:.0f} {name}" if seconds >= unit else "< 1 min"
    raise AssertionError("no time is below zero")


def volume(size: float) -> str:
    """Return bytes in a decimal unit."""
    unit, name = next(
        pair for pair in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if size >= pair[0]
    )
    return f"{size / unit:.3g} {name}"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


if __name__ == "__main__":
    print(*markdown(extraction()), "", *markdown(volumes()), sep="\n")
