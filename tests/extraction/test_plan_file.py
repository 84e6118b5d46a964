"""A plan fixes for all shards what merging would refuse; what differs from it is named before any row."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bottleneck import FeatureCache, extract
from bottleneck.backbones.registry import load_backbone
from bottleneck.cli.extract import command
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import ArtifactError, BackboneError, BottleneckError, CacheError, FingerprintError
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.plan_file import MOST_BYTES, ExtractionPlan, read_plan
from bottleneck.extraction.survey import survey
from bottleneck.store.merge import merge
from bottleneck.store.spec import CacheSpec, NodeSpec

RANDOM = {"backbone": "small_cnn", "weights": "none", "image_size": 32, "depth": 1, "batch_size": 1}
TORCH = {"engine": "torch", **RANDOM}
INT8 = {"precision": "int8", "force": True, **RANDOM}


@pytest.fixture
def folder(tmp_path):
    """Twelve images of two classes."""
    random = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path / "data"


@pytest.fixture
def plan(tmp_path):
    return str(tmp_path / "plan.json")


def shard(folder, plan, number, **options):
    cache = folder.parent / "x.h5"
    return extract(folder, cache, shard=f"{number}/2", plan_file=plan, **options)


def notes_of(result):
    return {note.code: note for note in result.notes}


@pytest.mark.parametrize("options", [TORCH, INT8], ids=["random", "int8"])
def test_shards_that_measure_on_images_are_merged_to_the_rows_of_one_process(folder, plan, options):
    one = extract(folder, folder.parent / "one.h5", **options)
    first, second = (shard(folder, plan, number, **options) for number in (1, 2))
    assert "plan-written" in notes_of(first)
    assert "plan-kept" in notes_of(second)
    merge([first.cache, second.cache], folder.parent / "x.h5")
    with FeatureCache(one.cache) as single, FeatureCache(folder.parent / "x.h5") as merged:
        assert merged.spec == single.spec
        assert merged.nodes == single.nodes
        rows = [each.features("bottleneck").read(0, 12) for each in (single, merged)]
        np.testing.assert_array_equal(*rows)
        assert list(merged.images.key) == list(single.images.key)


def test_a_dry_run_writes_the_plan_and_no_cache(folder, plan):
    would = survey(folder, folder.parent / "x.h5", ExtractConfig(plan_file=plan, backbone="small_cnn"))
    assert [note.code for note in would.notes] == ["plan-written"]
    assert not list(folder.parent.glob("x*"))
    assert read_plan(plan).nodes[0].shape == would.nodes["bottleneck"]
    result = shard(folder, plan, 1)
    assert notes_of(result)["plan-kept"].details == {"plan": plan, "precision": "fp32"}
    with FeatureCache(result.cache) as cache:
        assert cache.spec.backbone["name"] == "small_cnn"  # without a flag that says so


def test_a_shard_goes_on_with_the_same_plan(folder, plan):
    first = shard(folder, plan, 1, limit=8, **TORCH)
    assert (first.computed, shard(folder, plan, 1, limit=8).computed) == (first.images, 0)


def test_a_plan_is_made_of_a_cache_that_exists(folder, plan):
    extract(folder, folder.parent / "one.h5", **TORCH)
    extract(folder, folder.parent / "one.h5", plan_file=plan)
    done = [shard(folder, plan, number, **TORCH).cache for number in (1, 2)]
    merge([*done], folder.parent / "x.h5")


def rename(folder):
    (folder / "a" / "00.png").rename(folder / "a" / "99.png")


def remove(folder):
    (folder / "a" / "00.png").unlink()


def move_class(folder):
    (folder / "b").rename(folder / "c")


@pytest.mark.parametrize(
    ("change", "options", "said", "fields"),
    [
        (rename, {}, "images, samples.", ("images", "samples")),
        (remove, {}, "images (12 in the plan, 11 now)", ("images", "labels", "samples", "splits")),
        (move_class, {}, "labels", ("images", "labels", "samples")),
        (None, {"val_fraction": 0.5}, "splits.", ("splits",)),
        (None, {"limit": 6}, "samples (12 in the plan, 6 now)", ("images", "labels", "samples", "splits")),
        (None, {"shard": "2/3"}, "shards (2 in the plan, 3 now)", ("shards",)),
    ],
)
def test_a_source_that_changed_since_is_refused_and_the_part_is_named(
    folder, plan, change, options, said, fields
):
    shard(folder, plan, 1, **TORCH)
    if change:
        change(folder)
    with pytest.raises(FingerprintError) as caught:
        extract(folder, folder.parent / "y.h5", plan_file=plan, **({"shard": "2/2", **options}))
    assert caught.value.fields == fields
    assert said.rstrip(".") in caught.value.message
    assert not list(folder.parent.glob("y*"))


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"image_size": 48}, ("preprocess.resize", "preprocess.size")),
        ({"dtype": "float32"}, ("dtype",)),
        ({"backbone": "resnet18"}, ("backbone.name",)),
        ({"seed": 3}, ("backbone.seed",)),
        ({"precision": "bf16"}, ("precision",)),
    ],
)
def test_a_flag_that_differs_from_the_plan_is_refused_by_name(folder, plan, options, fields):
    shard(folder, plan, 1, **TORCH)
    with pytest.raises(FingerprintError, match=r"The plan .*plan\.json was made with") as caught:
        shard(folder, plan, 2, **options)
    assert set(fields) <= set(caught.value.fields)
    assert caught.value.hint.startswith("Leave the flag out to use the plan's setting")


def test_other_nodes_than_the_planned_are_refused(folder, plan):
    shard(folder, plan, 1, **TORCH)
    with pytest.raises(CacheError, match=r"is of bottleneck; this run asks for .*features\.block1"):
        shard(folder, plan, 2, nodes=("bottleneck", "features.block1"))


def test_a_cache_of_another_recipe_than_the_plan_is_refused(folder, plan, tmp_path):
    shard(folder, plan, 1, **TORCH)
    extract(folder, folder.parent / "x.h5", shard="2/2", image_size=48, backbone="efficientnet_lite0")
    with pytest.raises(FingerprintError, match=r"The plan .* beside .*x--shard-2-of-2\.h5"):
        shard(folder, plan, 2)


def test_a_network_that_another_machine_draws_otherwise_is_refused_at_the_start(folder, plan, monkeypatch):
    shard(folder, plan, 1, **TORCH)

    def other(name, **options):
        return load_backbone(name, **{**options, "seed": options["seed"] + 1})

    monkeypatch.setattr("bottleneck.backbones.registry.load_backbone", other)
    with pytest.raises(BackboneError, match=r"not the recorded network: .*weights_sha256"):
        shard(folder, plan, 2, engine="torch")


def test_int8_images_that_changed_since_are_refused_at_the_start(folder, plan, monkeypatch, tmp_path):
    shard(folder, plan, 1, **INT8)
    Image.new("RGB", (40, 40)).save(folder / "a" / "00.png")
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(BottleneckError, match="calibration"):
        shard(folder, plan, 2, **INT8)


def test_of_processes_that_start_together_one_makes_the_plan(folder, plan):
    results = {}

    def run(number):
        results[number] = shard(folder, plan, number, **TORCH)

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(code for result in results.values() for code in notes_of(result) if "plan" in code)
    assert codes == ["plan-kept", "plan-written"]
    merge([result.cache for result in results.values()], folder.parent / "x.h5")


@pytest.fixture(scope="module")
def record():
    """The content of a sound plan."""
    statistics = {"norm.running_var": np.ones(3, np.float32)}
    network = {"name": "small_cnn", "weights": "none", "calibrated": True}
    spec = CacheSpec(network, Preprocess(32, 32, "bicubic", (0.5,) * 3, (0.5,) * 3).to_json())
    nodes = (NodeSpec("bottleneck", "native", (8,)),)
    parts = {"images": "0" * 64, "labels": "1" * 64}
    return ExtractionPlan("/photographs", 12, 12, 2, parts, spec, nodes, statistics).to_json()


def test_a_plan_is_read_as_it_was_written(record, plan):
    Path(plan).write_text(json.dumps(record))
    assert read_plan(plan).to_json() == record


def edited(record, **fields):
    record = record | fields
    return json.dumps({name: value for name, value in record.items() if value != "absent"})


def edited_node(record, **fields):
    return edited(record, nodes=[record["nodes"][0] | fields])


HOSTILE = {
    "no JSON": lambda record: "\x80\x04",
    "deep": lambda record: "[" * 100_000,
    "a list": lambda record: "[]",
    "another format": lambda record: edited(record, format="x"),
    "a later version": lambda record: edited(record, format_version=2),
    "a field lacks": lambda record: edited(record, parts="absent"),
    "another field": lambda record: edited(record, code="import os"),
    "a part that is no sha256": lambda record: edited(record, parts={"images": "0" * 63}),
    "no nodes": lambda record: edited(record, nodes=[]),
    "a node of no shape": lambda record: edited(record, nodes=[{"node": "x", "pool": "avg", "shape": []}]),
    "a node that is a text": lambda record: edited(record, nodes=["x"]),
    "int8 without a calibration": lambda record: edited_node(record, precision="int8"),
    "a precision that does not exist": lambda record: edited_node(record, precision="int4"),
    "a precision to be chosen": lambda record: edited_node(record, precision="auto"),
    "a calibration that is a text": lambda record: edited_node(record, calibration="../../x"),
    "a number for a sum": lambda record: edited_node(
        record, precision="int8", calibration={"pixels_sha256": 7}
    ),
    "half a sum": lambda record: edited_node(
        record, precision="int8", calibration={"pixels_sha256": "0" * 32}
    ),
    "layers of a text": lambda record: edited_node(
        record, precision="int8", calibration={"float_layers": "3"}
    ),
    "an engine of a list": lambda record: edited_node(
        record, precision="bf16", calibration={"engine": ["x"]}
    ),
    "calibration images of no sum": lambda record: edited_node(record, calibrated_on=["../../x"]),
    "calibration images of a text": lambda record: edited_node(record, calibrated_on="x"),
    "views of no recipe": lambda record: edited_node(record, views={"count": 3, "scale": "x"}),
    "a type that is a list": lambda record: edited_node(record, node=["x"]),
    "a shape of texts": lambda record: edited_node(record, shape=["8"]),
    "a network without a name": lambda record: edited(record, backbone={"calibrated": True}),
    "a network of a list": lambda record: edited(record, backbone=record["backbone"] | {"name": ["x"]}),
    "a seed of a text": lambda record: edited(record, backbone=record["backbone"] | {"seed": "0"}),
    "preprocessing of no size": lambda record: edited(record, preprocess={}),
    "statistics that are no tensors": lambda record: edited(record, statistics="AAAA"),
    "statistics that are no base64": lambda record: edited(record, statistics="é"),
    "no statistics": lambda record: edited(record, statistics=None),
    "negative images": lambda record: edited(record, images=-1),
    "true shards": lambda record: edited(record, shards=True),
    "huge": lambda record: " " * (MOST_BYTES + 1),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_plan_is_refused_in_one_line(record, plan, kind):
    Path(plan).write_text(HOSTILE[kind](record), "utf-8")
    with pytest.raises(ArtifactError, match=r"The plan .*plan\.json cannot be used: ") as caught:
        read_plan(plan)
    assert len(caught.value.message) < 500


def test_a_plan_of_a_calibration_is_read_as_it_was_written(record, plan):
    calibration = {"pixels_sha256": "2" * 64, "float_layers": 3, "engine": "openvino 1", "cosine": [0.99]}
    node = record["nodes"][0] | {"precision": "int8", "calibration": calibration, "calibrated_on": ["3" * 64]}
    Path(plan).write_text(json.dumps(record | {"nodes": [node]}))
    assert read_plan(plan).to_json()["nodes"] == [node]


def test_a_plan_that_is_none_stops_a_shard_before_its_cache(folder, plan):
    Path(plan).write_text("[]")
    with pytest.raises(ArtifactError, match="cannot be used"):
        shard(folder, plan, 2, **TORCH)
    assert not list(folder.parent.glob("x*"))


def test_the_command_of_a_shard_prints_the_one_that_merges(folder, plan):
    cache = folder.parent / "my x.h5"
    words = [str(folder), "-o", str(cache), "--plan-file", plan, "--backbone", "small_cnn"]
    for number in (1, 2):
        shown = CliRunner().invoke(command, [*words, "--shard", f"{number}/2"]).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("Next")]
    stem = cache.with_suffix("")
    merging = f"bottleneck cache merge '{stem}'--shard-*-of-2.h5 -o '{cache}'"
    assert line == f"Next, with all 2 shards: {merging}"


def test_the_command_says_what_it_did(folder, plan):
    words = [str(folder), "--plan-file", plan, "--backbone", "small_cnn", "--dry-run", "--json"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0
    assert [note["code"] for note in json.loads(done.stdout)["notes"]] == ["plan-written"]
    again = CliRunner().invoke(command, words)
    assert [note["code"] for note in json.loads(again.stdout)["notes"]] == ["plan-kept"]
    assert CliRunner().invoke(command, [*words, "--image-size", "40"]).exit_code == 1
