"""Where training starts: the head's own logits, on a map that is exact enough for that."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bottleneck.backbones.section import find_cut
from bottleneck.errors import ArtifactError, CacheError, FitError
from bottleneck.heads.artifact import load_head
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import NodeSpec
from bottleneck.training.config import FinetuneConfig
from bottleneck.training.finetune_plan import FinetunePlan, open_job
from bottleneck.training.initial_head import StartComparison, logits_on, require_same_cache
from bottleneck.training.inputs import backbone_of
from bottleneck.training.labelled_splits import labelled_splits
from tests.helpers.fitted_cache import copied
from tests.helpers.heads import head
from tests.helpers.recorder import Recorder

INPUTS = torch.from_numpy(np.random.default_rng(0).uniform(0, 4, (20, 4)).astype(np.float32))


def start(found, weight=1.0, dtype="float16", logits=None, precision="fp32", calibration=None):
    """The comparison of a head on INPUTS with a network whose features are `found`."""
    node = NodeSpec("bottleneck", "avg", (4,), dtype, precision, "NC", calibration=calibration)
    steep = replace(head(), arrays={**head().arrays, "coef": weight * head().coef})
    logits = logits_on(steep, found) if logits is None else logits
    comparison = StartComparison(steep, node, INPUTS, found, logits, torch.zeros(len(INPUTS)))
    return comparison.difference, comparison.notes()


def test_rounding_within_the_bound_needs_no_word():
    difference, notes = start(INPUTS.half().float())
    assert 0 < difference <= 2e-2
    assert notes == ()


def test_rounding_that_the_head_makes_large_is_said():
    difference, notes = start(INPUTS.half().float(), weight=1000.0)
    assert difference > 2e-2
    assert "by rounding alone" in str(notes[0])
    assert "1000" in str(notes[0])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_features_are_refused(dtype):
    with pytest.raises(FitError, match=r"features by 1\.0e-02 of the greatest"):
        start(INPUTS + 0.01 * INPUTS.max(), weight=1000.0, dtype=dtype)


def test_other_layers_are_refused():
    with pytest.raises(FitError, match=r"the layers by 1\.0e"):
        start(INPUTS, logits=logits_on(head(), INPUTS) + 1)


INT8 = {"precision": "int8", "calibration": {"cosine": [0.9991]}}


def test_features_computed_in_int8_are_compared_as_their_engine_was():
    """The relative difference of this noise is 0.1; the bound of int8 is a cosine of 0.98, here of 0.96."""
    noise = torch.from_numpy(np.random.default_rng(1).normal(0, 0.2, INPUTS.shape).astype(np.float32))
    difference, notes = start(INPUTS + noise, **INT8)
    assert difference > 2e-2
    assert "the cached features were computed in int8" in notes[0].message
    assert "with cosine 0.99" in notes[0].message
    with pytest.raises(FitError, match=r"features with cosine -1\.0000"):
        start(-INPUTS, **INT8)


@pytest.fixture
def coarse(half_cache, tmp_path):
    """A cache in float16 with a map, which a test may change."""
    return copied(half_cache, tmp_path)


def exact_map(path, made_head, weight):
    """What was told, the map's type afterwards, and the node's."""
    with FeatureCache(path) as cache:
        splits, backbone = labelled_splits(cache.samples, "label"), backbone_of(cache)
        identity = cache.identity
    given, recorder = load_head(made_head), Recorder()
    given = replace(given, arrays={**given.arrays, "coef": weight * given.coef})
    cut = find_cut(backbone, "bottleneck", 1)
    plan = FinetunePlan(path, identity, given, given, splits, backbone, cut)
    with open_job(plan, FinetuneConfig(device="cpu"), path.parent, recorder):
        pass
    with FeatureCache(path) as cache:
        return recorder.told, cache.node("features.block3@none").dtype, cache.node("bottleneck").dtype


def test_a_map_that_is_exact_enough_stays(coarse, made_head):
    assert exact_map(coarse, made_head, 1.0) == ([], "float16", "float16")


def test_a_map_too_coarse_for_the_head_is_kept_in_float32(coarse, made_head):
    told, of_map, of_features = exact_map(coarse, made_head, 3000.0)
    assert (of_map, of_features) == ("float32", "float16")
    assert "moves the head's logits" in told[0]


def test_a_coarse_map_stays_where_its_images_are_gone(coarse, made_head, images):
    gone = images / "test" / "blue" / "2.png"
    kept = gone.read_bytes()
    gone.unlink()
    try:
        with pytest.raises(CacheError, match="is gone"):
            exact_map(coarse, made_head, 3000.0)
    finally:
        gone.write_bytes(kept)
    with FeatureCache(coarse) as cache:
        assert cache.node("features.block3@none").dtype == "float16"


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"node": "block1"}, CacheError, "block1"),
        ({"node": "bottleneck@none"}, CacheError, "bottleneck@none"),
        ({}, ArtifactError, "inputs from node bottleneck"),
    ],
)
def test_the_head_of_another_node_is_refused(made_cache, made_head, changed, error, message):
    """A node that the cache lacks, or a head of another width under the name of a node that it has."""
    first = load_head(made_head)
    arrays = dict(first.arrays)
    if not changed:
        arrays = {
            name: array[..., :-1] if array.shape[-1] == first.n_features else array
            for name, array in arrays.items()
        }
    other = replace(first, arrays=arrays, **changed)
    with FeatureCache(made_cache) as cache, pytest.raises(error, match=message):
        require_same_cache(other, cache, cache.samples)
