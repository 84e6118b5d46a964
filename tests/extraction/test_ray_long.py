"""The long forms of the faults on a Ray cluster: four nodes, 1,000 images, kills at random."""

import random
import signal
from collections import Counter
from contextlib import nullcontext, suppress

import psutil
import pytest

from bottleneck import extract
from bottleneck.extraction import ray_cluster
from bottleneck.store.reader import FeatureCache
from tests.helpers.ray_nodes import Nodes, rows_of, started_driver, wait_for_a_commit, write_images
from tests.helpers.recorder import Recorder
from tests.helpers.tiny_network import NET

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.long

IMAGES, KILLS, DRIVERS = 1000, 50, 20


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("long") / "images", IMAGES)


@pytest.fixture(scope="module")
def alone(images):
    extract(images, images.parent / "alone.h5", **NET)
    return rows_of(images.parent / "alone.h5")


@pytest.fixture
def four(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", ray_cluster.short_folder() or "/tmp")
        (tmp_path / "faults").mkdir()
        nodes = Nodes(tmp_path / "faults", 3)
        yield nodes
        nodes.cluster.shutdown()


class Killer(Recorder):
    """Kills a worker's process or a whole node after every few images."""

    def __init__(self, nodes, every):
        super().__init__()
        self.nodes, self.every, self.killed = nodes, every, Counter()
        self._dice, self._done = random.Random(0), 0

    def step(self, name, total=None, unit="images"):
        return nullcontext(self._advance)

    def _advance(self, done):
        self._done += done
        if self._done < self.every * (self.killed.total() + 1) or self.killed.total() == KILLS:
            return
        workers = self.nodes.workers()
        if workers and self._dice.random() < 0.7:
            with suppress(psutil.NoSuchProcess):
                self._dice.choice(workers).kill()
            self.killed["processes"] += 1
        else:
            self.nodes.remove()
            self.nodes.add()
            self.killed["nodes"] += 1


def keys_once(path):
    """Whether each image has one row."""
    with FeatureCache(path) as cache:
        return len(set(cache.images.key)) == len(cache.images) == IMAGES


def test_fifty_kills_of_processes_and_nodes_lose_and_repeat_no_row(four, images, alone, tmp_path, capsys):
    killer = Killer(four, every=IMAGES // (KILLS + 2))
    result = extract(images, tmp_path / "ray.h5", ray=four.address, reporter=killer, **NET)
    assert killer.killed.total() == KILLS
    assert (result.computed, result.failed) == (IMAGES, 0)
    assert keys_once(tmp_path / "ray.h5")
    assert rows_of(tmp_path / "ray.h5") == alone
    with capsys.disabled():
        print("\n", killer.killed, [note.message for note in result.notes], f"{result.seconds:.0f} s")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_clusters_of_one_two_and_four_nodes_write_the_same_cache(images, alone, tmp_path, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", ray_cluster.short_folder() or "/tmp")
        (tmp_path / "faults").mkdir()
        nodes = Nodes(tmp_path / "faults", count)
        try:
            result = extract(images, tmp_path / "ray.h5", ray=nodes.address, **NET)
            for few in range(1, 34):
                folder = write_images(tmp_path / f"few{few}", few, seed=few) if few % 8 == 1 else None
                if folder is not None:
                    extract(folder, tmp_path / f"{few}.h5", ray=nodes.address, **NET)
                    extract(folder, tmp_path / f"{few}-alone.h5", **NET)
                    assert rows_of(tmp_path / f"{few}.h5") == rows_of(tmp_path / f"{few}-alone.h5")
        finally:
            nodes.cluster.shutdown()
    assert result.computed == IMAGES
    assert rows_of(tmp_path / "ray.h5") == alone


def test_a_driver_that_is_killed_twenty_times_resumes(four, images, alone, tmp_path, capsys):
    cache, dice, parts, killed = tmp_path / "ray.h5", random.Random(0), 0, 0
    four.switch("slow")
    for _ in range(DRIVERS):
        driver = started_driver(images, cache, four.address)
        parts = wait_for_a_commit(cache, driver, beyond=parts + dice.randrange(6))
        driver.kill()
        driver.communicate()
        killed += driver.returncode == -signal.SIGKILL
    assert killed == DRIVERS
    four.repair()
    result = extract(images, cache, ray=four.address, **NET)
    assert result.images == IMAGES
    assert result.computed < IMAGES
    assert keys_once(cache)
    assert rows_of(cache) == alone
    with capsys.disabled():
        print("\n", killed, "drivers killed;", result.computed, "images left for the last run")
