"""The probed nodes of real architectures, written out by hand."""

import pytest

from bottleneck.backbones.registry import outline
from bottleneck.trials.nodes import is_bottleneck_map, stage_nodes

STAGES = {
    "resnet18": ["maxpool@avg2", *(f"layer{i}@avg2" for i in range(1, 5)), "bottleneck"],
    "small_cnn": [*(f"features.block{i}@avg2" for i in range(1, 4)), "features@avg2", "bottleneck"],
}


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
