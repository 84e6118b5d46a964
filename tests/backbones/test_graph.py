"""Trunk and top: together the network, in both modes, over one set of parameters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError


def test_composition_is_the_network_bit_for_bit_at_every_cut(tiny, images):
    expected = tiny.module(images)
    for cut in tiny.graph.cuts[1:]:
        trunk, top = tiny.split(tiny.graph.canonical[cut])
        assert torch.equal(top(trunk(images)), expected), tiny.graph.canonical[cut]


def test_halves_share_the_parameters_under_their_own_names(tiny):
    trunk, top = tiny.split("stage2")
    own = dict(tiny.module.named_parameters())
    below, above = dict(trunk.named_parameters()), dict(top.named_parameters())
    assert below.keys() | above.keys() == own.keys()
    assert not below.keys() & above.keys()
    assert {name.split(".")[0] for name in below} == {"stem", "stage1", "stage2"}
    assert all(own[name] is value for name, value in [*below.items(), *above.items()])
    assert {name for name in trunk.state_dict() if name.endswith("running_mean")} == {
        "stem.norm.running_mean",
        "stage1.norm1.running_mean",
        "stage2.norm1.running_mean",
    }


def test_dropout_lives_in_training_and_rests_in_evaluation(tiny, images):
    trunk, top = tiny.split("stage2")
    stem = trunk(images)
    assert torch.equal(top(stem), top(stem))
    top.train()
    assert not torch.equal(top(stem), top(stem))
    top.eval()
    assert torch.equal(top(stem), tiny.module(images))


def test_functional_dropout_lives_in_training_too(tiny, images):
    """`dropout(x, 0.3, self.training)`: a graph of the evaluation mode alone would have it off for good."""
    trunk, top = tiny.split("bottleneck")
    features = trunk(images)
    top.train()
    assert not torch.equal(top(features), top(features))


def test_training_through_both_halves_equals_training_the_network(tiny, images):
    torch.manual_seed(1)
    tiny.module.train()
    expected = tiny.module(images)
    statistics = tiny.module.stage1.norm1.running_mean.clone()
    tiny.module.stage1.norm1.reset_running_stats()
    trunk, top = tiny.split("stage2.add")
    trunk.train(), top.train()
    torch.manual_seed(1)
    assert torch.equal(top(trunk(images)), expected)
    assert torch.equal(tiny.module.stage1.norm1.running_mean, statistics)


def test_splitting_leaves_the_mode_of_the_network_alone(tiny):
    tiny.module.train()
    tiny.module.stage1.eval()
    _ = tiny.graph
    assert tiny.module.training
    assert not tiny.module.stage1.norm1.training


@pytest.mark.parametrize("node", ["stage2.conv1", "stage2.conv2", "stage2.drop"])
def test_cut_inside_a_residual_names_the_nearest_that_work(tiny, node):
    with pytest.raises(BackboneError, match=r"cannot be cut at stage2\..*nearest .* stage1 and stage2.add"):
        tiny.split(node)


def test_top_does_not_write_into_a_cached_map(tiny, images):
    trunk, top = tiny.split("stage2.add")
    cached = trunk(images)
    kept = cached.clone()
    top(cached)
    assert torch.equal(cached, kept)


class Wired(nn.Module):
    """Layers of which each adds up earlier results: a random acyclic network."""

    def __init__(self, sources):
        super().__init__()
        self.sources = sources
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in sources)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        results = [x]
        for layer, sources in zip(self.layers, self.sources, strict=True):
            results.append(layer(torch.stack([results[i] for i in sources]).sum(0)))
        return self.head(results[-1].mean((2, 3)))


wirings = st.integers(1, 7).flatmap(
    lambda n: st.tuples(*(st.sets(st.integers(0, i), min_size=1).map(sorted) for i in range(n)))
)


@settings(max_examples=25, deadline=None)
@given(wirings)
def test_a_cut_is_what_every_path_runs_through(sources):
    """Held against the definition: without a cut, the output cannot be reached from the input."""
    torch.manual_seed(0)
    preprocess = Preprocess(4, 4, "bilinear", (0.5,) * 3, (0.5,) * 3)
    backbone = Backbone.from_module(Wired(sources), preprocess)
    graph, images = backbone.graph, torch.rand(2, 3, 4, 4)
    for node in graph.nodes[1:]:
        reached = {graph.nodes[0]}
        for other in graph.nodes[1:]:
            if other is not node and reached.intersection(other.all_input_nodes):
                reached.add(other)
        is_cut = node is graph.output or graph.output not in reached
        assert (node in graph.cuts) == is_cut
        if is_cut:
            trunk, top = backbone.split(graph.names[node])
            assert torch.equal(top(trunk(images)), backbone.module(images))
