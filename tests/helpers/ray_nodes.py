"""A Ray cluster on this machine, drivers that run on it, and the rows that they write."""

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from bottleneck.data.preprocess import ELONGATED
from bottleneck.store.layout import parts_folder
from bottleneck.store.parts import read_log
from bottleneck.store.reader import FeatureCache
from tests.helpers.recorder import Recorder
from tests.helpers.tiny_network import NET

FAULTS = "BOTTLENECK_TEST_FAULTS"
SITE = Path(__file__).with_name("ray_faults")
FLAGS = ["--trust-code", "--engine", NET["engine"], "--image-size", "32", "--batch-size", "4"]


class Nodes:
    """A head and `count` more nodes of one core; `faults` is a folder for the faults of those.

    The head has faults of its own, by `poison` alone.
    """

    def __init__(self, faults: Path, count: int = 1) -> None:
        from ray.cluster_utils import Cluster

        self.faults, self._on_head, self._count = faults, faults.with_name(f"{faults.name}-head"), count
        self._on_head.mkdir()
        self.cluster = Cluster(initialize_head=True, head_node_args=self._node(self._on_head))
        self.address = self.cluster.address
        self.others = []
        self.repair()

    @staticmethod
    def _node(faults):
        path = os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {FAULTS: str(faults), "PYTHONPATH": path}
        size = {"num_cpus": 1, "object_store_memory": 80 << 20}
        return {**size, "include_dashboard": False, "env_vars": variables}

    def add(self):
        """Start a node with faults."""
        self.others.append(self.cluster.add_node(**self._node(self.faults)))

    def remove(self):
        """End a node, as a machine does that loses its power."""
        self.cluster.remove_node(self.others.pop(), allow_graceful=False)

    def switch(self, fault, on=True):
        """Switch a fault of the nodes on or off."""
        (self.faults / fault).touch() if on else (self.faults / fault).unlink(missing_ok=True)

    def poison(self, *keys):
        """Let these images end each worker that gets them, on the head too."""
        for folder in (self.faults, self._on_head):
            (folder / "poison").write_text("\n".join(keys))

    def workers(self):
        """The processes of workers on the nodes with faults."""
        found = [each for each in psutil.process_iter() if marked(each, FAULTS, str(self.faults))]
        return [each for each in found if "RayWorker" in each.name()]

    def repair(self):
        """Leave a cluster as it began."""
        for fault in (*self.faults.iterdir(), *self._on_head.iterdir()):
            fault.unlink()
        while len(self.others) < self._count:
            self.add()


class AfterImages(Recorder):
    """Calls `action` once, when `count` images are done."""

    def __init__(self, count, action):
        super().__init__()
        self._left, self._action = count, action

    def step(self, name, total=None, unit="images"):
        return nullcontext(self._advance)

    def _advance(self, done):
        before, self._left = self._left, self._left - done
        if before > 0 >= self._left:
            self._action()


def write_images(folder, count, seed=0):
    """Write images of noise as PNG files, so long that workers need no torch to resize them."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.integers(0, 256, (12, 12 * ELONGATED, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


def rows_of(path):
    with FeatureCache(path) as cache:
        rows = cache.features("bottleneck").read(0, len(cache.images))
        return dict(zip(cache.images.key, rows.tolist(), strict=True)), dict(cache.failures)


FEW_ROWS = """
from bottleneck.cli.main import main
from bottleneck.store import committer

committer.PART_ROWS = 4
main()
"""


def started_driver(folder, cache, address, **variables):
    """A process of the command that commits after every few rows."""
    given = ["extract", str(folder), "-o", str(cache), "--json", "--backbone", NET["backbone"], *FLAGS]
    return subprocess.Popen(
        [sys.executable, "-c", FEW_ROWS, *given, f"--ray={address}"],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_a_commit(cache, driver, beyond=0):
    """Return the number of parts in the log of an unfinished cache when it is more than `beyond`."""
    while driver.poll() is None:
        state = read_log(parts_folder(cache)) if parts_folder(cache).exists() else None
        if state is not None and len(state.parts) > beyond:
            return len(state.parts)
        time.sleep(0.02)
    raise AssertionError(driver.communicate())


def marked(process, variable, value):
    """Whether a living process has a variable of the environment with this value."""
    try:
        return process.environ().get(variable) == value and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
