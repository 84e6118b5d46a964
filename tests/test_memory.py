"""Handing memory back."""

import os
import platform

import numpy as np
import pytest

from bottleneck.threads import hand_back


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps other blocks")
def test_freed_blocks_go_back_to_the_system():
    kept = []
    for _ in range(200):  # too small to be mapped one by one
        kept.append(np.ones(100_000, np.uint8))
    before = resident()
    kept = kept[-1:]
    hand_back()
    assert before - resident() > 10 << 20


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
