"""Frozen: no gradient, and nothing that changes or varies, also in training mode."""

import copy

import pytest
import torch

from bottleneck.backbones.inspect import freeze, trainable


def _train(module, images, steps=3):
    module.train()
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        loss = module(images).logsumexp(1).mean() + step
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize("up_to", ["stage1", 1, "stage1.add", -4])
def test_frozen_part_is_bit_identical_after_training_and_the_rest_is_not(tiny, images, up_to):
    before = copy.deepcopy(tiny.module.state_dict())
    freeze(tiny, up_to)
    _train(tiny.module, images)
    changed = {n for n, value in tiny.module.state_dict().items() if not torch.equal(value, before[n])}
    assert {name.split(".")[0] for name in changed} == {"stage2", "stage3", "head"}
    assert {"stage2.norm1.running_mean", "stage3.conv2.weight", "head.bias"} <= changed


def test_frozen_trunk_says_in_training_what_was_cached(tiny, images):
    trunk, _ = tiny.split("stage2")
    cached = trunk(images)
    freeze(tiny, "stage2")
    assert torch.equal(trunk.train()(images), cached)


def test_freezing_holds_through_either_half_and_a_copy(tiny, images):
    trunk, _ = tiny.split("stage2")
    freeze(tiny, "stage2")
    for module in (trunk, copy.deepcopy(trunk)):
        before = copy.deepcopy(module.state_dict())
        module.train()(images)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_lower_node_frees_what_a_higher_one_froze(tiny):
    everything = trainable(tiny)
    freeze(tiny, "classifier")
    assert trainable(tiny) == []
    freeze(tiny, "stage3")
    assert trainable(tiny) == ["head.weight", "head.bias"]
    freeze(tiny, None)
    assert trainable(tiny) == everything
    assert type(tiny.module.stage1.norm1) is torch.nn.BatchNorm2d
    assert tiny.module.train().stage1.norm1.training


def test_networks_are_traced_alike_when_frozen(tiny, images):
    freeze(tiny, "stage2")
    expected = tiny.module(images)
    trunk, top = tiny.split("stage1")
    assert torch.equal(top(trunk(images)), expected)


def test_inner_node_freezes_only_what_it_needs(tiny):
    """A node beside a residual freezes its own branch and what lies below it."""
    freeze(tiny, "stage2.conv1")
    free = trainable(tiny)
    assert "stage2.conv1.weight" not in free
    assert "stage2.conv2.weight" in free
