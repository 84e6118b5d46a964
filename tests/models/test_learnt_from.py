"""How features were computed is read from a head, or found from the fingerprint of an older one."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from bottleneck import FeatureCache, evaluate, extract, fit_heads, load_model, predict
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.read_source import read_source
from bottleneck.errors import EngineError
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.models.attribution import Explainer
from bottleneck.models.export import export
from bottleneck.models.learnt_from import float32_notes, how_computed, unknown_notes
from bottleneck.names import STATE_PREFIX
from bottleneck.store.spec import CacheSpec, NodeSpec, vector_fingerprint
from tests.helpers.stripes import write_stripes

SPEC = CacheSpec({"name": "net", "weights": "w"}, {"size": 32})
CALIBRATED = {"method": "static minmax", "pixels_sha256": "0" * 64, "cosine": [0.99]}
OPENVINO = {"method": "bfloat16", "engine": "openvino 2026.4", "cosine": [0.999]}
ARRAYS = {name: np.ones(size, np.float32) for name, size in (("coef", (2, 4)), ("intercept", 2))}
ARRAYS |= {"mean": np.zeros(4, np.float32), "scale": np.ones(4, np.float32)}


def old_head(*nodes):
    """A head of an earlier release on `nodes`, (name, dtype, precision, calibration) of each."""
    parts = []
    for name, dtype, precision, calibration in nodes:
        node, _, pool = name.partition("@")
        pool = pool or ("native" if node == "bottleneck" else "avg")
        parts.append(NodeSpec(node, pool, (4,), dtype, precision, calibration=calibration))
    return HeadArtifact(
        kind="logistic",
        form="linear",
        arrays=ARRAYS,
        class_names=("a", "b"),
        node="+".join(name for name, *_ in nodes),
        backbone=SPEC.backbone,
        preprocess=SPEC.preprocess,
        fingerprint=SPEC.fingerprint,
        node_fingerprint=vector_fingerprint(parts, SPEC),
    )


BF16 = {"precision": "bf16", "calibration": None}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", ["bottleneck", "bottleneck@max", "features.3", "features.3@avg2"])
def test_the_fingerprint_tells_precisions_without_a_calibration(name, dtype):
    for precision in ("fp32", "fp16"):
        assert how_computed(old_head((name, dtype, precision, None))) == {}
    assert how_computed(old_head((name, dtype, "bf16", None))) == {name: BF16}
    assert unknown_notes(old_head((name, dtype, "bf16", None))) == []


def test_the_fingerprint_tells_the_precision_of_each_of_several_nodes():
    nodes = (("low", "float16", "fp32", None), ("bottleneck", "float16", "bf16", None))
    assert how_computed(old_head(*nodes)) == {"bottleneck": BF16}
    assert how_computed(old_head(*nodes, ("top", "float32", "fp16", None))) == {"bottleneck": BF16}


@pytest.mark.parametrize(
    "nodes",
    [
        [("bottleneck", "float16", "int8", CALIBRATED)],
        [("bottleneck", "float16", "bf16", OPENVINO)],
        [("low", "float16", "fp32", None), ("bottleneck", "float16", "int8", CALIBRATED)],
    ],
)
def test_what_the_fingerprint_does_not_tell_is_told_by_all_that_compute(nodes):
    head = old_head(*nodes)
    assert how_computed(head) is None
    for notes in (unknown_notes(head), float32_notes(head, "The exported file")):
        (note,) = notes
        assert (note.code, note.changes_result, note.details) == (
            "precision-not-recorded",
            True,
            {"node": head.node},
        )


def test_a_record_goes_before_the_fingerprint_and_a_trained_network_has_neither():
    head = replace(old_head(("a", "float16", "fp32", None)), computed={"a": BF16})
    assert how_computed(head) == {"a": BF16}
    assert how_computed(replace(head, computed={}, node_fingerprint="")) == {}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_int8_is_not_calibrated_on_the_images_to_predict(precision, tmp_path):
    """Two images predicted together would change each other: the command says so before it reads any."""
    record = {"precision": precision, "calibration": CALIBRATED if precision == "int8" else None}
    head = replace(
        old_head(("bottleneck", "float16", "fp32", None)),
        preprocess=Preprocess(16, 16, "bilinear", (0.5,), (0.5,), "L").to_json(),
        computed={} if precision == "fp32" else {"bottleneck": record},
    )
    for name, trained in (("head", head), ("model", replace(head, node_fingerprint="", computed={}))):
        path = trained.save(tmp_path / f"{name}.safetensors")
        if precision == "int8" and name == "head":
            assert load_model(path, precision="int8").head.computed == {"bottleneck": record}
            continue
        for run, sources in ((load_model, ()), (predict, ("absent",)), (evaluate, ("absent",))):
            with pytest.raises(EngineError, match=r"would depend on the other images.*Leave --precision out"):
                run(path, *sources, precision="int8")
        assert load_model(path, precision="int8", force=True)


@pytest.mark.parametrize("count", [4, 40])
def test_of_many_nodes_side_by_side_those_alike_are_known(count):
    """All combinations would be tried for ever; mostly one cache has all nodes in one precision."""
    nodes = [(f"n{i}", "float16", "fp32", None) for i in range(count)]
    assert (how_computed(old_head(*nodes)), unknown_notes(old_head(*nodes))) == ({}, [])
    in_bf16 = [(name, dtype, "bf16", None) for name, dtype, *_ in nodes]
    assert how_computed(old_head(*in_bf16)) == {name: BF16 for name, *_ in nodes}
    mixed = old_head(*nodes[1:], in_bf16[0])
    assert how_computed(mixed) is None
    assert "may be in int8" in unknown_notes(mixed)[0].message


def rewritten(head, path, **fields):
    """Write a head file again with other fields, and the statistics of its random network."""
    tensors = load_file(head).items()
    network = {name.removeprefix(STATE_PREFIX): t for name, t in tensors if name.startswith(STATE_PREFIX)}
    return replace(load_head(head), **fields).save(path, network)


@pytest.fixture(scope="module")
def torch_bf16(tmp_path_factory):
    """A folder of images, its cache in bf16 of torch, and a head on it as an earlier release wrote it."""
    folder = tmp_path_factory.mktemp("bf16")
    source = write_stripes(folder / "images", images=8)
    settings = {"backbone": "small_cnn", "depth": 1, "image_size": 16, "dtype": "float32"}
    cache = extract(source, folder / "c.h5", engine="torch", precision="bf16", **settings).cache
    (head,) = fit_heads(cache, output=folder / "heads").heads
    old = rewritten(head["path"], folder / "old.safetensors", computed={})
    return source, cache, old


def test_an_old_head_on_bf16_of_torch_computes_bf16(torch_bf16):
    source, cache, path = torch_bf16
    model, opened = load_model(path, engine="torch"), read_source(source)
    rows, features, _ = model.inputs(opened)
    with FeatureCache(cache) as stored:
        cached = dict(zip(stored.images.key, stored.to_numpy()[0], strict=True))
    keys = [opened.images[opened.samples.image[row, 0]] for row in rows]
    np.testing.assert_allclose(features, [cached[key] for key in keys], rtol=1e-5, atol=1e-5)
    assert model.trunk.notes == ()
    used = [{"engine": "torch", "precision": "bf16", "nodes": ["bottleneck"]}]
    for found in (predict(path, source, engine="torch"), evaluate(path, source, engine="torch")):
        assert (found["engines"], found["precisions"]) == (used, {"bottleneck": "bf16"})
    found = evaluate(path, cache)
    assert (found["engines"], found["precisions"]) == ([], {"bottleneck": "bf16"})


def test_an_old_head_on_int8_is_told_where_features_are_computed_alone(torch_bf16, tmp_path):
    source, cache, path = torch_bf16
    head = load_head(path)
    with FeatureCache(cache) as stored:
        node = replace(stored.nodes["bottleneck"], precision="int8", calibration=CALIBRATED)
        assert head.node_fingerprint == stored.vector_fingerprint("bottleneck")
        old = rewritten(path, tmp_path / "old.safetensors", node_fingerprint=node.fingerprint(stored.spec))
    explainer = Explainer(load_model(old, engine="torch"))
    told = [
        predict(old, source, engine="torch")["notes"],
        evaluate(old, source, engine="torch")["notes"],
        export(old, format="torch", output=tmp_path / "m.pt2").notes,
        explainer.notes,
    ]
    assert [[note.code for note in notes].count("precision-not-recorded") for notes in told] == [1] * 4
    codes = [note.code for note in evaluate(path, cache)["notes"]]  # nothing is computed
    assert "precision-not-recorded" not in codes
