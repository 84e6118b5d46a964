"""Freeze the lower part of a network: no gradient, and nothing in it that changes or varies in training."""

from functools import cache

from timm.layers import DropPath
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from bottleneck.backbones.backbone import Backbone

# Modules whose training mode changes their state or their output.
_VARYING = (_BatchNorm, _DropoutNd, StochasticDepth, DropPath)


def freeze(backbone: Backbone, up_to: str | int | None) -> None:
    """Freeze everything up to and including a node; what lies above is free, whatever it was before.

    Frozen means: parameters without gradient, BatchNorm normalising by its stored statistics and keeping
    them, dropout and stochastic depth off, also after `.train()` on the network or on any of its halves. So
    a frozen trunk says in training what it said when its features were cached. (Dropout that is written as
    a function, not a module, follows the mode of the module that calls it.)

    Parameters
    ----------
    up_to : str, int or None
        A node, a block or its index (see `Backbone.resolve`); None frees the whole network.

    Raises
    ------
    BackboneError
        If there is no such node.
    """
    below = backbone.graph.ancestors([backbone.operation(up_to)]) if up_to is not None else set()
    frozen = _targets(below)
    free = _targets(node for node in backbone.graph.graph.nodes if node not in below) - frozen
    for name, parameter in backbone.module.named_parameters():
        parameter.requires_grad_(any(_inside(name, target) for target in free))
    for name, module in backbone.module.named_modules():
        if isinstance(module, _VARYING):
            _fix(module, any(_inside(name, target) for target in frozen))


def trainable(backbone: Backbone) -> list[str]:
    """Names of the parameters that have a gradient."""
    return [name for name, parameter in backbone.module.named_parameters() if parameter.requires_grad]


def _targets(nodes) -> set[str]:
    """Paths of the modules that operations call and of the parameters that they read."""
    return {node.target for node in nodes if node.op in ("call_module", "get_attr")}


def _inside(name: str, target: str) -> bool:
    return name == target or name.startswith(target + ".")


class _Fixed:
    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


@cache
def _fixed_class(kind: type[nn.Module]) -> type[nn.Module]:
    # The module name is kept: torch.fx tells by it what is a layer of torch and what is to be traced through.
    return type(kind.__name__, (_Fixed, kind), {"__module__": kind.__module__})


def _fix(module: nn.Module, fixed: bool) -> None:
    """Change the module's class rather than the module: parameters, names and hooks stay what they are."""
    if fixed and not isinstance(module, _Fixed):
        module.__class__ = _fixed_class(type(module))
        module.eval()
    elif not fixed and isinstance(module, _Fixed):
        module.__class__ = type(module).__bases__[1]
