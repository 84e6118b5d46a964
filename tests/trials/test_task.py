"""The probed nodes of real architectures, written out by hand; records of finished trials, whole or not."""

import numpy as np
import pytest

from bottleneck.backbones.registry import outline
from bottleneck.trials.task import Records, is_bottleneck_map, stage_nodes

STAGES = {
    "resnet18": ["maxpool@avg2", *(f"layer{i}@avg2" for i in range(1, 5)), "bottleneck"],
    "small_cnn": [*(f"features.block{i}@avg2" for i in range(1, 4)), "features@avg2", "bottleneck"],
}
VALUES, ARRAYS = {"C": 0.1, "what": "머리"}, {"score": np.arange(3.0)}


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_probed(name):
    assert stage_nodes(outline(name)) == STAGES[name]


def test_a_stage_is_probed_before_the_convolution_that_follows_it_too():
    network = outline("efficientnet_lite0")
    nodes = stage_nodes(network)
    assert len(nodes) == 10  # the stem, seven stages, the last convolution, the bottleneck
    assert nodes[1:7] == [f"blocks.{i}@avg2" for i in range(6)]
    assert network.node_shape(nodes[7])[0] == (4 * 320,)  # stage 7 has 320 channels
    assert nodes[8:] == ["bn2@avg2", "bottleneck"]


@pytest.mark.parametrize(
    ("node", "same"),
    [("bottleneck", True), ("bn2@avg2", True), ("blocks.6@avg2", False), ("blocks.5", False)],
)
def test_a_pooled_form_of_the_bottleneck_s_map_is_no_earlier_node(node, same):
    assert is_bottleneck_map(outline("efficientnet_lite0"), node) is same


@pytest.fixture
def records(tmp_path):
    records = Records(tmp_path / "trials")
    records.write("a", "f1", VALUES, ARRAYS)
    return records


def test_a_finished_trial_is_read_as_it_was_written(records):
    values, arrays = records.read("a", "f1")
    assert values == VALUES
    np.testing.assert_array_equal(arrays["score"], ARRAYS["score"])


@pytest.mark.parametrize(("name", "fingerprint"), [("a", "f2"), ("b", "f1")])
def test_other_inputs_or_another_name_are_no_result(records, name, fingerprint):
    assert records.read(name, fingerprint) is None


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:20], lambda data: b"\xff" * 40])
def test_a_damaged_file_is_no_result(records, damage):
    (path,) = records.folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert records.read("a", "f1") is None
    records.write("a", "f1", VALUES, ARRAYS)
    assert records.read("a", "f1")[0] == VALUES
