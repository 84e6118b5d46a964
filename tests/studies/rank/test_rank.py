"""Ranking backbones: by scores, checked by heads, on the same samples only."""

import hashlib

import numpy as np
import pytest

from bottleneck.errors import BottleneckError, CacheError, FitError
from bottleneck.samples import SampleTable, Target
from bottleneck.store.spec import CacheSpec, NodeSpec
from bottleneck.store.writer import CacheWriter
from bottleneck.studies.rank.rank import rank

N, D, CLASSES = 90, 12, 3


def write_cache(path, apart, *, labels=None, seed=0):
    """A cache of a network that no one can load, its bottleneck telling the classes `apart`."""
    rng = np.random.default_rng(seed)
    codes = np.arange(N) % CLASSES if labels is None else labels
    centres = np.random.default_rng(5).normal(size=(CLASSES, D))
    rows = (apart * centres[codes] + rng.normal(size=(N, D))).astype(np.float32)
    keys = [f"{i:03d}.png" for i in range(N)]
    digests = [hashlib.sha256(key.encode()).digest() for key in keys]
    spec = CacheSpec({"name": f"nobody's {apart}", "weights": "file"}, {"size": 8})
    split = np.where(np.arange(N) % 4 == 0, "val", "train").astype(object)
    target = Target("label", "class", codes, tuple("abc"))
    table = SampleTable(np.array(keys, object), np.arange(N)[:, None], split, {"label": target})
    with CacheWriter(path, spec, [NodeSpec("bottleneck", "native", (D,))], "/nowhere") as writer:
        writer.plan(keys, [(1, 1)] * N)
        images = [(key, digest, (1, 1)) for key, digest in zip(keys, digests, strict=True)]
        writer.add(images, {"bottleneck": rows})
        writer.finish(table)
    return path


@pytest.fixture
def caches(tmp_path):
    return [write_cache(tmp_path / f"{apart}.h5", apart) for apart in (0.5, 3.0, 1.2)]


def test_the_backbone_that_tells_the_classes_apart_comes_first(caches):
    values = rank(caches).to_json()
    assert values["order"] == [str(caches[i]) for i in (1, 2, 0)]
    assert values["kendall_tau"] is None
    assert all(each["leep"] is None for each in values["scores"])
    for by in ("h_score", "knn"):
        assert rank(caches, by=by).to_json()["order"][0] == str(caches[1])


def test_check_correlates_scores_with_the_accuracy_of_heads(caches, tmp_path):
    values = rank(caches, check=True, output=tmp_path / "heads").to_json()
    accuracy = [each["accuracy"] for each in values["scores"]]
    assert accuracy == sorted(accuracy, reverse=True)
    assert values["kendall_tau"]["logme"] == pytest.approx(1.0)
    assert values["kendall_tau"]["leep"] is None


def test_caches_of_other_samples_are_not_compared(caches, tmp_path):
    labels = np.arange(N) % CLASSES
    labels[5] = 0
    other = write_cache(tmp_path / "other.h5", 1.0, labels=labels)
    with pytest.raises(FitError, match=r"005\.png"):
        rank([*caches, other])


def test_a_node_or_a_measure_that_is_not_there_is_named(caches):
    with pytest.raises(CacheError, match="layer9"):
        rank(caches, node="layer9")
    with pytest.raises(BottleneckError, match="logme, h_score, leep, knn"):
        rank(caches, by="beauty")
    with pytest.raises(FitError, match=r"label \(class\)"):
        rank(caches, target="age")
