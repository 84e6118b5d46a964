"""The network as a graph in which every tensor between input and output has a name.

Names are torchvision's feature-extraction names: the dotted path of the module that made the tensor
(`layer4.1.conv2`), the path and the operation for plain functions (`layer4.1.add`), a suffix `_1`, `_2`
where a module runs again. The path of a module that holds others means the last tensor made inside it.

A tensor is a *cut* when every path from the input to the output runs through it: a residual branch is none.
"""

import inspect
import math
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torchvision
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

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
        All operations, none of them in place: a tensor that is kept (cached, or fed to a top again and again)
        never changes behind its owner's back.
    nodes : tuple of torch.fx.Node
        The operations that depend on the input and reach the output, in execution order, the input first.
    output : torch.fx.Node
        The one that makes the network's output.
    """

    def __init__(self, graph: fx.Graph, names: dict[fx.Node, str]) -> None:
        self.graph = graph
        (result,) = next(node for node in graph.nodes if node.op == "output").args
        if not isinstance(result, fx.Node):
            raise BackboneError(f"The network returns a {type(result).__name__}, expected one tensor.")
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
        """Every name that a tensor can be called by, in execution order, the shortest name of each first."""
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
        """The tensors that alone determine the output, in execution order.

        In execution order a node is one exactly when no edge jumps over it.
        """
        found, reach = [], 0
        for i, node in enumerate(self.nodes):
            if reach <= i:
                found.append(node)
            reach = max([reach, *(self.position[user] for user in node.users if user in self.position)])
        return tuple(found)

    def ancestors(self, nodes: Iterable[fx.Node], stop: fx.Node | None = None) -> set[fx.Node]:
        """All operations that the given ones need, themselves included, not looking behind `stop`."""
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
            if node is start:
                copies[node] = part.placeholder("x")
            elif node in needed:
                copies[node] = part.node_copy(node, copies.__getitem__)
        part.output(fx.map_arg(result, copies.__getitem__))
        return part


def trace(module: nn.Module, *, training: bool = False) -> NetworkGraph:
    """Trace `module` in one mode. Its parameters are not touched, its mode is restored.

    Raises
    ------
    BackboneError
        If the network's control flow depends on the values of its tensors.
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
                f"{type(module).__name__} cannot be taken apart: its forward does not trace with torch.fx "
                f"({type(error).__name__}: {first_line(error)}).",
                "Mark the module that decides by values with torch.fx.wrap, or rewrite its forward.",
            ) from error
    _make_functional(graph)
    return NetworkGraph(graph, dict(tracer.node_to_qualname))


def _leaf_modules() -> list[type[nn.Module]]:
    """Modules that stay one operation: timm's untraceable ones and torchvision's operators.

    torchvision's own list has its convolution-norm-activation sequences too; those are looked into here, so
    that a first convolution is found in every family.
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
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
        elif node.op == "call_method" and node.target.endswith("_") and hasattr(Tensor, node.target[:-1]):
            node.target = node.target[:-1]
        if node.op != "call_module" and node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
