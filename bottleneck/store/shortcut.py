"""When size, times and number of a file vouch for its content, so that it need not be read (FORMAT.md, 4.5).

A changed file must never pass for the old one. Files that are trusted too seldom cost reading, not computing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bottleneck.files import FileStat

SECOND = 10**9  # ns
EARLIEST = 315_705_600 * SECOND  # 1980-01-03: zip's and FAT's first day, 0 and −1 are no times of change
FEW = 2  # files, or
RARE = 0.01  # of the source, may share a time that is trusted


def trusted(stats: Sequence[FileStat]) -> list[bool]:
    """Return for each file of one source whether an unchanged `FileStat` means unchanged content.

    - A time of the last status change that is finer than a second comes from the kernel's clock. Whoever
      writes the file, or swaps it with another, changes it or the inode. Nobody can set it.
    - A version tag of a store changes with the content.
    - Other times can be set, or are one constant for all files: they are trusted only where no other file has
      the same size and times, and few have the same time.
    """
    coarse = [stat for stat in stats if stat.size >= 0 and not _vouched(stat)]
    pairs = Counter(stat[:3] for stat in coarse)
    times = Counter(stat[1:3] for stat in coarse)
    most = max(FEW, RARE * len(stats))
    return [
        stat.size >= 0
        and (
            _vouched(stat)
            or (stat.mtime_ns >= EARLIEST and pairs[stat[:3]] == 1 and times[stat[1:3]] <= most)
        )
        for stat in stats
    ]


def _vouched(stat: FileStat) -> bool:
    if stat.ctime_ns < 0:
        return stat.inode >= 0  # a version tag
    return stat.ctime_ns >= EARLIEST and stat.ctime_ns % SECOND != 0
