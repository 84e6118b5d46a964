"""Flags against the cache: what is adopted, what is added, what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError, FingerprintError
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.extraction.prepare import read_model_file
from bottleneck.extraction.settings import resolve, shared_views
from bottleneck.store.spec import CacheSpec, NodeSpec
from tests.helpers.heads import head

PATH = Path("x.h5")
PREPROCESS = Preprocess(8, 8, "bilinear", (0.5,) * 3, (0.5,) * 3)
SPEC = CacheSpec({"name": "small_cnn", "weights": "none", "seed": 3, "depth": 2}, PREPROCESS.to_json())
VIEWS = {"count": 2, "seed": 0}
HEAD = NodeSpec("bottleneck", "native", (4,), dtype="float32", precision="int8")
BLOCK = NodeSpec("block1", "avg", (4,), dtype="float32", precision="int8", views=VIEWS)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"name": "my_code:net", "weights": "module"}, r"--backbone my_code:net --trust-code\."),
        ({"name": "a; b", "weights": "file"}, r"--backbone 'a; b' --weights FILE\."),
        (
            {"name": "resnet18", "weights": "none", "seed": 7},
            r"--backbone resnet18 --weights none --seed 7\.",
        ),
        ({"name": "resnet18"}, "names no backbone and weights"),
        ({"weights": "DEFAULT"}, "names no backbone and weights"),
    ],
)
def test_a_head_without_a_network_names_the_flags_that_give_it(recipe, said, tmp_path):
    path = tmp_path / "head.safetensors"
    head(backbone=recipe).save(path)
    with pytest.raises(BackboneError, match=said):
        read_model_file(ExtractConfig(backbone=str(path)))


def against_cache(config):
    return resolve(config, PATH, SPEC, {"bottleneck": HEAD, "block1": BLOCK})


def test_a_new_cache_has_the_bottleneck_and_the_flags():
    settings = resolve(ExtractConfig(views=2, seed=5, engine=EngineConfig(precision="fp32")), PATH)
    assert (settings.nodes, settings.added) == ((), ("bottleneck",))
    assert (settings.views["count"], settings.views["seed"]) == (2, 5)
    assert settings.engine.precision == "fp32"


def test_flags_left_out_take_the_values_of_the_cache():
    settings = against_cache(ExtractConfig())
    assert settings.nodes == (HEAD, BLOCK)
    assert (settings.added, settings.views, settings.engine.precision) == ((), None, "int8")


def test_a_node_that_the_cache_lacks_is_added_in_another_type_if_requested():
    settings = against_cache(ExtractConfig(nodes=("block2", "bottleneck"), views=2))
    assert settings.added == ("block2",)
    assert settings.nodes == (replace(HEAD, views=VIEWS),)
    assert settings.views == VIEWS
    assert against_cache(ExtractConfig(nodes=("block2",), dtype="float16")).added == ("block2",)


def test_all_differing_flags_are_named_at_once():
    config = ExtractConfig(
        backbone="resnet18",
        seed=4,
        depth=1,
        dtype="float16",
        views=3,
        image_size=16,
        engine=EngineConfig(precision="fp32"),
    )
    with pytest.raises(FingerprintError) as refused:
        against_cache(config)
    assert set(refused.value.fields) == {
        "backbone.depth",
        "backbone.name",
        "backbone.seed",
        "dtype",
        "precision",
        "preprocess.resize",
        "preprocess.size",
        "views.count",
        "views.seed",
    }


def test_nodes_with_different_views_are_refused():
    """Views are made once for all nodes: rows of the second recipe would be those of the first."""
    other = replace(BLOCK, node="block2", views=VIEWS | {"seed": 9})
    assert shared_views([HEAD, BLOCK], PATH) == VIEWS
    with pytest.raises(FingerprintError, match=r"views\.seed is 0 there, 9 here.*'block2'"):
        resolve(ExtractConfig(), PATH, SPEC, {"block1": BLOCK, "block2": other})
