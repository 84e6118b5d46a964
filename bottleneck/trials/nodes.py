"""The nodes that are probed: the end of every stage of a network, pooled, and its bottleneck."""

from __future__ import annotations

from bottleneck.backbones.backbone import Backbone
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError
from bottleneck.names import BOTTLENECK

GRID_POOL = "avg2"  # maps are averaged over a grid of 2 × 2


def stage_nodes(backbone: Backbone, preprocess: Preprocess | None = None) -> list[str]:
    """Return the end of every stage in the network's order, maps as 2 × 2 averages, and the bottleneck last.

    Where layers outside a stage's module follow it (the last convolution of EfficientNet), the module's own
    output is a node of its own before them.
    """
    ends: dict[object, str] = {}
    for block in backbone.blocks[:-1]:
        for name in (block.name, block.node):
            try:
                ends.setdefault(backbone.operation(name), backbone.resolve(name))
            except BackboneError:  # the stage has a name of ours, which no tensor has
                continue
    names = [_pooled(backbone, node, preprocess) for node in ends.values() if node != BOTTLENECK]
    return [*dict.fromkeys(names), BOTTLENECK]


def is_bottleneck_map(backbone: Backbone, node: str) -> bool:
    """Return True for the bottleneck, and for pooled forms of the map that it is made from."""
    name = node.partition("@")[0]
    return name == BOTTLENECK or backbone.operation(name) in (
        backbone.anatomy.map,
        backbone.anatomy.bottleneck,
    )


def _pooled(backbone: Backbone, node: str, preprocess: Preprocess | None) -> str:
    try:
        backbone.node_shape(f"{node}@{GRID_POOL}", preprocess)
    except BackboneError:  # not a map
        return node
    return f"{node}@{GRID_POOL}"
