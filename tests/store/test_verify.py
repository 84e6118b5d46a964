"""verify finds what is wrong, says where, and is never harmed by it."""

import hashlib
import json
import re
import subprocess

import h5py
import numpy as np
import pytest

from bottleneck.errors import CacheError
from bottleneck.store import verify as checking
from bottleneck.store.layout import seal
from bottleneck.store.verify import Check, verify
from tests.helpers.world import MAP, ROOT, VIEWED, A, world_of
from tests.store.make_golden import interrupted


@pytest.fixture
def path(tmp_path):
    world = world_of(6)
    world.put("b/long name.jpg", b"bad too")
    world.extract(tmp_path / "cache.h5", [A, MAP, VIEWED])
    return tmp_path / "cache.h5"


def problems(path):
    check = Check()
    check.cache(path)
    return " ".join(check.problems)


def rewrite(path, dataset, change):
    """Change a dataset as a careful forger would: with its checksum and the seal made right again."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        values = file[dataset][...]
        change(values)
        file[dataset][...] = values
        file[dataset].attrs["sha256"] = hashlib.sha256(values.tobytes()).hexdigest()
        seal(file)


def test_a_sound_cache_is_counted(path):
    report = verify(path)
    assert (report.ok, report.problems) == (True, [])
    assert report.checked["files"] == 2
    assert (report.checked["images"], report.checked["samples"]) == (8, 8)
    assert report.checked["bytes"] > 8 * (5 + 4 + 12) * 2


def test_a_run_that_finished_in_its_parts_is_counted_too(tmp_path):
    world_of(6).extract(tmp_path / "cache.h5", [A], consolidate=False)
    report = verify(tmp_path / "cache.h5")
    assert report.ok
    assert (report.checked["images"], report.checked["samples"]) == (8, 8)


def test_a_damaged_cache_is_reported_with_the_place(path):
    with h5py.File(path) as file:
        offset = file[f"features/{A.name}"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(bytes(8 * 5 * 2 + 4))
    report = verify(path)
    assert not report.ok
    assert report.problems == [
        f"{path}: /features/{A.name} does not match its sha256.",
        f"{path}: rows 0 to 7 of node {A.name!r} do not match their checksums.",
    ]
    assert f"`bottleneck extract {ROOT} -o {path}`" in report.mend


def test_a_damaged_companion_is_reported(path):
    companion = path.with_name("cache--blocks.3.h5")
    companion.write_bytes(companion.read_bytes()[:-100])
    report = verify(path)
    assert not report.ok
    assert "cache--blocks.3.h5" in report.problems[0]


@pytest.mark.parametrize(
    ("dataset", "change", "found"),
    [
        ("images/key", lambda v: v.__setitem__(0, v[1]), "/images/key has .* twice"),
        ("failures/key", lambda v: v.__setitem__(0, b"a/copy.jpg"), "both an image and a failure"),
        ("samples/key", lambda v: v.__setitem__(0, v[1]), "/samples/key has .* twice"),
        ("samples/image", lambda v: v.__setitem__((0, 0), 8), "points at an image that is not there"),
        ("samples/image", lambda v: v.__setitem__((0, 0), -1), "points at an image that is not there"),
        ("samples/split", lambda v: v.__setitem__(0, b"prod"), "a split is 'prod'"),
        ("labels/label", lambda v: v.__setitem__(0, 3), "'label' have values outside their 3 classes"),
        ("features/blocks.5", lambda v: v.__setitem__((2, 2), np.nan), "not finite in rows 0 to 7"),
        ("views/head", lambda v: v.__setitem__((2, 2, 1), np.inf), "not finite"),
    ],
)
def test_what_no_writer_writes_is_found_behind_right_checksums(path, dataset, change, found):
    rewrite(path, dataset, change)
    assert re.search(found, problems(path))


def test_parts_of_an_unfinished_run_are_checked(tmp_path):
    folder = interrupted(tmp_path)
    assert problems(tmp_path / "cache.h5") == ""
    part = next(folder.glob("part-*.h5"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    assert part.name in problems(folder)


def test_a_damaged_log_is_reported(tmp_path):
    folder = interrupted(tmp_path)
    data = bytearray((folder / "log").read_bytes())
    data[100] ^= 1
    (folder / "log").write_bytes(data)
    assert "line 1 of" in problems(folder)


def test_nothing_there_is_an_error_with_the_next_command(tmp_path):
    with pytest.raises(CacheError, match="no feature cache") as caught:
        verify(tmp_path / "absent.h5")
    assert "bottleneck extract" in caught.value.hint


def test_what_is_no_cache_is_reported(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"text")
    assert "not a feature cache" in verify(tmp_path / "x.h5").problems[0]


def test_a_file_that_hangs_the_library_ends_at_the_time_limit(path):
    report = verify(path, timeout=0.001)
    assert not report.ok
    assert "did not end within" in report.problems[0]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        ("raise MemoryError('too much')", "MemoryError: too much"),
    ],
)
def test_a_file_that_crashes_the_library_is_reported(path, monkeypatch, code, reason):
    real = subprocess.run

    def run(command, **keywords):
        return real([command[0], "-c", code], **keywords)

    monkeypatch.setattr("bottleneck.store.verify.subprocess.run", run)
    report = verify(path)
    assert not report.ok
    assert reason in report.problems[0]


def test_the_child_prints_one_json_object(path, capsys, monkeypatch):
    monkeypatch.setattr(checking, "_bound_memory", lambda: None)
    checking.main(str(path))
    assert json.loads(capsys.readouterr().out)["problems"] == []
