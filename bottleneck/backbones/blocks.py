"""Find a network's blocks, from stem to classifier, and its bottleneck, from its graph and shapes alone.

The same rules serve every family:

- The *body* ends with the last cut (see `graph`) that is a map of positions or tokens; the rest is the
  classifier.
- The *bottleneck* is the input of the classifier's first affine layer (linear, or 1 × 1 convolution).
  If that input is a pooled grid (VGG, AlexNet), it is the flattened map before this pooling, at any size.
  If the classifier convolves the map itself (SqueezeNet), it is that map, averaged. Without a classifier it
  is the output.
- A *stage* is a module with at least two affine layers; containers are opened until three stages are numbered
  alike. Layers before the first stage are the stem; layers after a stage (transition, downsampling, last
  convolution) belong to it. A plain sequence of layers (VGG, AlexNet) is divided at its pooling layers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd

from bottleneck.backbones.graph import NetworkGraph, Shapes, layer_of, layout_of
from bottleneck.errors import BackboneError

_ENOUGH_STAGES = 3
_AFFINE_FUNCTIONS = {F.linear, F.conv1d, F.conv2d, F.conv3d}
_DROPOUT_FUNCTIONS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout}


@dataclass(frozen=True)
class Block:
    """A stage of the network.

    index : position, 0 for the stem.
    name : as in the network's code, `layer3`, `denseblock2`, `features.7`; `stem` first, `classifier` last.
    node : name of the tensor that the block ends with, for `--node`.
    """

    index: int
    name: str
    node: str


@dataclass(frozen=True)
class Anatomy:
    """The blocks of a network and its bottleneck.

    ends : the operation that each block ends with.
    bottleneck : the operation after which the classifier begins.
    map : the operation that makes the last map, from which the bottleneck is made.
    native : the pool that makes the bottleneck from the map; None if the network's own operations do.
    """

    blocks: tuple[Block, ...]
    ends: tuple[fx.Node, ...]
    bottleneck: fx.Node
    map: fx.Node
    native: str | None

    @property
    def rule(self) -> str:
        """How the bottleneck is made, in words."""
        if self.native == "avg":
            return "the last map, averaged"
        if self.native == "flatten":
            return "input of the classifier's first affine layer: the map before its pooling, flattened"
        return "input of the classifier's first affine layer"


def dissect(module: nn.Module, network: NetworkGraph, shapes: Shapes) -> Anatomy:
    """Find blocks and bottleneck.

    Parameters
    ----------
    shapes : Shapes
        Measured at the network's own input size.

    Raises
    ------
    BackboneError
        If the network has no affine layer after its input.
    """
    bottleneck, last_map, native = _bottleneck(module, network, shapes)
    body = network.nodes[1 : network.position[last_map] + 1]
    starts = _stage_starts(module, network, body) or _starts_after_pooling(module, body)
    ends, paths = _close(network, body, starts)
    if network.output not in ends:
        ends, paths = [*ends, network.output], [*paths, "classifier"]
    blocks = tuple(
        Block(i, _short(path), path if network.by_name.get(path) is end else network.canonical[end])
        for i, (path, end) in enumerate(zip(paths, ends, strict=True))
    )
    return Anatomy(blocks, tuple(ends), bottleneck, last_map, native)


def affine_layers(module: nn.Module, node: fx.Node) -> int:
    """Number of affine layers (linear, convolution) in one operation."""
    layer = layer_of(module, node)
    if layer is None:
        return int(node.target in _AFFINE_FUNCTIONS)
    return sum(isinstance(child, nn.Linear | _ConvNd) for child in layer.modules())


def _bottleneck(
    module: nn.Module, network: NetworkGraph, shapes: Shapes
) -> tuple[fx.Node, fx.Node, str | None]:
    """`bottleneck`, `map` and `native` of the `Anatomy`."""
    if shapes.failure:
        raise BackboneError(f"The network does not accept its own input size: {shapes.failure}.")
    maps = [node for node in network.cuts if _is_map(shapes.rows.get(node, ()))]
    affine = [node for node in network.nodes if affine_layers(module, node)]
    if not affine:
        raise BackboneError("The network has no linear or convolutional layer.")
    last = maps[-1] if maps else network.nodes[0]
    head = [node for node in affine if network.position[node] > network.position[last]]
    if not head:
        before = _behind(module, affine[-1], _is_dropout)
        if before in maps and _is_pointwise(module, affine[-1]):  # the classifier convolves the map itself
            return before, before, "avg"
        return network.output, last, "avg" if last is network.output else None  # no classifier at all
    before = _behind(module, head[0], _is_dropout)
    grid = _behind(module, last, _is_adaptive) if _is_adaptive(module, last) else last
    if before not in network.cuts:  # several classifiers read different parts of the map
        return last, last, "avg"
    return before, grid, "flatten" if grid is not last else None


def _is_map(row: tuple[int, ...]) -> bool:
    return len(row) > 1 and row.count(1) < len(row) - 1 and bool(layout_of(row))


def _behind(module: nn.Module, node: fx.Node, transparent: Callable[[nn.Module, fx.Node], bool]) -> fx.Node:
    """The tensor that `node` reads, or that the operations before it read while these are `transparent`."""
    source = node.all_input_nodes[0]
    while transparent(module, source):
        source = source.all_input_nodes[0]
    return source


def _is_dropout(module: nn.Module, node: fx.Node) -> bool:
    layer = layer_of(module, node)
    return isinstance(layer, _DropoutNd | nn.Identity) or node.target in _DROPOUT_FUNCTIONS


def _is_pointwise(module: nn.Module, node: fx.Node) -> bool:
    layer = layer_of(module, node)
    return isinstance(layer, _ConvNd) and set(layer.kernel_size) == {1}


def _is_adaptive(module: nn.Module, node: fx.Node) -> bool:
    layer = layer_of(module, node)
    return isinstance(layer, _AdaptiveAvgPoolNd) or node.target is F.adaptive_avg_pool2d


def _is_pooling(module: nn.Module, node: fx.Node) -> bool:
    layer = layer_of(module, node)
    return isinstance(layer, _MaxPoolNd | _AvgPoolNd) or node.target in (F.max_pool2d, F.avg_pool2d)


def _stage_starts(
    module: nn.Module, network: NetworkGraph, body: tuple[fx.Node, ...]
) -> list[tuple[int, str]]:
    """(index into body, module path) of every stage's first operation; empty for a plain sequence."""
    opened = {""}
    best: list[str] = []
    while not _has_family(best):
        units = _units(network, body, opened)
        sizes = {path: sum(affine_layers(module, node) for node in nodes) for path, nodes in units.items()}
        stages = [path for path, size in sizes.items() if size > 1]
        if len(stages) > max(len(best), 1) or _has_family(stages):
            best, first = stages, [units[path][0] for path in stages]
        closed = [path for path in stages if len(units[path]) > 1]
        if not closed:
            break
        opened.add(max(closed, key=sizes.__getitem__))
    if not best:
        return []
    index = {node: i for i, node in enumerate(body)}
    starts = [(index[node], path) for node, path in zip(first, best, strict=True)]
    if any(affine_layers(module, node) for node in body[: starts[0][0]]):
        return [(0, "stem"), *starts]
    stem = "stem" if _pattern(best[0]) != _pattern(best[1]) else best[0]
    return [(0, stem), *starts[1:]]


def _has_family(stages: list[str]) -> bool:
    """Whether three or more are numbered alike: layer1, layer2 … or Mixed_5b, Mixed_5c …"""
    return max(Counter(map(_pattern, stages)).values(), default=0) >= _ENOUGH_STAGES


def _units(network: NetworkGraph, body: tuple[fx.Node, ...], opened: set[str]) -> dict[str, list[fx.Node]]:
    """Operations grouped by the outermost module that is not opened."""
    units: dict[str, list[fx.Node]] = {}
    for node in body:
        parts = network.names[node].split(".")
        path = next(
            (p for p in (".".join(parts[:n]) for n in range(1, len(parts))) if p not in opened),
            network.names[node],
        )
        units.setdefault(path, []).append(node)
    return units


def _starts_after_pooling(module: nn.Module, body: tuple[fx.Node, ...]) -> list[tuple[int, str]]:
    """Blocks `block1`, `block2` … that begin with the first affine layer after each pooling layer.

    In a network without pooling, every affine layer begins a block.
    """
    affine = [i for i, node in enumerate(body) if affine_layers(module, node)]
    pools = [i for i, node in enumerate(body) if _is_pooling(module, node)]
    starts = [next((i for i in affine if i > pool), None) for pool in pools] or affine[1:]
    starts = sorted({0, *(start for start in starts if start is not None)})
    return [(start, f"block{number}") for number, start in enumerate(starts, 1)]


def _close(
    network: NetworkGraph, body: tuple[fx.Node, ...], starts: list[tuple[int, str]]
) -> tuple[list[fx.Node], list[str]]:
    """End each block at the last cut before the next block; a block without a cut is merged into the next."""
    cuts = set(network.cuts)
    ends: list[fx.Node] = []
    paths: list[str] = []
    done = 0
    for number, (_, path) in enumerate(starts):
        stop = starts[number + 1][0] if number + 1 < len(starts) else len(body)
        inside = [i for i in range(done, stop) if body[i] in cuts]
        if inside:
            done = inside[-1] + 1
            ends.append(body[inside[-1]])
            paths.append(path)
    return ends, paths


def _short(path: str) -> str:
    """The last part of a module path, with the part before if it is a number: `layer3`, `features.7`."""
    parts = path.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _pattern(path: str) -> str:
    """The path with its numbers replaced by #."""
    return re.sub(r"\d+[a-z]?(?![a-z])", "#", path)
