"""Any history of adding, changing, deleting, renaming, killing and resuming ends in the right cache."""

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bottleneck.store import committer
from bottleneck.store.reader import FeatureCache
from bottleneck.store.verify import Check
from bottleneck.store.writer import CacheWriter
from tests.helpers.world import MAP, ROOT, SPEC, VIEWED, A, B, World, content, row_of

NAMES = st.sampled_from(["a/1.jpg", "b/2.jpg", "c/3.jpg", "a/사진.png", "b/d/5.jpg", "c/%2F.jpg"])
CONTENTS = st.sampled_from([b"one", b"two", b"three", b"four", b"bad", b"bad too"])
NODES = {node.name: node for node in (A, B, MAP, VIEWED)}


def stacked(rows, cache, name):
    """Rows as an array (I, D), of the right shape where there are none."""
    return np.reshape(rows, (-1, *cache.nodes[name].shape))


class Histories(RuleBasedStateMachine):
    """Files change, runs are cut short or end; after each whole run the cache must be that of the files."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="histories-"))
        self.path = self.folder / "cache.h5"
        self.world = World()
        self.clock = 1  # of every content that was written: no two have one time
        self.has: set[str] = set()  # nodes of the finished cache
        self.rows: set[tuple[str, bytes]] = set()  # committed rows, by node and digest

    @initialize()
    def begin(self):
        self.world.put("a/0.jpg", b"zero")

    @rule(name=NAMES, data=CONTENTS)
    def add_or_change(self, name, data):
        self.clock += 1
        self.world.put(name, data, self.clock)

    @precondition(lambda self: self.world.files)
    @rule(data=st.data())
    def delete(self, data):
        del self.world.files[data.draw(st.sampled_from(self.world.keys))]

    @precondition(lambda self: self.world.files)
    @rule(data=st.data(), name=NAMES)
    def rename(self, data, name):
        self.world.files[name] = self.world.files.pop(data.draw(st.sampled_from(self.world.keys)))

    @precondition(lambda self: self.world.files)
    @rule(data=st.data(), name=NAMES)
    def copy(self, data, name):
        self.world.files[name] = self.world.files[data.draw(st.sampled_from(self.world.keys))]

    @rule(nodes=st.sets(st.sampled_from(sorted(NODES)), min_size=1), label=st.integers(0, 2))
    def run(self, nodes, label):
        self.world.computed.clear()
        summary = self.world.extract(self.path, [NODES[name] for name in sorted(nodes)], label)
        done = set(self.world.computed)
        assert len(done) == len(self.world.computed), "a row was computed twice"
        # The digest of a renamed image is known only once it is read, so where it lacks one row it gets all.
        assert {digest for _, digest in done} == {digest for _, digest in done - self.rows}
        whole = nodes | {name for name in self.has if not NODES[name].is_map}  # other maps may lack rows
        found = content(self.path, whole)
        assert found == self.world.expected([NODES[name] for name in sorted(whole)], label)
        assert summary.images == len(found["images"])
        assert summary.failed == len(found["failures"])
        assert not (self.folder / "cache.h5.parts").exists()
        self.has |= nodes
        kept = {row[1] for row in found["images"]}
        self.rows = {(name, digest) for name in whole for digest in kept}

    @rule(nodes=st.sets(st.sampled_from(sorted(NODES)), min_size=1), after=st.integers(0, 4))
    def kill(self, nodes, after):
        with CacheWriter(self.path, SPEC, [NODES[name] for name in sorted(nodes)], ROOT) as writer:
            self.world.feed(writer, stop_after=after)

    @precondition(lambda self: self.has)
    @rule()
    def verify(self):
        check = Check()
        check.cache(self.path)
        assert check.problems == []

    @precondition(lambda self: self.has)
    @invariant()
    def reader_never_sees_half_a_run(self):
        with FeatureCache(self.path) as cache:
            assert cache.finished
            for name in (name for name, node in cache.nodes.items() if not node.is_map):
                rows = [row_of(digest, cache.nodes[name]) for digest in cache.images.digests()]
                np.testing.assert_array_equal(cache.features(name).read(0, 99), stacked(rows, cache, name))

    def teardown(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def test_every_history_ends_in_the_right_cache(long, monkeypatch):
    monkeypatch.setattr(committer, "PART_ROWS", 3)
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=300 if long else 8,
            stateful_step_count=30 if long else 10,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=not long,
            phases=list(Phase) if long else [Phase.generate],  # shrinking takes minutes
        ),
    )
