import os
import platform
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from bottleneck import threads


@pytest.mark.parametrize("count", range(1, 65))
def test_a_cpu_engine_spends_its_threads_and_no_more(count):
    passes, within = threads.passes_side_by_side(count)
    assert 1 <= passes <= 16
    assert count - within < passes * within <= count


@pytest.mark.parametrize("cores", [1, 2, 8, 64])
def test_both_sides_get_the_cores_of_a_cpu(cores, monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    assert threads.thread_budget() == threads.ThreadBudget(decode=min(cores, 32), network=cores)
    assert threads.thread_budget(workers=0).decode == 1
    assert threads.thread_budget(workers=5).decode == 5


def test_torch_stays_in_one_thread_only_inside_the_block_and_only_here():
    elsewhere = []
    torch.set_num_threads(2)
    with threads.one_torch_thread():
        assert torch.get_num_threads() == 1
        thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert torch.get_num_threads() == 2
    assert elsewhere == [2]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps other blocks")
def test_freed_blocks_go_back_to_the_system():
    blocks = []
    for _ in range(200):  # too small to be mapped one by one
        blocks.append(np.ones(100_000, np.uint8))
    before = resident()
    blocks = blocks[-1:]
    threads.trim_memory()
    assert before - resident() > 10 << 20


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("cores", [1, 3])
def test_a_pool_returns_results_in_the_order_of_the_parts(cores, monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    with threads.WorkerPool() as pool:
        assert list(pool.run(lambda a, b: a * b, ((i, 2) for i in range(50)))) == [2 * i for i in range(50)]


@pytest.mark.parametrize("cores", [1, 3])
def test_outside_of_its_block_a_pool_works_in_the_calling_thread(cores, monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    pool = threads.WorkerPool()
    here = [threading.current_thread()] * 2
    assert list(pool.run(threading.current_thread, [(), ()])) == here
    for _ in range(2):
        with pool:
            assert (list(pool.run(threading.current_thread, [(), ()])) == here) == (cores == 1)
        assert list(pool.run(threading.current_thread, [(), ()])) == here


@pytest.mark.parametrize(("cores", "count"), [(1, 5), (2, 5), (4, 3), (3, 1)])
def test_shares_cover_all_and_none_is_empty(cores, count, monkeypatch):
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    parts = [range(count)[part] for part in threads.WorkerPool().shares(count)]
    assert [i for part in parts for i in part] == list(range(count))
    assert len(parts) == min(cores, count)
    assert all(parts)


def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    threads.wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize(("beside", "cores"), [("1", 8), ("3", 2), ("99", 1), ("0", 8), ("many", 8), ("", 8)])
def test_processes_of_torchrun_share_the_cores_of_a_host(beside, cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(threads, "_OWN_CGROUPS", Path("none"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
    assert threads.available_cores() == cores


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/a.slice/b", {"a.slice/cpu.max": "300000 100000", "a.slice/b/cpu.max": "max 100000"}, 3),
        ("0::/a.slice/b", {"a.slice/cpu.max": "300000 100000", "a.slice/b/cpu.max": "150000 50000"}, 3),
        ("0::/docker/of-the-host", {"cpu.max": "400000 100000"}, 4),
        ("0::/a", {"a/cpu.max": "gibberish"}, 8),
        (
            "3:memory:/m\n1:cpu,cpuacct:/d\n0::/",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "500000\n", "cpu,cpuacct/d/cpu.cfs_period_us": "100000\n"},
            5,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("2:cpuset:/", {"cpuset/cpu.max": "100000 100000"}, 8),
    ],
)
def test_the_quota_of_a_cgroup_or_of_one_above_it_limits_the_cores(own, files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    for name, text in {**files, "own": own}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(threads, "_CGROUPS", tmp_path)
    monkeypatch.setattr(threads, "_OWN_CGROUPS", tmp_path / "own")
    assert threads.available_cores() == cores
