"""Shapes and multiplications of every tensor of a network, without computing any of them.

The network is walked on torch's meta device: no weights are read, no pixels made, and a network that is still
without weights will do.

Shapes: B images, C channels, H × W positions, L tokens, D features.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from bottleneck.backbones.graph import NetworkGraph
from bottleneck.errors import first_line

# A batch size that no channel count, grid or head count has: the batch axis is then known wherever it goes.
_BATCH = 1009


@dataclass
class Shapes:
    """What a walk found.

    Attributes
    ----------
    rows : dict of torch.fx.Node to tuple of int
        Shape of one image's part of each tensor; a tensor whose first axis is not the images is left out.
    macs : dict of torch.fx.Node to int
        Multiplications with addition for one image; only where asked for.
    failure : str
        Why the walk ended early: the classifier of a network with a fixed input size refuses another one.
    """

    rows: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    macs: dict[fx.Node, int] = field(default_factory=dict)
    failure: str = ""


def measure(
    module: nn.Module, network: NetworkGraph, size: int, channels: int, *, macs: bool = False
) -> Shapes:
    """Walk `network` for images of `size` × `size` pixels."""
    shapes = Shapes()
    walk = _Walk(on_meta(module), network.graph, shapes, FlopCounterMode(display=False) if macs else None)
    pixels = torch.empty(_BATCH, channels, size, size, device="meta")
    try:
        with torch.no_grad():
            walk.run(pixels)
    except Exception as error:
        shapes.failure = first_line(error)
    return shapes


def layout_of(row: tuple[int, ...]) -> str:
    """ "NC", "NCHW", "NHWC", "NLC" or "" for a tensor that is none of them, from the shape of one row.

    Inputs are square, so H = W tells channels first from channels last; where all three agree, first it is.
    """
    if len(row) == 3:
        return "NCHW" if row[1] == row[2] else "NHWC" if row[0] == row[1] else ""
    return {1: "NC", 2: "NLC"}.get(len(row), "")


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of `module` whose tensors have shapes but no storage."""
    twins: dict[int, Tensor] = {}
    constants = [
        value for child in module.modules() for value in vars(child).values() if isinstance(value, Tensor)
    ]
    for tensor in [*module.parameters(), *module.buffers(), *constants]:
        twin = tensor.detach().to("meta")
        twins[id(tensor)] = (
            nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
        )
    return copy.deepcopy(module, twins)


class _Walk(fx.Interpreter):
    def __init__(
        self, module: nn.Module, graph: fx.Graph, shapes: Shapes, counter: FlopCounterMode | None
    ) -> None:
        super().__init__(module, graph=graph)
        self.extra_traceback = False
        self.shapes, self.counter = shapes, counter

    def call_module(self, target, args, kwargs):
        if isinstance(self.fetch_attr(target), _BatchNorm):
            return args[0]  # as an operation on meta tensors it would take longer than all others together
        return super().call_module(target, args, kwargs)

    def run_node(self, node: fx.Node):
        if self.counter is None:
            value = super().run_node(node)
        else:
            with self.counter:
                value = super().run_node(node)
            self.shapes.macs[node] = self.counter.get_total_flops() // (2 * _BATCH)
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == _BATCH:
            self.shapes.rows[node] = tuple(value.shape[1:])
        return value
