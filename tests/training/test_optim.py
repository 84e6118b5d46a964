"""Learning rates by depth, weight decay where it belongs, the schedule, gradual unfreezing."""

import pytest
import torch
from torch import nn

from bottleneck.errors import FitError
from bottleneck.training.config import FinetuneConfig, OptimConfig, ScratchConfig
from bottleneck.training.optim import LayerGroup, Schedule, build_optimizer, parameter_groups, unfreeze


def layers():
    """A head and two blocks, each with a matrix, a bias and a norm."""
    modules = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3)]
    names = ["head", "block2", "block1"]
    return [
        LayerGroup(name, depth, tuple(module.named_parameters()))
        for depth, (name, module) in enumerate(zip(names, modules, strict=True))
    ]


def test_rates_fall_with_depth():
    groups = parameter_groups(layers(), OptimConfig(lr=0.2, backbone_ratio=0.1, decay=0.5))
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == pytest.approx({"head": 0.2, "block2": 0.02, "block1": 0.01})


def test_biases_and_norms_have_no_weight_decay():
    groups = parameter_groups(layers(), OptimConfig(weight_decay=0.3))
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)
    assert sum(len(group["params"]) for group in groups) == 12


def test_the_schedule_warms_up_and_falls_to_nothing():
    schedule = Schedule(steps=100, warmup=0.1)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.01


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_the_schedule_holds_at_its_extremes(warmup):
    factors = [Schedule(steps=7, warmup=warmup).factor(step) for step in range(7)]
    assert all(0 < factor <= 1 for factor in factors)


def test_blocks_join_one_after_the_other():
    found = layers()
    optimizer = build_optimizer(found, OptimConfig(unfreeze_every=2))
    trains = {}
    for epoch in (1, 3, 5):
        unfreeze(optimizer, epoch)
        trains[epoch] = [all(p.requires_grad for _, p in layer.parameters) for layer in found]
    assert trains == {1: [True, True, False], 3: [True, True, True], 5: [True, True, True]}


def test_a_waiting_block_does_not_move():
    found = layers()
    optimizer = build_optimizer(found, OptimConfig(unfreeze_every=1, lr=0.1))
    unfreeze(optimizer, 1)
    before = [[p.clone() for _, p in layer.parameters] for layer in found]
    loss = sum((p**2).sum() for layer in found for _, p in layer.parameters if p.requires_grad)
    loss.backward()
    optimizer.step()
    moved = [
        any(not torch.equal(a, p) for a, (_, p) in zip(old, layer.parameters, strict=True))
        for old, layer in zip(before, found, strict=True)
    ]
    assert moved == [True, True, False]


@pytest.mark.parametrize(
    "bad", [{"lr": 0.0}, {"lr": -1.0}, {"decay": 1.5}, {"optimizer": "adam"}, {"warmup": 2.0}]
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(FitError, match=next(iter(bad))):
        OptimConfig(**bad)


def test_another_optimizer_comes_with_its_own_rate():
    assert FinetuneConfig(optimizer="sgd").learning_rate == FinetuneConfig.rates["sgd"]
    assert ScratchConfig(optimizer="sgd").learning_rate == FinetuneConfig.rates["sgd"]
    assert ScratchConfig(optimizer="adamw").learning_rate == ScratchConfig.rates["adamw"]
    assert FinetuneConfig(optimizer="sgd", lr=0.3).learning_rate == 0.3
    assert FinetuneConfig().learning_rate == FinetuneConfig.rates["adamw"]
