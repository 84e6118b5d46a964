"""A network as a graph of named tensors: trace it, split it in two at one tensor, measure its shapes.

Names are torchvision's feature-extraction names: the dotted path of the module that made the tensor
(`layer4.1.conv2`), the path and the operation for plain functions (`layer4.1.add`), a suffix `_1`, `_2`
if a module runs again. The path of a module that contains others means the last tensor made inside it.

A tensor is a *cut* if every path from the input to the output runs through it: one inside a residual branch
is none. At a cut the network splits into trunk and top, which together are the network, bit for bit. Both
share the network's parameters (nothing is copied) and keep their names, so that a state dict of the network
fits its halves. Each half contains the graphs of both modes and switches with `.train()` and `.eval()`: in a
graph that was traced in evaluation mode, dropout and stochastic depth would stay off.

Shapes are measured on torch's meta device: no weights are read and nothing is computed, so that a network
without weights will do.

Shapes: B images, C channels, H × W positions, L tokens, D features.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torchvision
from timm.layers import get_notrace_functions, get_notrace_modules  # type: ignore[attr-defined]  # no __all__
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import DualGraphModule, NodePathTracer

from bottleneck.errors import BackboneError, first_line

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class NetworkGraph:
    """One mode (training or evaluation) of a network as a graph.

    Attributes
    ----------
    graph : torch.fx.Graph
        All operations, none of them in place: a tensor that is stored (cached, or fed to a top repeatedly)
        is never changed by a later operation.
    nodes : tuple of torch.fx.Node
        The operations that depend on the input and reach the output, in execution order, the input first.
    output : torch.fx.Node
        The operation that makes the network's output.
    """

    def __init__(self, graph: fx.Graph, names: dict[fx.Node, str]) -> None:
        self.graph = graph
        (result,) = next(node for node in graph.nodes if node.op == "output").args
        kind = _container(result)
        if kind:
            raise BackboneError(
                f"The network returns a {kind}, expected one tensor.",
                "Wrap it in a module whose forward returns the one tensor of logits or features.",
            )
        assert isinstance(result, fx.Node)
        self.output = result
        alive = self.ancestors([result])
        fed: set[fx.Node] = set()
        for node in graph.nodes:
            if node in alive and (node.op == "placeholder" or fed.intersection(node.all_input_nodes)):
                fed.add(node)
        self.nodes = tuple(node for node in graph.nodes if node in fed)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.names = {node: names[node] for node in self.nodes}
        if len([node for node in self.nodes if node.op == "placeholder"]) != 1:
            raise BackboneError("The network does not compute its output from one input tensor.")

    @cached_property
    def by_name(self) -> dict[str, fx.Node]:
        """All names of all tensors, in execution order, the shortest name of each tensor first."""
        last: dict[str, fx.Node] = {}
        for node in self.nodes[1:]:
            parts = self.names[node].split(".")
            for depth in range(1, len(parts) + 1):
                last[".".join(parts[:depth])] = node
        by_length = sorted(last.items(), key=lambda item: (self.position[item[1]], item[0].count(".")))
        return dict(by_length)

    @cached_property
    def canonical(self) -> dict[fx.Node, str]:
        """The shortest name of each tensor: `layer4` rather than `layer4.2.relu_2`."""
        shortest: dict[fx.Node, str] = {}
        for name, node in self.by_name.items():
            shortest.setdefault(node, name)
        return shortest

    @cached_property
    def cuts(self) -> tuple[fx.Node, ...]:
        """The tensors through which every path to the output runs, in execution order.

        A node is one exactly if no edge jumps over it in this order.
        """
        cuts, reach = [], 0
        for i, node in enumerate(self.nodes):
            if reach <= i:
                cuts.append(node)
            reach = max([reach, *(self.position[user] for user in node.users if user in self.position)])
        return tuple(cuts)

    def ancestors(self, nodes: Iterable[fx.Node], stop: fx.Node | None = None) -> set[fx.Node]:
        """All operations that the given ones need, themselves included; the search ends at `stop`."""
        seen: set[fx.Node] = set()
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending += [] if node is stop else node.all_input_nodes
        return seen

    def part(self, result: fx.Node | tuple[fx.Node, ...], start: fx.Node | None = None) -> fx.Graph:
        """The graph from `start` (the input by default) to `result`, one tensor or a tuple of them."""
        part = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        needed = self.ancestors([result] if isinstance(result, fx.Node) else result, stop=start)
        for node in self.graph.nodes:
            if start is not None and node is start:
                copies[node] = part.placeholder("x")
            elif node in needed:
                copies[node] = part.node_copy(node, copies.__getitem__)
        part.output(fx.map_arg(result, copies.__getitem__))
        return part


def _container(result: object) -> str:
    """The type of what a network returns if it is not a tensor; empty for a tensor."""
    if isinstance(result, fx.Node):
        made = result.target if result.op == "call_function" else None
        return made.__name__ if isinstance(made, type) and not issubclass(made, Tensor) else ""
    return type(result).__name__.removeprefix("immutable_")  # torch.fx's dictionaries and lists


def trace(module: nn.Module, *, training: bool = False) -> NetworkGraph:
    """Trace `module` in one mode. Its parameters are not touched, its mode is restored.

    Raises
    ------
    BackboneError
        If the control flow depends on the values of tensors.
    """
    arguments = list(inspect.signature(module.forward).parameters.values())[1:]
    defaults = {a.name: a.default for a in arguments if a.default is not inspect.Parameter.empty}
    tracer = NodePathTracer(
        leaf_modules=_leaf_modules(),
        autowrap_modules=(math, torchvision.ops),
        autowrap_functions=tuple(get_notrace_functions()),
    )
    with _mode(module, training):
        try:
            graph = tracer.trace(module, concrete_args=defaults or None)
        except Exception as error:
            raise BackboneError(
                f"{type(module).__name__} cannot be split into nodes: torch.fx cannot trace its forward "
                f"({type(error).__name__}: {first_line(error)}).",
                "Mark the module that decides by values with torch.fx.wrap, or rewrite its forward.",
            ) from error
    _make_functional(graph)
    return NetworkGraph(graph, dict(tracer.node_to_qualname))


def _leaf_modules() -> list[type[nn.Module]]:
    """Modules that stay one operation: timm's untraceable ones and torchvision's operators.

    torchvision's own list also has its convolution-norm-activation sequences. These are traced through here,
    so that the first convolution is a node in every family.
    """
    operators = [value for value in vars(torchvision.ops).values() if inspect.isclass(value)]
    return [
        *get_notrace_modules(),
        *(op for op in operators if issubclass(op, nn.Module) and not issubclass(op, nn.Sequential)),
    ]


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    before = {child: child.training for child in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for child, mode in before.items():
            child.training = mode


def _make_functional(graph: fx.Graph) -> None:
    """Replace operations in place by their copies that return a new tensor."""
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
        elif node.op == "call_method" and node.target.endswith("_") and hasattr(Tensor, node.target[:-1]):
            node.target = node.target[:-1]
        if node.op != "call_module" and node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}


def layer_of(module: nn.Module, node: fx.Node) -> nn.Module | None:
    """The layer of `module` that an operation calls; None for functions and methods."""
    if node.op != "call_module":
        return None
    assert isinstance(node.target, str)
    return module.get_submodule(node.target)


def split(
    module: nn.Module, evaluation: NetworkGraph, training: NetworkGraph, node: fx.Node
) -> tuple[nn.Module, nn.Module]:
    """Split `module` after the tensor that `node` makes into trunk and top, both in evaluation mode.

    Parameters
    ----------
    evaluation, training : NetworkGraph
        The two modes of `module`.
    node : torch.fx.Node
        An operation of `evaluation`.

    Raises
    ------
    BackboneError
        The top would need more tensors than this one; the message names the nearest cuts.
    """
    name = evaluation.canonical[node]
    if node not in evaluation.cuts:
        raise _no_cut(evaluation, node)
    in_training = training.by_name.get(evaluation.names[node])
    if in_training is None or in_training not in training.cuts:
        raise BackboneError(f"The network cannot be cut at {name}: its graph is another in training mode.")
    trunk = DualGraphModule(module, training.part(in_training), evaluation.part(node), "Trunk")
    top = DualGraphModule(
        module,
        training.part(training.output, start=in_training),
        evaluation.part(evaluation.output, start=node),
        "Top",
    )
    return trunk.eval(), top.eval()


def _no_cut(network: NetworkGraph, node: fx.Node) -> BackboneError:
    at = network.position[node]
    before = [cut for cut in network.cuts[1:] if network.position[cut] < at]
    after = [cut for cut in network.cuts if network.position[cut] > at]
    nearest = " and ".join(network.canonical[cut] for cut in [*before[-1:], *after[:1]])
    return BackboneError(
        f"The network cannot be cut at {network.canonical[node]}: what follows needs more than this tensor "
        "(a residual branch or a skip connection runs beside it).",
        f"The nearest nodes that can be cut at are {nearest}.",
    )


# A batch size that no channel count, grid or head count has: an axis of this size is the batch axis.
_BATCH = 1009


@dataclass
class Shapes:
    """Shapes of a network's tensors at one image size.

    Attributes
    ----------
    rows : dict of torch.fx.Node to tuple of int
        Shape of one image's part of each tensor; tensors whose first axis is not the batch are left out.
    macs : dict of torch.fx.Node to int
        Multiplications with addition for one image, if requested.
    failure : str
        Why not all could be measured: for example, a classifier refuses another image size than its own.
    """

    rows: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    macs: dict[fx.Node, int] = field(default_factory=dict)
    failure: str = ""


def measure(
    module: nn.Module, network: NetworkGraph, size: int, channels: int, *, macs: bool = False
) -> Shapes:
    """Measure `network` for images of `size` × `size` pixels."""
    shapes = Shapes()
    counter = FlopCounterMode(display=False) if macs else None
    interpreter = _ShapeInterpreter(on_meta(module), network.graph, shapes, counter)
    pixels = torch.empty(_BATCH, channels, size, size, device="meta")
    try:
        with torch.no_grad():
            interpreter.run(pixels)
    except Exception as error:
        shapes.failure = first_line(error)
    return shapes


def layout_of(row: tuple[int, ...]) -> str:
    """The layout for the shape of one row: "NC", "NCHW", "NHWC", "NLC", or "" for anything else.

    Images are square, so H = W distinguishes channels first from channels last; if all three axes are equal,
    channels first is assumed.
    """
    if len(row) == 3:
        return "NCHW" if row[1] == row[2] else "NHWC" if row[0] == row[1] else ""
    return {1: "NC", 2: "NLC"}.get(len(row), "")


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of `module` whose tensors have shapes but no storage."""
    copies: dict[int, Tensor] = {}
    constants = [
        value for child in module.modules() for value in vars(child).values() if isinstance(value, Tensor)
    ]
    for tensor in [*module.parameters(), *module.buffers(), *constants]:
        empty = tensor.detach().to("meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(module, copies)


class _ShapeInterpreter(fx.Interpreter):
    def __init__(
        self, module: nn.Module, graph: fx.Graph, shapes: Shapes, counter: FlopCounterMode | None
    ) -> None:
        super().__init__(module, graph=graph)
        self.extra_traceback = False
        self.shapes, self.counter = shapes, counter

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(self.fetch_attr(target), _BatchNorm):
            return args[0]  # on meta tensors BatchNorm would take longer than all other operations together
        return super().call_module(target, args, kwargs)

    def run_node(self, node: fx.Node) -> Any:
        if self.counter is None:
            value = super().run_node(node)
        else:
            with self.counter:
                value = super().run_node(node)
            self.shapes.macs[node] = self.counter.get_total_flops() // (2 * _BATCH)
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == _BATCH:
            self.shapes.rows[node] = tuple(value.shape[1:])
        return value
