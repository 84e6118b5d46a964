"""Two hosts as network namespaces: a Ray cluster and torchrun over a link, which is cut in the middle.

Long form, as root on Linux. The hosts share files, as over NFS; nothing else but the link joins them.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bottleneck import extract
from bottleneck.extraction import ray_cluster
from bottleneck.store.merge import merge
from bottleneck.store.reader import FeatureCache
from tests.helpers.ray_nodes import FAULTS, FLAGS, SITE, rows_of, wait_for_a_commit, write_images
from tests.helpers.tiny_network import NET
from tests.helpers.two_hosts import two_hosts

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.long

COUNT = 400
PORT = 6379  # in a namespace of its own
# Nodes that are not heard of are given up after seconds, in place of half a minute
CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
# A driver that begins when workers on both hosts have started, and commits after every few rows
DRIVER = """
from bottleneck.cli.main import main
from bottleneck.extraction import ray_pool
from bottleneck.store import committer

def wait(pool):
    while any(slot.info is None for slot in pool._slots) or len(pool._slots) < 2:
        list(pool._step({}))

ray_pool.Pool.wait = wait
committer.PART_ROWS = 4
main()
"""


@pytest.fixture
def hosts():
    with two_hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("hosts") / "images", COUNT)


@pytest.fixture(scope="module")
def alone(images):
    extract(images, images.parent / "alone.h5", **NET)
    return rows_of(images.parent / "alone.h5")


@pytest.fixture
def ray(hosts, tmp_path):
    """A cluster of both hosts whose workers are slow, in folders of their own; the head's address."""
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "slow").touch()
    path = os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": path,
        FAULTS: str(tmp_path / "faults"),
    }
    head = f"{hosts.addresses[1]}:{PORT}"
    with TemporaryDirectory(dir=ray_cluster.short_folder(), ignore_cleanup_errors=True) as folder:
        for host, where in (
            (1, ["--head", f"--port={PORT}", "--include-dashboard=false"]),
            (2, [f"--address={head}"]),
        ):
            own = [f"--node-ip-address={hosts.addresses[host]}", f"--temp-dir={folder}/{host}"]
            size = ["--num-cpus=1", f"--object-store-memory={80 << 20}", "--block"]
            start = [str(Path(sys.executable).with_name("ray")), "start", *where, *own, *size]
            with open(f"{folder}/log{host}", "w") as log:
                node = hosts.popen(host, *start, env=os.environ | given | CHECKS, stdout=log, stderr=log)
            wait_until_it_says(f"{folder}/log{host}", "Ray runtime started", node)
        yield head
        hosts.end()


def wait_until_it_says(path, text, process):
    """Wait for a text in the file that a process writes."""
    while text not in (so_far := Path(path).read_text()):
        assert process.poll() is None, so_far
        time.sleep(0.1)


def driver(hosts, source, cache, head):
    """The command on host 1."""
    words = ["extract", source, "-o", cache, "--json", "--backbone", NET["backbone"], *FLAGS, f"--ray={head}"]
    run = partial(hosts.popen, stdout=-1, stderr=-1, text=True)
    return run(1, sys.executable, "-c", DRIVER, *map(str, words))


def told(process):
    """The result of a driver, and its notes by code."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    result = json.loads(out)
    return result, {note["code"]: note for note in result["notes"]}


def test_both_hosts_compute_a_shared_path_and_one_is_lost_in_the_middle(hosts, ray, images, alone, tmp_path):
    result, notes = told(driver(hosts, images, tmp_path / "shared.h5", ray))
    assert (result["computed"], result["failed"]) == (COUNT, 0)
    assert notes["ray-workers"]["hosts"] == ["host-one", "host-two"]
    assert notes["ray-workers"]["images_by_address"].keys() == set(hosts.addresses.values())
    assert rows_of(tmp_path / "shared.h5") == alone

    names = sorted(path.name for path in images.iterdir())
    (tmp_path / "web").mkdir()
    for name in names:
        (tmp_path / "web" / name).write_bytes((images / name).read_bytes())
    (tmp_path / "web" / "list.csv").write_text("\n".join(["image", *names]))
    where = ["--bind", hosts.addresses[1], "--directory", str(tmp_path / "web"), "8000"]
    with open(tmp_path / "web.log", "w") as log:
        web = hosts.popen(1, sys.executable, "-u", "-m", "http.server", *where, stdout=log, stderr=log)
    wait_until_it_says(tmp_path / "web.log", "Serving HTTP", web)
    url = f"http://{hosts.addresses[1]}:8000/list.csv"
    result, notes = told(driver(hosts, url, tmp_path / "web.h5", ray))
    assert (result["computed"], result["failed"]) == (COUNT, 0)
    assert notes["ray-workers"]["images_by_address"].keys() == set(hosts.addresses.values())
    assert rows_of(tmp_path / "web.h5") == alone

    running = driver(hosts, images, tmp_path / "cut.h5", ray)
    wait_for_a_commit(tmp_path / "cut.h5", running, beyond=20)
    hosts.cut(2)
    result, notes = told(running)
    assert (result["computed"], result["failed"]) == (COUNT, 0)
    assert notes["ray-workers-lost"]["repeated"] >= 1
    assert rows_of(tmp_path / "cut.h5") == alone
    with FeatureCache(tmp_path / "cut.h5") as cache:
        assert len(set(cache.images.key)) == len(cache.images) == COUNT


def test_torchrun_over_two_hosts_writes_the_shards_of_one_cache(hosts, images, alone, tmp_path):
    (tmp_path / "shards").mkdir()
    runs = []
    for host in hosts.addresses:
        group = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={host - 1}"]
        group += [f"--master-addr={hosts.addresses[1]}", "--master-port=29511"]
        ours = ["extract", str(images), "-o", f"{tmp_path}/shards/x.h5", "--shard", "auto"]
        ours += ["--backbone", NET["backbone"], *FLAGS]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *group, "-m", "bottleneck"]
        runs.append(hosts.popen(host, *torchrun, *ours, stdout=-1, stderr=-2, text=True))
    for run in runs:
        out, _ = run.communicate()
        assert run.returncode == 0, out
    shards = sorted((tmp_path / "shards").glob("*.h5"))
    assert len(shards) == 2
    merge(shards, tmp_path / "merged.h5")
    assert rows_of(tmp_path / "merged.h5") == alone
