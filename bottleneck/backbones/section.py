"""The part of a backbone that fine-tuning trains: the blocks between a cached map and the head's node.

    cached map (or pixels) ──► unfrozen blocks ──► pool ──► features that the head takes

A section shares the parameters of the backbone and keeps their names: training it fine-tunes the backbone.

Shapes: N images, C channels, H × W positions, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import DualGraphModule

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.convolution import faster_convolutions
from bottleneck.backbones.extractor import Normalise
from bottleneck.backbones.graph import layer_of, trace
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError, counted
from bottleneck.names import BOTTLENECK


@dataclass(frozen=True)
class Cut:
    """The place where a backbone is cut for fine-tuning.

    node : NODE@none, whose map is the input of the section; None if pixels are, and everything is trained.
    blocks : names of the unfrozen blocks, the topmost first.
    parameters : for each block, its (name, parameter) pairs.
    start, end : operations of the backbone's graph; the section is what follows `start`, up to `end`. A start
        of None is the network's input.
    """

    node: str | None
    blocks: tuple[str, ...]
    parameters: tuple[tuple[tuple[str, nn.Parameter], ...], ...]
    start: fx.Node | None
    end: fx.Node


def find_cut(backbone: Backbone, head_node: str, unfreeze: int | str) -> Cut:
    """The cut that unfreezes the topmost blocks below the head.

    Parameters
    ----------
    head_node : NODE or NODE@POOL that the head takes
    unfreeze : int, str
        A number of blocks; "all"; or a block or node, which is unfrozen with everything above it.

    Raises
    ------
    BackboneError
        There are fewer blocks, or no such node, or it is not below the head.
    """
    graph = backbone.graph
    end = _end(backbone, head_node)
    pieces = _pieces(backbone, end)
    if isinstance(unfreeze, int) or unfreeze.lstrip("-").isdigit():
        count = int(unfreeze)
        if not 1 <= count <= len(pieces):
            raise BackboneError(
                f"Cannot unfreeze {counted(count, 'block')}: below the head's node {head_node} there are "
                f"{len(pieces)}, "
                f"{', '.join(piece.block for piece in pieces)}.",
                f"Use 1 to {len(pieces)}, or all.",
            )
        pieces = pieces[-count:]
    elif unfreeze != "all":
        pieces = _from_node(backbone, head_node, pieces, unfreeze)
    start = pieces[0].start
    return Cut(
        node=None if start is None else f"{backbone.resolve(graph.canonical[start])}@none",
        blocks=tuple(piece.block for piece in reversed(pieces)),
        parameters=tuple(_parameters(backbone, piece.start, piece.stop) for piece in reversed(pieces)),
        start=start,
        end=end,
    )


class _Piece(NamedTuple):
    """What follows operation `start` (None: the input), up to `stop`, in the block named `block`."""

    block: str
    start: fx.Node | None
    stop: fx.Node


class Section(nn.Module):
    """Rows of images (N, …) → features (N, D) of the head's node.

    Parameters
    ----------
    backbone : Backbone
    cut : Cut
    head_node : NODE or NODE@POOL
    preprocess : Preprocess
        Of the pixels; it also determines the size of maps.
    statistics : bool
        Whether `train()` has its usual effect: BatchNorm updates its statistics and dropout is active. By
        default BatchNorm stays frozen (see `batchnorm`) and dropout off.
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
            network, names = trace(backbone.module, training=True), backbone.graph.names
            start = None if cut.start is None else network.by_name[names[cut.start]]
            training = network.part(network.by_name[names[cut.end]], start=start)
            self.body = DualGraphModule(backbone.module, training, evaluation, "Section")
        else:
            self.body = fx.GraphModule(backbone.module, evaluation, "Section")
        self.eval()

    def forward(self, rows: Tensor) -> Tensor:
        """(N, …) maps of any float type, or (N, H, W, C) uint8 pixels → (N, D) float32."""
        if self.normalise is not None:
            rows = self.normalise(rows)
        layout = torch.channels_last if rows.ndim == 4 else torch.preserve_format  # faster on CPUs
        with faster_convolutions():
            return self.pool(self.body(rows.to(torch.float32, memory_format=layout))).flatten(1).float()

    def train(self, mode: bool = True) -> Section:
        """Set the mode; without `statistics` the section stays in evaluation mode."""
        return super().train(mode and self.statistics)


def _end(backbone: Backbone, head_node: str) -> fx.Node:
    """The operation whose tensor is pooled into the features of `head_node`."""
    node, _, kind = head_node.partition("@")
    if node == BOTTLENECK and (kind or backbone.anatomy.native):
        return backbone.anatomy.map
    return backbone.operation(node)


def _pieces(backbone: Backbone, end: fx.Node) -> list[_Piece]:
    """The blocks below `end`; one without parameters is joined to the block before it."""
    position = backbone.graph.position
    ends = [op for op in backbone.anatomy.ends if position[op] < position[end]]
    pieces: list[_Piece] = []
    for block, start, stop in zip(backbone.blocks, [None, *ends], [*ends, end], strict=False):
        if pieces and not _parameters(backbone, start, stop):
            pieces[-1] = pieces[-1]._replace(stop=stop)
        else:
            pieces.append(_Piece(block.name, start, stop))
    return pieces


def _from_node(backbone: Backbone, head_node: str, pieces: list[_Piece], name: str) -> list[_Piece]:
    """The pieces from a block on, or from the last cut before a node."""
    names = [piece.block for piece in pieces]
    if name in names:
        return pieces[names.index(name) :]
    graph = backbone.graph
    resolved = backbone.operation(name)
    path = graph.names[resolved] if name not in graph.by_name else name
    inside = [op for op in graph.nodes if f"{graph.names[op]}.".startswith(f"{path}.")] or [resolved]
    before = [op for op in graph.cuts if graph.position[op] < graph.position[inside[0]]]
    start = before[-1] if len(before) > 1 else None  # the first cut is the input itself
    at = graph.position[start] if start is not None else -1
    if at >= graph.position[pieces[-1].stop]:
        raise BackboneError(
            f"Cannot unfreeze from {name}: the head's node {head_node} lies below it.",
            f"Its blocks are {', '.join(names)}.",
        )
    above = [piece for piece in pieces if graph.position[piece.stop] > at]
    return [above[0]._replace(start=start), *above[1:]]


def _parameters(
    backbone: Backbone, start: fx.Node | None, stop: fx.Node
) -> tuple[tuple[str, nn.Parameter], ...]:
    """(name, parameter) of everything that is used between two operations."""
    parameters: dict[str, nn.Parameter] = {}
    for node in backbone.graph.part(stop, start=start).nodes:
        layer = layer_of(backbone.module, node)
        if layer is not None:
            parameters |= {f"{node.target}.{name}": value for name, value in layer.named_parameters()}
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            value = getattr(backbone.module.get_submodule(owner), name)
            if isinstance(value, nn.Parameter):
                parameters[str(node.target)] = value
    return tuple(parameters.items())
