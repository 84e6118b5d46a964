"""The engine that computed features continues them; another precision than asked for is told."""

import json
import re
import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open

from bottleneck import FeatureCache, extract, similar
from bottleneck.cli.main import group
from bottleneck.engines import base
from bottleneck.engines.reference import COSINES
from bottleneck.errors import EngineError, FingerprintError
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.store.cachefile import CacheFile
from bottleneck.store.layout import seal
from bottleneck.store.merge import merge
from bottleneck.store.reader import describe
from bottleneck.studies.similar.neighbours import named_images

NETWORK = {"backbone": "small_cnn", "weights": "none", "image_size": 32, "depth": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("images") / "a", np.random.default_rng(0)
    folder.mkdir()
    for number in range(12):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder.parent


def test_new_images_join_int8_features_of_several_nodes(folder, tmp_path, monkeypatch):
    built = []

    def build_and_note(*arguments, **settings):
        built.append(base_build(*arguments, **settings))
        return built[-1]

    base_build = base.build_engine
    monkeypatch.setattr(base, "build_engine", build_and_note)
    nodes, path = ("features.block1", "bottleneck"), tmp_path / "c.h5"  # not in the order of their names
    exact = extract(folder, tmp_path / "exact.h5", nodes=nodes, **NETWORK)
    extract(folder, path, nodes=nodes, precision="int8", force=True, limit=8, batch_size=4, **NETWORK)
    result = extract(folder, path)
    assert (result.computed, result.reused, exact.computed) == (4, 8, 12)
    with FeatureCache(path) as cache, FeatureCache(exact.cache) as other:
        first, second = (cache.nodes[name] for name in nodes)
        assert (first.precision, first.calibration) == ("int8", second.calibration)
        assert describe(path)["nodes"]["bottleneck"]["calibration"] == first.calibration
        info = CliRunner().invoke(group, ["cache", "info", str(path)], env={"COLUMNS": "200"})
        assert "least cosine" in info.output
        assert f"{min(first.calibration['cosine']):.4f}" in info.output
        assert [engine.calibration for engine in built[1:]] == [first.calibration] * 2  # one for each run
        for name in nodes:
            rows, truth = (each.to_numpy(name)[0].astype(float) for each in (cache, other))
            lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(truth, axis=1)
            assert ((rows * truth).sum(axis=1) / lengths).min() > 0.9


def test_an_int8_graph_that_is_gone_is_made_again_of_the_images_of_the_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "user"))
    images = shutil.copytree(folder, tmp_path / "images")
    last = shutil.move(images / "a" / "9.png", tmp_path / "9.png")
    path = extract(images, tmp_path / "c.h5", precision="int8", force=True, **NETWORK).cache
    shutil.rmtree(tmp_path / "user" / "graphs")
    found = similar(path, [str(last)], count=1, force=True)
    used = {"engine": "onnxruntime", "precision": "int8", "nodes": ["bottleneck"]}
    assert (found.to_json()["engines"], found.to_json()["precisions"]) == ([used], {"bottleneck": "int8"})
    shutil.rmtree(tmp_path / "user" / "graphs")
    shutil.move(last, images / "a" / "new.png")
    assert extract(images, path, force=True).computed == 1
    (query,) = similar(path, ["a/new.png"], count=1).neighbours()
    ((_, neighbours),) = found.neighbours()
    assert query[1][0] == pytest.approx(neighbours[0], abs=1e-3)


def forget_int8(user):
    """Delete the int8 graphs of a user's cache folder; exporting the others again would take seconds."""
    for path in (user / "graphs").iterdir():
        with safe_open(path, framework="numpy") as file:
            if "pixels_sha256" in json.loads(file.metadata()["details"]):
                path.unlink()


def without(folder, images, *numbers):
    """Copy a folder to `images`, and move some of its images out of it."""
    shutil.copytree(folder, images)
    for number in numbers:
        shutil.move(images / "a" / f"{number}.png", images.parent / f"{number}.png")
    return images


@pytest.fixture(scope="module")
def user(folder, tmp_path_factory):
    """A user's cache folder with the float32 graph of the network of `grown`."""
    place = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("BOTTLENECK_CACHE", str(place / "user"))
        extract(without(folder, place / "images", 3, 5), place / "c.h5", **NETWORK)
    return place / "user"


@pytest.fixture
def grown(folder, user, tmp_path, monkeypatch):
    """An int8 cache with an image added after its calibration and no graph; its folder, and a new image."""
    monkeypatch.setenv("BOTTLENECK_CACHE", str(shutil.copytree(user, tmp_path / "user")))
    images = without(folder, tmp_path / "images", 3, 5)
    path = extract(images, tmp_path / "c.h5", precision="int8", force=True, **NETWORK).cache
    shutil.move(tmp_path / "3.png", images / "a" / "3.png")
    assert extract(images, path, force=True).computed == 1
    shutil.copy(path, tmp_path / "twin.h5")
    twin = shutil.copytree(images, tmp_path / "twin")
    shutil.copy(tmp_path / "5.png", twin / "a" / "5.png")
    assert extract(twin, tmp_path / "twin.h5", force=True).computed == 1  # by the graph that is still there
    forget_int8(tmp_path / "user")
    return path, images, tmp_path / "5.png"


def rows_of(path):
    with FeatureCache(path) as cache:
        return dict(zip(cache.images.key, cache.to_numpy()[0], strict=True))


@pytest.mark.parametrize("place", ["same", "moved"])
def test_an_int8_cache_that_got_images_since_goes_on_without_its_graph_to_the_same_bits(
    grown, place, tmp_path
):
    path, images, image = grown
    if place == "moved":
        images = images.rename(tmp_path / "moved")
    shutil.copy(image, images / "a" / "5.png")
    assert extract(images, path, force=True).computed == 1
    rows, expected = rows_of(path), rows_of(tmp_path / "twin.h5")
    assert len(rows) == 12
    assert all(np.array_equal(rows[key], expected[key]) for key in expected)


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_node_alone_has_the_rows_of_the_graph_that_made_it_with_others(
    folder, tmp_path, monkeypatch, is_stored
):
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "user"))
    images, nodes = without(folder, tmp_path / "images", 3), ("features.block1", "bottleneck")
    settings = {"precision": "int8", "force": True, "dtype": "float32", **NETWORK}
    path = extract(images, tmp_path / "c.h5", nodes=nodes, **settings).cache
    alone = {}
    for name in nodes:
        if not is_stored:
            forget_int8(tmp_path / "user")
        config = ExtractConfig(nodes=(name,), engine=EngineConfig(force=True))
        with FeatureCache(path) as cache:
            found = named_images(cache, [str(tmp_path / "3.png")], config)
        assert [one["nodes"] for one in found.engines] == [[name]]
        alone[name] = found.rows.read(0, 1)[0]
    graphs = len([*(tmp_path / "user" / "graphs").iterdir()])
    shutil.copy(tmp_path / "3.png", images / "a" / "3.png")
    assert extract(images, path, force=True).computed == 1
    with FeatureCache(path) as cache:
        (row,) = np.flatnonzero(cache.images.key == "a/3.png")
        for name in nodes:
            assert np.array_equal(cache.to_numpy(name)[0][row], alone[name])
    assert len([*(tmp_path / "user" / "graphs").iterdir()]) == graphs == 2  # in float32 and in int8


def test_two_names_of_a_node_are_one_output_of_its_int8_graph(folder, tmp_path, monkeypatch):
    """The graph had the node twice, with a cosine for each: it was not found by the nodes of the cache."""
    built = []
    build = base.build_engine
    monkeypatch.setattr(
        base, "build_engine", lambda *given, **named: built.append(1) or build(*given, **named)
    )
    names = ("features", "features.block2", "bottleneck")
    path = tmp_path / "c.h5"
    extract(folder, path, nodes=names, precision="int8", force=True, **NETWORK)
    with FeatureCache(path) as cache:
        assert sorted(cache.nodes) == ["bottleneck", "features"]
        assert {len(node.calibration["cosine"]) for node in cache.nodes.values()} == {2}
    assert len(built) == 1


def test_calibration_images_are_found_under_another_name(grown):
    path, images, image = grown
    (images / "a" / "7.png").rename(images / "a" / "renamed.png")
    assert extract(images, path).computed == 0
    assert similar(path, [str(image)], count=1, force=True).neighbours()


def test_calibration_images_that_are_gone_or_changed_are_named(grown):
    path, images, image = grown
    shutil.copy(image, images / "a" / "7.png")
    (images / "a" / "8.png").unlink()
    with pytest.raises(EngineError, match=r"2 of 10 calibration images are gone from .*a/7\.png") as error:
        similar(path, [str(image)], count=1, force=True)
    assert "Put missing images back" in str(error.value)
    with FeatureCache(path) as cache:  # a run that loses a calibration image drops its row
        assert "a/8.png" in cache.images.key
    shutil.rmtree(images / "a")
    with pytest.raises(
        EngineError, match="neither that graph nor its calibration images are on this machine: "
    ):
        similar(path, [str(image)], count=1, force=True)


def test_calibration_images_whose_rows_were_removed_are_counted(grown, tmp_path):
    path, images, image = grown
    (images / "a" / "8.png").unlink()
    assert extract(images, path).removed == 1
    with pytest.raises(EngineError, match=r"1 of 10 calibration images is no longer in "):
        similar(path, [str(image)], count=1, force=True)


def test_an_int8_cache_that_names_no_calibration_images_goes_on_while_none_was_added(
    folder, user, tmp_path, monkeypatch
):
    """So do files of earlier releases; images added since are told by an error."""
    monkeypatch.setenv("BOTTLENECK_CACHE", str(shutil.copytree(user, tmp_path / "user")))
    images = without(folder, tmp_path / "images", 3, 5)
    path = extract(images, tmp_path / "c.h5", precision="int8", force=True, **NETWORK).cache
    with h5py.File(path, "r+") as file:
        del file["features/bottleneck"].attrs["calibrated_on"]
        seal(file)
    forget_int8(tmp_path / "user")
    shutil.copy(tmp_path / "3.png", images / "a" / "3.png")
    assert extract(images, path, force=True).computed == 1
    forget_int8(tmp_path / "user")
    with pytest.raises(
        EngineError, match=r"neither that graph nor .* the images there are others or give other"
    ):
        similar(path, [str(tmp_path / "5.png")], count=1, force=True)


def test_a_merged_cache_names_the_calibration_images_that_either_names(grown, tmp_path):
    path, _, _ = grown
    unnamed = shutil.copy(path, tmp_path / "unnamed.h5")
    with h5py.File(unnamed, "r+") as file:
        named = json.loads(file["features/bottleneck"].attrs["calibrated_on"])
        del file["features/bottleneck"].attrs["calibrated_on"]
        seal(file)
    merge([unnamed, path], tmp_path / "both.h5")
    with FeatureCache(tmp_path / "both.h5") as cache:
        assert len(named) == 10
        assert list(cache.nodes["bottleneck"].calibrated_on) == named


def test_fast_on_features_in_float32_is_told(folder, tmp_path):
    path = tmp_path / "c.h5"
    extract(folder, path, limit=8, **NETWORK)
    result = extract(folder, path, precision="fast")
    assert result.computed == 4
    assert "precision-of-cache" in [note.code for note in result.notes]


def test_fast_without_a_unit_for_16_bits_is_told(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("bottleneck.engines.base.computes_bf16", lambda: False)
    result = extract(folder, tmp_path / "c.h5", precision="fast", **NETWORK)
    (note,) = [note for note in result.notes if note.code == "fast-is-fp32"]
    assert note.message.endswith("this processor has no unit for bfloat16 that OpenVINO can use.")
    with FeatureCache(result.cache) as cache:
        assert cache.nodes["bottleneck"].precision == "fp32"


def test_the_engine_and_its_precision_are_printed(folder, tmp_path):
    path, nodes = str(tmp_path / "c.h5"), ("--node", "bottleneck", "--node", "features.block1")
    flags = ("--backbone", "small_cnn", "--image-size", "32", "--depth", "2", "-o", path, "--force")
    command = ("extract", str(folder), *flags, *nodes, "--precision", "int8", "--json")
    run = CliRunner().invoke(group, command)
    result = json.loads(run.stdout)
    (used,) = result["engines"]
    assert used == {"engine": result["engine"], "precision": "int8", "nodes": sorted(nodes[1::2])}
    assert result["precisions"] == {"bottleneck": "int8", "features.block1": "int8"}
    again = CliRunner().invoke(group, ("extract", str(folder), "-o", path), env={"COLUMNS": "200"})
    assert re.search(r"engine +│ not needed", again.output)
    assert re.search(r"node bottleneck +│ \d+ in int8", again.output)
    plain = str(tmp_path / "plain.h5")
    command = ("extract", str(folder), *flags[:6], "-o", plain)
    shown = CliRunner().invoke(group, command, env={"COLUMNS": "200"})
    assert re.search(r"engine +│ (onnxruntime|openvino) in fp32", shown.output)


def test_an_engine_out_of_its_bound_is_used_by_force_alone_and_told(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(COSINES, "int8", 1.1)
    with pytest.raises(EngineError, match=r"at least 1\.1 is needed"):
        extract(folder, tmp_path / "c.h5", precision="int8", **NETWORK)
    result = extract(folder, tmp_path / "c.h5", precision="int8", force=True, **NETWORK)
    (note,) = [note for note in result.notes if note.code == "engine-forced"]
    assert note.changes_result
    assert "from onnxruntime in int8, cosine" in note.message


def test_a_node_that_is_refused_in_the_precision_of_the_cache_is_computed_in_fp32(
    folder, tmp_path, monkeypatch
):
    path, node = tmp_path / "c.h5", "features.block1@none"
    exact = extract(folder, tmp_path / "exact.h5", nodes=("bottleneck", node), limit=8, **NETWORK)
    extract(folder, exact.cache)
    extract(folder, path, nodes=("bottleneck",), precision="int8", force=True, limit=8, **NETWORK)
    monkeypatch.setitem(COSINES, "int8", 1.1)
    with pytest.raises(EngineError, match=r"at least 1\.1 is needed"):  # it was asked for
        extract(folder, path, nodes=(node,), precision="int8", limit=8)
    result = extract(folder, path, nodes=(node,), limit=8)
    (note,) = [note for note in result.notes if note.code == "node-in-fp32"]
    assert f"{node} is computed in fp32, the cache's other features in int8: Engine" in note.message

    added = extract(folder, path, force=True)  # each node goes on in its own precision
    assert (added.computed, added.engine) == (4, "onnxruntime")
    with FeatureCache(path) as cache, FeatureCache(exact.cache) as other:
        assert {name: each.precision for name, each in cache.nodes.items()} == {
            "bottleneck": "int8",
            node: "fp32",
        }
        rows, truth = (each.features(node).read(0, 12) for each in (cache, other))
        np.testing.assert_allclose(rows, truth, rtol=2e-3, atol=1e-3)
    with pytest.raises(FingerprintError, match='precision is "fp32" there, "int8" here'):
        extract(folder, path, nodes=(node,), precision="int8")
    assert extract(folder, path, precision="int8").reused == 12  # the command that made the cache


class InBf16:
    """An engine that stands for one in bf16, which not every processor has."""

    precision = "bf16"

    def __init__(self, engine, name):
        self._engine, self.name = engine, name
        compared = {"cosine": [0.9999], "engine": name, "images": 12, "method": "bfloat16"}
        self.calibration = compared if name == "openvino" else None
        self.agreement = {12: 0.9999}

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def __call__(self, pixels):
        return self._engine(pixels)


def test_a_new_node_keeps_the_engine_it_was_described_with_beside_one_of_torch(folder, tmp_path, monkeypatch):
    """New images need both nodes; those of the cache the new one alone. All rows are of the same engine."""
    build = base.build_engine

    def build_bf16(*arguments, engine, precision, calibration, **settings):
        if precision != "bf16":
            return build(*arguments, engine=engine, precision=precision, calibration=calibration, **settings)
        exact = build(*arguments, engine="torch", precision="fp32", calibration=None, **settings)
        return InBf16(exact, "openvino" if engine == "auto" else engine)

    monkeypatch.setattr(base, "build_engine", build_bf16)
    path = tmp_path / "c.h5"
    extract(folder, path, precision="bf16", engine="torch", limit=8, **NETWORK)
    result = extract(folder, path, nodes=("bottleneck", "features.block1"))
    assert result.computed == 12
    with CacheFile(path) as file:
        assert file.engines == {"bottleneck": {"torch"}, "features.block1": {"openvino"}}
        assert file.nodes["features.block1"].calibration["engine"] == "openvino"
