"""One writer at a time, and no litter where nothing was written."""

import os
import threading
from dataclasses import replace

import pytest

from bottleneck.errors import CacheError, FingerprintError
from bottleneck.store.lock import CacheLock
from bottleneck.store.merge import merge
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import ROOT, SPEC, A, B, world_of


def test_a_refused_merge_leaves_nothing(tmp_path):
    for name, node in (("1", A), ("2", B)):
        world_of(3).extract(tmp_path / f"{name}.h5", [node])
    with pytest.raises(FingerprintError):
        merge([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "out.h5")
    assert not list(tmp_path.glob("out*"))


def test_a_refused_run_leaves_a_folder_as_it_was(tmp_path):
    path = tmp_path / "cache.h5"
    world_of(3).extract(path, [A])
    (tmp_path / "cache.h5.lock").unlink()  # as after a copy of the cache alone
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(FingerprintError):
        CacheWriter(path, replace(SPEC, backbone={"name": "another"}), [A], ROOT)
    assert sorted(os.listdir(tmp_path)) == before


def test_the_lock_of_another_is_left_to_it(tmp_path):
    path = tmp_path / "cache.h5"
    with CacheLock(path):
        for _ in range(2):
            with pytest.raises(CacheError, match="is at work"):
                CacheLock(path)
    assert os.listdir(tmp_path) == []


def test_who_waits_for_a_lock_that_goes_away_gets_one_that_holds(tmp_path):
    path, got = tmp_path / "cache.h5", []
    first = CacheLock(path)
    waiting = threading.Thread(target=lambda: got.append(CacheLock(path, timeout=20)))
    waiting.start()
    first.release()
    waiting.join()
    with pytest.raises(CacheError, match="is at work"):
        CacheLock(path)
    got[0].release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("there", [["cache.h5", "cache.h5.lock"], ["cache.h5.lock", "cache.h5.parts"]])
def test_a_lock_file_stays_beside_what_it_guards(tmp_path, there):
    for name in there:
        (tmp_path / name).touch()
    CacheLock(tmp_path / "cache.h5").release()
    assert sorted(os.listdir(tmp_path)) == there
