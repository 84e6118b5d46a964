"""The caches kept of each format version are read, verified and continued by today's code."""

import shutil
from pathlib import Path

import pytest

from bottleneck.store.verify import Check
from tests.helpers.world import MAP, VIEWED, A, content, digest_of, world_of

NODES = [A, VIEWED, MAP]


@pytest.fixture(params=["", "v2", "crc32"])
def golden(tmp_path, request):
    return shutil.copytree(Path(__file__).parent / "golden", tmp_path / "golden") / request.param / "cache.h5"


def test_the_kept_cache_is_read_and_sound(golden):
    expected = world_of(3).expected(NODES)
    if golden.parent.name == "golden":  # format version 1 has neither ctime_ns nor inode
        expected["images"] = [
            (key, digest, stat._replace(ctime_ns=-1, inode=-1)) for key, digest, stat in expected["images"]
        ]
    assert content(golden) == expected
    check = Check()
    check.cache(golden)
    assert check.problems == []
    assert check.checked["files"] == 2


def test_a_run_over_the_kept_cache_computes_nothing_old(golden):
    world = world_of(4)
    world.extract(golden, NODES)
    assert {digest for _, digest in world.computed} == {digest_of(b"image 3")}
    assert content(golden) == world.expected(NODES)
