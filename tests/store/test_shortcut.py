"""When an unchanged stat is trusted; and what `FileStat` sees of a local file."""

import os
import time

import pytest

from bottleneck.files import FileStat, stat_of
from bottleneck.store.shortcut import EARLIEST, SECOND, trusted

TIME = 1_600_000_000 * SECOND
FINE = TIME + 123_456_789


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        ([FileStat()], [False]),  # unknown
        ([FileStat(5, TIME)], [True]),  # a remote file with a time of its own
        ([FileStat(5, 0)], [False]),
        ([FileStat(5, -1)], [False]),
        ([FileStat(5, 315_532_800 * SECOND)], [False]),  # 1980-01-01
        ([FileStat(5, EARLIEST - 1)], [False]),
        ([FileStat(5, TIME), FileStat(5, TIME)], [False, False]),  # a swap would not show
        ([FileStat(5, TIME), FileStat(6, TIME)], [True, True]),
        ([FileStat(size, TIME) for size in range(3)], [False] * 3),  # one constant
        ([FileStat(5, 0, -1, 77)] * 3, [True] * 3),  # a version tag vouches
        ([FileStat(5, 0, FINE, 77)] * 3, [True] * 3),  # so does the kernel's clock
        ([FileStat(5, TIME, TIME, 1), FileStat(5, TIME, TIME, 2)], [False, False]),  # squashfs, ISO, FAT
        ([FileStat(5, TIME, TIME, 1)], [True]),
        ([FileStat(5, TIME, 0, 1)], [True]),
        ([FileStat(5, 0, 0, 1)], [False]),
    ],
)
def test_a_stat_is_trusted_where_a_change_must_show(stats, expected):
    assert trusted(stats) == expected


def test_a_time_that_many_files_share_is_a_constant_but_a_second_that_few_share_is_not():
    honest = [FileStat(number, TIME + number // 2 * SECOND) for number in range(400)]
    assert all(trusted(honest))
    constant = [FileStat(1000 + number, TIME - SECOND) for number in range(10)]
    assert trusted(honest + constant) == [True] * 400 + [False] * 10


def test_any_way_to_change_a_local_file_changes_its_stat(tmp_path, monkeypatch):
    monkeypatch.setattr("bottleneck.files.CLOCK_TICK", 0)
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"1234")
    other.write_bytes(b"5678")
    for changed in (
        lambda: path.write_bytes(b"4321"),
        lambda: other.replace(path),
        lambda: os.utime(path, ns=(5, 5)),
    ):
        before = stat_of(path)
        time.sleep(0.05)  # the file system's clock ticks
        changed()
        os.utime(path, ns=(7, before.mtime_ns))
        assert stat_of(path) != before
        assert stat_of(path)[:2] == before[:2]


def test_a_file_of_this_very_moment_is_not_vouched_for(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    monkeypatch.setattr("bottleneck.files.CLOCK_TICK", 10**12)
    assert stat_of(path)[2:] == (-1, -1)
