"""The candidates of `train`: a head on one node of one backbone, or on several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from bottleneck.names import BOTTLENECK, SIDE_BY_SIDE, nodes_in
from bottleneck.trials.evidence import Contender
from bottleneck.trials.finetuning import Tuning
from bottleneck.trials.heads import Tried
from bottleneck.trials.task import Task

HEAD, NODE, COMBINED, FLIPPED, FINETUNED = "head", "node", "combined", "flipped", "finetuned"
KINDS = (HEAD, NODE, COMBINED, FLIPPED, FINETUNED)  # the simplest first
MOST_COMBINED = (2, 3, 4)  # the best nodes side by side, and all of them


@dataclass(frozen=True)
class Candidate:
    """A candidate that was tried.

    kind : one of KINDS. order : of its backbone, as the user named them. what : in words.
    tuning : of a network; None of a head.
    """

    kind: str
    backbone: str
    order: int
    node: str
    task: Task
    tried: Tried
    what: str
    tuning: Tuning | None = None

    def contender(self, several: bool) -> Contender:
        """Return the candidate as the choice sees it. several : whether there are several backbones."""
        tier = KINDS.index(self.kind) * 1000 + self.order
        return Contender(self.what + (f" of {self.backbone}" if several else ""), tier, self.tried.evidence)

    def to_json(self, chosen: bool) -> dict[str, Any]:
        """Return the candidate as one row of the table."""
        metric = self.task.metric
        figures = {f"{of}_{metric}": self.tried.metrics.get(of, {}).get(metric) for of in ("cv", "val")}
        return {
            "what": self.what,
            "kind": self.kind,
            "backbone": self.backbone,
            "node": self.node,
            **figures,
            "pooled": self.tried.evidence.mean,
            "seconds": self.tried.seconds,
            "chosen": chosen,
        }


def width(task: Task, node: str) -> int:
    """Return the number of features D that a head on `node` takes for one image."""
    return sum(prod(task.cache.node(part).shape) for part in nodes_in(node))


def kind_of(node: str) -> str:
    """Return the kind of a head on `node`."""
    if SIDE_BY_SIDE in node:
        return COMBINED
    return HEAD if node == BOTTLENECK else NODE


def combinations(candidates: Sequence[Candidate]) -> list[str]:
    """Return which nodes to try side by side: the best two, three and four, and all.

    Nodes are ranked by pooled evidence, and stand in the network's order, the bottleneck last.

    candidates : heads on single nodes of one backbone, the bottleneck first, then from the bottom up.
    """
    nodes = [each.node for each in candidates]
    order = {node: number for number, node in enumerate([*nodes[1:], nodes[0]])}
    ranked = sorted(candidates, key=lambda each: -each.tried.evidence.mean)
    best = [each.node for each in ranked]
    sets = [best[:count] for count in MOST_COMBINED if count < len(best)]
    if len(best) > 1:
        sets.append(best)
    names = [SIDE_BY_SIDE.join(sorted(chosen, key=order.__getitem__)) for chosen in sets]
    return list(dict.fromkeys(names))
