"""A cache that is written to a URL: what lies there is always valid, and any machine goes on from it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bottleneck import files
from bottleneck.errors import CacheError
from bottleneck.remote import filesystem, lease, retries
from bottleneck.remote.path import path_of
from bottleneck.store import committer
from bottleneck.store.layout import parts_folder
from bottleneck.store.parts import LOG
from bottleneck.store.reader import FeatureCache
from bottleneck.store.staging import staged, staging_folder
from bottleneck.store.writer import CacheWriter
from tests.helpers.remote_writing import COUNT, NODES, PART_ROWS, write
from tests.helpers.web_server import Faults
from tests.helpers.world import MAP, ROOT, SPEC, A, B, content, world_of


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(committer, "PART_ROWS", PART_ROWS)


@pytest.fixture
def url(s3):
    return f"{s3.url}/caches/x.h5"


@contextmanager
def opened(url, nodes=NODES, tell=lambda text: None):
    """A writer of the cache at a URL, and its place."""
    with (
        staged(path_of(url), tell) as place,
        CacheWriter(place.path, SPEC, nodes, ROOT, committed=place.upload) as writer,
    ):
        yield writer, place


def names(s3):
    """The names of the objects, those of parts without their numbers."""
    return sorted({key.split("/part-")[0].removeprefix("caches/") for key in sorted(s3.keys())})


FINISHED = ["x--blocks.3.h5", "x.h5"]
BEGUN = ["x.h5.lease", "x.h5.parts", "x.h5.parts/log"]


def test_a_cache_at_a_url_is_the_one_of_a_disk(s3, url, tmp_path):
    world = world_of(COUNT)
    notes = write(url, world)
    world.extract(tmp_path / "x.h5", NODES)
    assert content(url) == content(tmp_path / "x.h5")
    for name in FINISHED:
        assert s3.get(f"caches/{name}") == (tmp_path / name).read_bytes()
    assert names(s3) == FINISHED
    assert not staging_folder(path_of(url)).exists()
    assert notes.keys() == {"cache-uploaded"}
    assert notes["cache-uploaded"].details["fetched"] == 0
    assert notes["cache-uploaded"].details["uploaded"] > sum(
        len(s3.get(f"caches/{name}")) for name in FINISHED
    )


def state_of(url):
    """The rows that a reader finds at a URL: None where there is no cache yet."""
    path = path_of(url)
    if not path.exists() and not (parts_folder(path) / LOG).exists():
        return None
    with FeatureCache(url) as cache:
        for name in cache.nodes:
            cache.features(name).read(0, len(cache.images))
        return len(cache.images)


def expire(s3, key):
    """Let the time of a lease be over, if there is one; return it."""
    if key not in set(s3.keys()):
        return None
    found = json.loads(s3.get(key))
    s3.put(key, json.dumps(found | {"expires": time.time() - 1}).encode())
    return found


def failure(work, *arguments, **options):
    """The error of a call; None without one."""
    try:
        work(*arguments, **options)
    except CacheError as error:
        return str(error)


def test_a_store_that_fails_after_any_request_leaves_a_state_that_is_gone_on_from(s3, url, machine, long):
    """Each request that changes something is the first to fail in turn, until a run needs no more of them.

    In turn this machine and another one go on.
    """
    expected = world_of(COUNT).expected(NODES)
    stops = 0
    for allowed in range(0, 200, 1 if long else 5):
        s3.front.writes = allowed
        place, told = f"{url[:-3]}-{allowed}.h5", []
        before = world_of(COUNT)
        failed = failure(write, place, before, tell=told.append)
        if failed is None:
            break
        stops += "Access Denied" in failed
        s3.front.writes = None
        rows = state_of(place)
        kept = staging_folder(path_of(place)).exists()
        assert [f"is kept in {staging_folder(path_of(place))}" in text for text in told] == [True] * kept
        elsewhere = allowed % 2 == 1
        if elsewhere:
            machine(f"two-{allowed}")
            expire(s3, f"caches/x-{allowed}.h5.lease")  # it could not be given back
        after = world_of(COUNT)
        notes = write(place, after)
        assert content(place) == expected
        assert not any(f"-{allowed}.h5." in key for key in sorted(s3.keys()))
        if elsewhere:
            known = 0 if rows is None else rows
            assert len(after.computed) <= 3 * (COUNT - known + 3)
        elif kept:
            assert "staging-reused" in notes
            assert notes["cache-uploaded"].details["fetched"] == 0
            assert len(set(before.computed) & set(after.computed)) <= 3 * 10
        machine("one")
    assert stops >= (20 if long else 4)


def killed(url, after):
    """A run in a process of its own, which is killed when `after` commits are uploaded."""
    root = Path(__file__).parents[2]
    program = [sys.executable, "-m", "tests.helpers.remote_writing", url, str(after)]
    done = subprocess.run(program, cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL


def test_after_kill_9_another_machine_goes_on_when_the_lease_has_expired(s3, url, machine, monkeypatch):
    killed(url, after=3)
    assert names(s3) == BEGUN
    rows = state_of(url)
    assert rows >= 12
    machine("two")
    with pytest.raises(
        CacheError, match=r"Another writer, process \d+ on '.+' since .+, holds the lease s3://"
    ):
        write(url, world_of(COUNT))
    found = expire(s3, "caches/x.h5.lease")
    world = world_of(COUNT)
    notes = write(url, world)
    assert content(url) == world_of(COUNT).expected(NODES)
    assert len(world.computed) == len(set(world.computed)) == 3 * (COUNT - rows + sum_of_copies(rows))
    assert notes["lease-taken-over"].details == {"host": found["host"]}
    assert names(s3) == FINISHED
    machine("one")
    again = world_of(COUNT)
    notes = write(url, again)  # this machine has a copy of what another one has finished
    assert again.computed == []
    assert "staging-replaced" in notes
    assert content(url) == world_of(COUNT).expected(NODES)


def sum_of_copies(rows):
    """The committed rows of copies, which need no computation."""
    keys = world_of(COUNT).keys[:rows]
    return len({"a/copy.jpg", "c/사진 😀.png"} & set(keys))


def test_after_kill_9_the_same_machine_goes_on_at_once(s3, url):
    killed(url, after=3)
    world = world_of(COUNT)
    notes = write(url, world)
    assert content(url) == world_of(COUNT).expected(NODES)
    assert len(world.computed) < 3 * COUNT
    assert notes.keys() == {"staging-reused", "cache-uploaded"}
    assert notes["cache-uploaded"].details["fetched"] == 0
    assert names(s3) == FINISHED


def test_requests_that_fail_are_sent_again_and_counted(s3, url, monkeypatch):
    monkeypatch.setattr(retries, "TIMEOUT", 5.0)
    s3.front.methods = ("GET", "PUT", "HEAD", "DELETE")
    s3.front.faults = Faults(seed=3, share=0.1, kinds=("500", "truncation", "reset"))
    world = world_of(COUNT)
    notes = write(url, world)
    injected = s3.front.faults.injected.total()
    s3.front.faults = None
    assert content(url) == world.expected(NODES)
    assert len(world.computed) == len(set(world.computed)) == 3 * COUNT
    assert injected >= 3
    assert 1 <= notes["requests-retried"].details["requests"] <= injected


def test_two_writers(s3, url, machine):
    with opened(url) as (writer, _):
        world_of(COUNT).feed(writer, stop_after=12)
        with pytest.raises(CacheError, match="Another writer on this machine is at work on s3://"):
            write(url, world_of(COUNT))
        machine("two")
        with pytest.raises(
            CacheError, match=rf"process {os.getpid()} on '.*' since .* holds the lease s3://"
        ):
            write(url, world_of(COUNT))
    assert not staging_folder(path_of(url)).exists()
    write(url, world_of(COUNT))
    assert content(url) == world_of(COUNT).expected(NODES)


def test_a_writer_whose_lease_was_taken_stops_before_it_uploads(s3, url, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED", 0.01)
    other = {"host": "elsewhere", "pid": 1, "begun": "now", "expires": time.time() + 99, "token": "other"}

    def robbed():
        with opened(url) as (writer, place):
            s3.put("caches/x.h5.lease", json.dumps(other).encode())
            while place._lease._lost is None:
                time.sleep(0.01)
            world_of(COUNT).feed(writer)
            writer.finish(world_of(COUNT).samples())

    with pytest.raises(CacheError, match="process 1 on 'elsewhere' since"):
        robbed()
    assert names(s3) == ["x.h5.lease"]
    assert json.loads(s3.get("caches/x.h5.lease")) == other


@pytest.mark.parametrize("at", ["upload", "end"])
def test_a_machine_that_slept_leaves_the_cache_to_the_writer_who_took_the_lease(s3, url, at):
    """It wakes after its lease has expired, and works before its thread renews the lease."""
    other = {"host": "elsewhere", "pid": 1, "begun": "now", "expires": time.time() + 99, "token": "other"}

    def asleep():
        with opened(url) as (writer, place):
            s3.put("caches/x.h5.lease", json.dumps(other).encode())
            place._lease._expires = time.time() - 1
            if at == "upload":
                world_of(COUNT).feed(writer)
                writer.finish(world_of(COUNT).samples())
            raise KeyboardInterrupt

    with pytest.raises(CacheError if at == "upload" else KeyboardInterrupt):
        asleep()
    assert names(s3) == ["x.h5.lease"]
    assert json.loads(s3.get("caches/x.h5.lease")) == other


def test_after_ctrl_c_any_machine_goes_on_at_once(s3, url, machine):
    told = []

    def interrupted():
        with opened(url, tell=told.append) as (writer, _):
            world_of(COUNT).feed(writer, stop_after=12)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert told == [
        f"What is computed is kept in {staging_folder(path_of(url))}, and what is uploaded at {url}."
    ]
    assert names(s3) == BEGUN
    machine("two")
    world = world_of(COUNT)
    notes = write(url, world)
    assert len(world.computed) <= 3 * (COUNT - 10)
    assert notes.keys() == {"cache-uploaded"}
    assert content(url) == world_of(COUNT).expected(NODES)


def test_ctrl_c_while_the_lease_is_taken_keeps_nobody_off(s3, url, machine, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lease.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(url, world_of(2))
    machine("two")
    notes = write(url, world_of(COUNT))
    assert notes.keys() == {"cache-uploaded"}
    assert content(url) == world_of(COUNT).expected(NODES)


def test_a_lease_is_renewed(s3, url, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED", 0.01)
    with opened(url):
        first = json.loads(s3.get("caches/x.h5.lease"))
        while json.loads(s3.get("caches/x.h5.lease"))["expires"] == first["expires"]:
            time.sleep(0.01)


def test_a_finished_cache_is_extended_and_replaced_when_the_new_one_is_whole(s3, url, machine):
    write(url, world_of(COUNT))
    old = {name: s3.get(f"caches/{name}") for name in FINISHED}
    machine("two")
    world = world_of(COUNT + 9)
    with opened(url) as (writer, place):
        world.feed(writer)
        writer.finish(world.samples())
        assert {name: s3.get(f"caches/{name}") for name in FINISHED} == old
        assert state_of(url) == COUNT + 2
        place.finish()
    assert len(world.computed) == 3 * 9
    notes = {note.code: note for note in place.told([])}
    assert notes["cache-uploaded"].details["fetched"] == sum(map(len, old.values()))
    assert content(url) == world_of(COUNT + 9).expected(NODES)
    assert names(s3) == FINISHED


def test_a_cache_that_is_replaced_is_noticed_by_who_reads_it(s3, url, monkeypatch):
    monkeypatch.setattr(committer, "PART_ROWS", 4096)
    write(url, world_of(300))
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "BLOCK", 1 << 12)
        cache = FeatureCache(url)
    with cache:
        cache.features(A.name).read(0, 1)
        write(url, world_of(301))
        with pytest.raises(CacheError, match=r"\.h5 cannot be read: it was replaced while it was read\. Run"):
            cache.features(MAP.name).read(0, 300)


def test_other_files_beside_a_cache_are_left_alone(s3, url):
    for name in ("x--other.h5", "x--shard-1-of-2.h5", "x.txt", "x.h5.parts/notes.txt", "xx.h5"):
        s3.put(f"caches/{name}", b"of somebody else")
    write(url, world_of(4))
    notes = write(url, world_of(5))
    assert notes["cache-uploaded"].details["fetched"] < 200_000
    assert s3.get("caches/x--shard-1-of-2.h5") == b"of somebody else"
    assert len(s3.keys()) == 5 + len(FINISHED)


def test_rows_may_stay_in_parts_at_a_url(s3, url, tmp_path):
    write(url, world_of(COUNT), (A, B), consolidate=False)
    assert names(s3) == ["x.h5.parts", "x.h5.parts/log", *[n for n in names(s3) if "/table-" in n]]
    assert content(url) == world_of(COUNT).expected((A, B))
    assert content(f"{url}.parts") == content(url)
    more = world_of(COUNT + 3)
    write(url, more, (A, B), consolidate=False)
    assert len(more.computed) == 2 * 3
    assert content(url) == world_of(COUNT + 3).expected((A, B))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "s3://no-such-bucket-here/x.h5",
            "x.h5.lease cannot be written: .*bucket does not exist. Check the name",
        ),
        (
            "s3://bucket",
            "s3://bucket is no file in a bucket. Give one with -o, such as s3://bucket/photos.h5",
        ),
        (
            "https://host.example/x.h5",
            "https://host.example/x.h5 cannot be written: its store is only read. Give",
        ),
        ("s3://user:hidden@bucket/x.h5", "s3://bucket/x.h5 of a cache is a chain, or has a password"),
        ("{}/folder", "/folder is a folder; expected the name of a file"),
    ],
)
def test_where_no_cache_can_be_written(s3, url, said):
    s3.put("folder/x", b"")
    with pytest.raises(CacheError, match=said) as caught:
        write(url.format(s3.url), world_of(2))
    assert "hidden" not in str(caught.value)
    assert s3.keys() == ["folder/x"]
    assert not list(Path(os.environ["BOTTLENECK_CACHE"]).glob("staging/*"))


def test_a_store_that_denies_writing(s3, url):
    s3.front.writes = 0
    with pytest.raises(CacheError, match=r"x\.h5\.lease cannot be written: Access Denied.*AWS_PROFILE"):
        write(url, world_of(2))


def test_a_lease_that_is_none_is_named(s3, url):
    for data in (b"", b"{}", b"[1]", b'{"token": 1}', b"\xff", b"[" * 100_000):
        s3.put("caches/x.h5.lease", data)
        with pytest.raises(CacheError, match=r"x\.h5\.lease is no lease of a writer\. Delete it"):
            write(url, world_of(2))


def test_a_cache_of_a_newer_format_is_refused_by_its_url(s3, url, tmp_path):
    import h5py

    world_of(3).extract(tmp_path / "x.h5", [A])
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.attrs["format_version"] = np.int64(99)
    s3.put("caches/x.h5", (tmp_path / "x.h5").read_bytes())
    with pytest.raises(CacheError, match="99") as caught:
        write(url, world_of(3))
    assert url in str(caught.value)
    assert s3.keys() == ["caches/x.h5"]


def test_a_disk_without_room_for_the_staging_folder(s3, url, monkeypatch):
    write(url, world_of(3))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(
        CacheError, match=r"Fetching s3://.* needs .* set BOTTLENECK_CACHE to a folder on another"
    ):
        write(url, world_of(4))
    assert content(url) == world_of(3).expected(NODES)


def test_a_disk_that_is_full_while_rows_are_written(s3, url, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "write", full_after(8))
        with pytest.raises(CacheError, match=r"The disk is full: .*set BOTTLENECK_CACHE"):
            write(url, world_of(COUNT))
    assert state_of(url) in (None, *range(COUNT))


def full_after(times):
    """A write of which the disk refuses those after the first ones."""
    left = [times]

    def write(descriptor, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(descriptor, data)

    return write
