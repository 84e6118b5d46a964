"""Fingerprints are equal exactly where recipes are, and differences are named with both values."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from bottleneck.errors import CacheError, FingerprintError
from bottleneck.store.spec import CacheSpec, NodeSpec, canonical_json, differences, require_equal
from tests.helpers.json_values import JSON
from tests.helpers.world import MAP, SPEC, VIEWED, A, B

OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)


@given(OBJECTS, OBJECTS)
def test_fingerprints_are_equal_where_the_recipes_are(a, b):
    same = CacheSpec(a, {}).fingerprint == CacheSpec(b, {}).fingerprint
    assert same == (canonical_json(a) == canonical_json(b))


@given(OBJECTS)
def test_the_order_of_keys_does_not_matter(value):
    shuffled = dict(reversed(value.items()))
    assert CacheSpec(value, {}).fingerprint == CacheSpec(shuffled, {}).fingerprint


def test_a_tuple_and_the_list_read_back_are_one_recipe():
    assert CacheSpec({"mean": (1, 2)}, {}) == CacheSpec({"mean": [1, 2]}, {})


@pytest.mark.parametrize(
    "change",
    [
        {"pool": "max"},
        {"dtype": "float32"},
        {"precision": "bf16"},
        {"layout": "NLC"},
        {"node": "x"},
        {"calibration": {"n": 1}},
    ],
)
def test_each_setting_of_a_node_is_in_its_fingerprint(change):
    other = NodeSpec.from_json(A.to_json() | change)
    assert other.fingerprint(SPEC) != A.fingerprint(SPEC)


def test_views_are_in_the_fingerprint_of_the_views_alone():
    plain = NodeSpec(VIEWED.node, VIEWED.pool, VIEWED.shape)
    assert plain.fingerprint(SPEC) == VIEWED.fingerprint(SPEC)
    reseeded = NodeSpec.from_json(VIEWED.to_json() | {"views": {"count": 3, "seed": 2}})
    assert reseeded.fingerprint(SPEC, views=True) != VIEWED.fingerprint(SPEC, views=True)


@pytest.mark.parametrize("node", [A, B, MAP, VIEWED])
def test_a_node_survives_its_json(node):
    assert NodeSpec.from_json(node.to_json()) == node


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("botleneck", ["bottleneck"]),
        (" Bottleneck", ["bottleneck"]),
        ("block.6", ["blocks.6"]),
        ("conv_heads", ["blocks.6"]),
        ("blocks.5", []),  # another block, which can be extracted
        ("blocks.6@max", []),
        ("layer1", []),
    ],
)
def test_a_misspelt_node_is_recognised_and_another_one_is_not(name, meant):
    nodes = (
        NodeSpec("bottleneck", "native", (4,)),
        NodeSpec("blocks.6", "avg", (4,), aliases=("conv_head",)),
    )
    assert [node.node for node in nodes if node.may_be_meant(name)] == meant


@pytest.mark.parametrize(
    ("node", "pool", "name"),
    [
        ("layer3", "avg", "layer3"),
        ("layer3", "none", "layer3@none"),
        ("bottleneck", "native", "bottleneck"),
        ("x", "max", "x@max"),
    ],
)
def test_the_default_pool_is_not_in_the_name(node, pool, name):
    assert NodeSpec(node, pool, (4,)).name == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, "choose float16 or float32"),
        ({"shape": ()}, "sizes of at least 1"),
        ({"shape": (0,)}, "sizes of at least 1"),
        ({"views": {"seed": 1}}, "no positive 'count'"),
    ],
)
def test_a_node_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(CacheError, match=message):
        NodeSpec(**({"node": "n", "pool": "avg", "shape": (4,)} | arguments))


def test_a_description_without_its_fields_is_refused():
    with pytest.raises(CacheError, match="description"):
        NodeSpec.from_json({"node": "x"})


def test_differences_are_dotted_and_count_absent_fields():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": None}) == [
        "a.c",
        "d",
        "e",
    ]


@given(OBJECTS)
def test_nothing_differs_from_itself(value):
    assert differences(value, value) == []


def test_the_message_has_both_values_and_stays_one_line():
    cached = {"weights": {"sha256": "a" * 100, "file.bin": 1}, "n": 1}
    asked = {"weights": {"sha256": "b" * 100, "file.bin": 2}, "n": 1}
    with pytest.raises(FingerprintError) as caught:
        require_equal(cached, asked, "The cache", "Do this.")
    assert caught.value.fields == ("weights.file.bin", "weights.sha256")
    assert "weights.file.bin is 1 there, 2 here" in caught.value.message
    assert "…" in caught.value.message
    assert len(caught.value.message) < 300
