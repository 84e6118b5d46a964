"""A tiny source for tests of the store: files in a dict, and a "network" that hashes a file's bytes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bottleneck.files import FileStat
from bottleneck.samples import SampleTable, Target
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import CacheSpec, NodeSpec
from bottleneck.store.tables import objects
from bottleneck.store.writer import CacheWriter, Summary

SPEC = CacheSpec({"name": "hash", "weights": "none"}, {"size": 8, "mean": (0.5, 0.5, 0.5)})
A = NodeSpec("blocks.5", "avg", (5,))
B = NodeSpec("bottleneck", "native", (7,), dtype="float32")
MAP = NodeSpec("blocks.3", "none", (2, 3, 3), layout="NCHW")
VIEWED = NodeSpec("head", "avg", (4,), views={"count": 3, "seed": 1})
ROOT = "/photographs"
CTIME = 1_700_000_000_000_000_001  # ns; not a whole second


def digest_of(content: bytes) -> bytes:
    """Return the sha256, as the loader does."""
    return hashlib.sha256(content).digest()


def row_of(digest: bytes, node: NodeSpec, views: bool = False) -> np.ndarray:
    """Return an image's row: float32 values that float16 holds exactly."""
    seed = hashlib.sha256(digest + node.name.encode() + bytes([views])).digest()
    shape = node.views_shape if views else node.shape
    generator = np.random.default_rng(list(seed))
    return generator.integers(-2000, 2000, shape).astype(np.float32)


@dataclass
class World:
    """Files by key: (content, mtime_ns). Content that begins with b"bad" is no image."""

    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    computed: list[tuple[str, bytes]] = field(default_factory=list)
    engine: str = ""  # that computes rows; "" for one that is not told

    def put(self, key: str, content: bytes, mtime: int = 1) -> None:
        """Write a file."""
        self.files[key] = (content, mtime)

    @property
    def keys(self) -> list[str]:
        """Return the keys in the order of the source."""
        return sorted(self.files)

    def stat(self, key: str) -> FileStat:
        """Return the stat of a file: its mtime decides its ctime, its key its inode."""
        content, mtime = self.files[key]
        return FileStat(len(content), mtime, CTIME + mtime, zlib.crc32(key.encode()))

    def samples(self, label: int = 0) -> SampleTable:
        """Return one sample per file; its class is the first byte of its key, shifted by `label`."""
        keys = objects(self.keys)
        codes = np.array([(ord(key[0]) + label) % 3 for key in self.keys], np.int64)
        return SampleTable(
            key=keys,
            image=np.arange(len(keys))[:, None],
            split=objects(["val" if code == 2 else "train" for code in codes]),
            targets={"label": Target("label", "class", codes, ("x", "y", "한글"))},
            covariates=codes[:, None] * 0.5,
            covariate_names=("half",),
        )

    def feed(self, writer: CacheWriter, batch: int = 2, stop_after: int | None = None) -> None:
        """Carry out the writer's plan, as `extract` does; stop after `stop_after` images if given."""
        keys, left = self.keys, stop_after
        plan = writer.plan(keys, [self.stat(key) for key in keys])
        for work in plan.work:
            waiting: list[tuple[str, bytes]] = []
            claimed: set[bytes] = set()
            known = writer.known(work.nodes)
            for index in work.images:
                if left is not None and left <= 0:
                    return
                left = None if left is None else left - 1
                key, (content, _) = keys[index], self.files[keys[index]]
                digest = digest_of(content)
                if digest in known or digest in claimed:
                    writer.take_over(key, digest, self.stat(key))
                elif content.startswith(b"bad"):
                    writer.fail(key, "It is no image.", digest, self.stat(key))
                else:
                    claimed.add(digest)
                    waiting.append((key, digest))
                if len(waiting) == batch:
                    self._add(writer, work.nodes, waiting)
                    waiting = []
            if waiting:
                self._add(writer, work.nodes, waiting)

    def _add(self, writer: CacheWriter, names: Sequence[str], images: list[tuple[str, bytes]]) -> None:
        nodes = [writer.nodes[name] for name in names]
        digests = [digest for _, digest in images]
        self.computed += [(node.name, digest) for node in nodes for digest in digests]
        writer.add(
            [(key, digest, self.stat(key)) for key, digest in images],
            {node.name: np.stack([row_of(digest, node) for digest in digests]) for node in nodes},
            {
                node.name: np.stack([row_of(digest, node, views=True) for digest in digests])
                for node in nodes
                if node.views
            },
            engines=dict.fromkeys(names, self.engine) if self.engine else None,
        )

    def extract(self, path: Path, nodes: Sequence[NodeSpec] = (A,), label: int = 0, **finish) -> Summary:
        """Run a whole extraction."""
        with CacheWriter(path, SPEC, nodes, ROOT) as writer:
            self.feed(writer)
            return writer.finish(self.samples(label), **finish)

    def expected(self, nodes: Sequence[NodeSpec], label: int = 0) -> dict:
        """Return what `content` returns for a correct cache of these files."""
        good = [key for key in self.keys if not self.files[key][0].startswith(b"bad")]
        digests = {key: digest_of(self.files[key][0]) for key in good}
        samples = self.samples(label)
        kept = np.array([key in digests for key in self.keys], bool)
        values: dict = {
            "images": [(key, digests[key], self.stat(key)) for key in good],
            "failures": {key: "It is no image." for key in self.keys if key not in digests},
            "samples": list(samples.key[kept]),
            "split": list(samples.split[kept]),
            "label": samples.targets["label"].values[kept].tolist(),
            "covariates": samples.covariates[kept].tolist(),
        }
        for node in nodes:
            rows = [row_of(digests[key], node) for key in good]
            values[node.name] = np.array(rows, node.dtype).tobytes()
            if node.views:
                rows = [row_of(digests[key], node, views=True) for key in good]
                values[f"{node.name} views"] = np.array(rows, node.dtype).tobytes()
        return values


def content(path: Path, names: Collection[str] | None = None) -> dict:
    """Return everything that a reader sees of a cache; all its nodes, or those of `names`."""
    with FeatureCache(path) as cache:
        images, samples = cache.images, cache.samples
        values: dict = {
            "images": list(images.rows()),
            "failures": dict(cache.failures),
            "samples": list(samples.key),
            "split": list(samples.split),
            "label": samples.targets["label"].values.tolist() if samples.targets else [],
            "covariates": samples.covariates.tolist(),
        }
        assert samples.image[:, 0].tolist() == list(range(len(samples)))
        for name in cache.nodes if names is None else names:
            node = cache.node(name)
            values[name] = cache.features(name).read(0, len(images)).tobytes()
            if node.views:
                values[f"{name} views"] = cache.views(name).read(0, len(images)).tobytes()
        return values


def world_of(count: int) -> World:
    """Return `count` images, two copies of them, one file that is no image; one name is in Hangul."""
    world = World()
    for number in range(count):
        world.put(f"{'abc'[number % 3]}/{number:04}.jpg", f"image {number}".encode(), mtime=number)
    world.put("c/사진 😀.png", b"image 0", mtime=7)
    world.put("a/copy.jpg", b"image 1", mtime=8)
    world.put("b/bad.jpg", b"bad", mtime=9)
    return world
