"""The part of a backbone between a cached map and a head's node, which fine-tuning trains.

    cached map (or pixels) ──► unfrozen blocks ──► pool ──► features that the head takes

A section shares the backbone's parameters and keeps their names, so the backbone is fine-tuned in place.

Shapes: N images, C channels, H × W positions, D features.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import DualGraphModule

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.extractor import Normalise
from bottleneck.backbones.graph import NetworkGraph, trace
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError
from bottleneck.names import BOTTLENECK


@dataclass(frozen=True)
class Cut:
    """Which blocks train, and what they are fed.

    node : NODE@none whose map goes in, or None where pixels do (everything trains).
    blocks : names of the unfrozen blocks, the uppermost first.
    parameters : theirs, as (name, parameter) pairs.
    start, end : operations of the backbone's graph between which the section lies; start None is the input.
    """

    node: str | None
    blocks: tuple[str, ...]
    parameters: tuple[tuple[tuple[str, nn.Parameter], ...], ...]
    start: fx.Node | None
    end: fx.Node


def find_cut(backbone: Backbone, head_node: str, unfreeze: int | str) -> Cut:
    """Where to cut so that `unfreeze` blocks below the head train.

    Parameters
    ----------
    head_node : NODE or NODE@POOL that the head takes
    unfreeze : int, str
        A number of blocks, "all", or a block or node: it and all above it.

    Raises
    ------
    BackboneError
        More blocks than there are, no such node, or one that is not below the head.
    """
    graph = backbone.graph
    end = _end(backbone, head_node)
    pieces = _pieces(backbone, end)
    if isinstance(unfreeze, int) or unfreeze.lstrip("-").isdigit():
        count = int(unfreeze)
        if not 1 <= count <= len(pieces):
            raise BackboneError(
                f"Cannot unfreeze {count} blocks: below the head's node {head_node} there are {len(pieces)}, "
                f"{', '.join(name for name, _, _ in pieces)}.",
                f"Use 1 to {len(pieces)}, or all.",
            )
        pieces = pieces[-count:]
    elif unfreeze != "all":
        pieces = _from_node(backbone, head_node, pieces, unfreeze)
    start = pieces[0][1]
    return Cut(
        node=None if start is None else f"{backbone.resolve(graph.canonical[start])}@none",
        blocks=tuple(name for name, _, _ in reversed(pieces)),
        parameters=tuple(_parameters(backbone, first, last) for _, first, last in reversed(pieces)),
        start=start,
        end=end,
    )


class Section(nn.Module):
    """Rows of images (N, …) → features (N, D) of the head's node.

    Parameters
    ----------
    backbone : Backbone
    cut : Cut
    head_node : NODE or NODE@POOL
    preprocess : Preprocess
        Of the pixels; also says how large maps are.
    statistics : bool
        Whether the section follows `train()`: BatchNorm renews its statistics, dropout is active. Otherwise
        it stays as it is at prediction, and no buffer of it ever changes.
    """

    def __init__(
        self,
        backbone: Backbone,
        cut: Cut,
        head_node: str,
        preprocess: Preprocess,
        statistics: bool = False,
    ) -> None:
        super().__init__()
        self.statistics = statistics
        self.normalise = Normalise(preprocess) if cut.start is None else None
        self.pool = backbone.extractor([head_node], preprocess).pools[0]
        evaluation = backbone.graph.part(cut.end, start=cut.start)
        if statistics:
            twin = trace(backbone.module, training=True)
            training = twin.part(
                _twin(backbone.graph, twin, cut.end), start=_twin(backbone.graph, twin, cut.start)
            )
            self.body = DualGraphModule(backbone.module, training, evaluation, "Section")
        else:
            self.body = fx.GraphModule(backbone.module, evaluation, "Section")
        self.eval()

    def forward(self, rows: Tensor) -> Tensor:
        """(N, …) maps of any float type, or (N, H, W, C) uint8 pixels → (N, D) float32."""
        x = rows.float() if self.normalise is None else self.normalise(rows)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)  # a quarter faster on CPUs
        return self.pool(self.body(x)).flatten(1).float()

    def train(self, mode: bool = True) -> Section:
        """As for any module, but a section without `statistics` stays in evaluation mode."""
        return super().train(mode and self.statistics)


def _end(backbone: Backbone, head_node: str) -> fx.Node:
    """The operation whose tensor is pooled into the features of `head_node`."""
    node, _, kind = head_node.partition("@")
    if node == BOTTLENECK and (kind or backbone.anatomy.native):
        return backbone.anatomy.map
    return backbone.operation(node)


def _pieces(backbone: Backbone, end: fx.Node) -> list[tuple[str, fx.Node | None, fx.Node]]:
    """(block, first, last) of the blocks below `end`; what has no parameters joins the block before."""
    position = backbone.graph.position
    ends = [op for op in backbone.anatomy.ends if position[op] < position[end]]
    bounds = [None, *ends, end]
    names = [block.name for block in backbone.blocks]
    pieces = []
    for i, (first, last) in enumerate(itertools.pairwise(bounds)):
        if pieces and not _parameters(backbone, first, last):
            name, first, _ = pieces.pop()
        else:
            name = names[i]
        pieces.append((name, first, last))
    return pieces


def _from_node(
    backbone: Backbone, head_node: str, pieces: list[tuple[str, fx.Node | None, fx.Node]], name: str
) -> list[tuple[str, fx.Node | None, fx.Node]]:
    """The pieces from a block on, or from the last place before a node at which the network can be cut."""
    names = [piece[0] for piece in pieces]
    if name in names:
        return pieces[names.index(name) :]
    graph = backbone.graph
    resolved = backbone.operation(name)
    path = graph.names[resolved] if name not in graph.by_name else name
    inside = [op for op in graph.nodes if f"{graph.names[op]}.".startswith(f"{path}.")] or [resolved]
    before = [op for op in graph.cuts if graph.position[op] < graph.position[inside[0]]]
    start = before[-1] if len(before) > 1 else None  # the first cut is the input itself
    at = graph.position[start] if start is not None else -1
    if at >= graph.position[pieces[-1][2]]:
        raise BackboneError(
            f"Cannot unfreeze from {name}: the head's node {head_node} lies below it.",
            f"Its blocks are {', '.join(names)}.",
        )
    kept = [piece for piece in pieces if graph.position[piece[2]] > at]
    return [(kept[0][0], start, kept[0][2]), *kept[1:]]


def _parameters(
    backbone: Backbone, first: fx.Node | None, last: fx.Node
) -> tuple[tuple[str, nn.Parameter], ...]:
    """(name, parameter) of everything that works between two operations."""
    found: dict[str, nn.Parameter] = {}
    for node in backbone.graph.part(last, start=first).nodes:
        if node.op == "call_module":
            module = backbone.module.get_submodule(node.target)
            found |= {f"{node.target}.{name}": value for name, value in module.named_parameters()}
        elif node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            value = getattr(backbone.module.get_submodule(owner), name)
            if isinstance(value, nn.Parameter):
                found[node.target] = value
    return tuple(found.items())


def _twin(evaluation: NetworkGraph, training: NetworkGraph, node: fx.Node | None) -> fx.Node | None:
    """The operation of the training graph that stands for `node`."""
    return None if node is None else training.by_name[evaluation.names[node]]
