"""The heads that `train` tries: one on each node, and some on the best nodes side by side, as time allows."""

from __future__ import annotations

from bottleneck.errors import Note
from bottleneck.fitting.head_files import file_name
from bottleneck.names import nodes_in
from bottleneck.studies.train.budget import FINAL, Clock
from bottleneck.studies.train.candidates import Candidate, combinations, kind_of, width
from bottleneck.studies.train.request import Request
from bottleneck.trials.heads import try_head
from bottleneck.trials.task import Task


def try_heads(request: Request, tasks: dict[str, Task], clock: Clock) -> tuple[list[Candidate], list[Note]]:
    """Return the heads that the time allows, and a note on those left out.

    tasks : by backbone. The bottleneck comes first, then the nodes from the top down.
    """
    found, skipped = list[Candidate](), list[str]()
    for backbone, task in tasks.items():
        nodes, single = request.nodes[backbone], list[Candidate]()
        for node in [nodes[0], *reversed(nodes[1:])]:
            _within(request, clock, task, node, backbone, single, skipped)
        single.sort(key=lambda each: nodes.index(each.node))
        found += single
        for node in combinations(single):
            _within(request, clock, task, node, backbone, found, skipped)
    if not skipped:
        return found, []
    text = f"{len(skipped)} candidates were left out to keep to the minutes: {'; '.join(skipped[:6])}."
    return found, [Note("candidates-left-out", text, True, {"left_out": skipped})]


def _within(
    request: Request,
    clock: Clock,
    task: Task,
    node: str,
    backbone: str,
    found: list[Candidate],
    skipped: list[str],
) -> None:
    """Add the head on `node` to `found` where the time allows it and the final fit, else to `skipped`."""
    size = width(task, node)
    if found and not clock.allows(clock.fit(size) * (1 + FINAL)):
        skipped.append(f"head on {node}")
        return
    found.append(head_candidate(request, task, backbone, node, clock))


def head_candidate(request: Request, task: Task, backbone: str, node: str, clock: Clock) -> Candidate:
    """Try the head on `node`, or read its finished trial."""
    record = file_name(backbone, task.target.name, node)
    tried = try_head(task, node, request.records, record, request.reporter)
    clock.learn(width(task, node), tried.seconds)
    order, count = request.backbones.index(backbone), len(nodes_in(node))
    all_of_them = count > 1 and count == sum(not each.is_map for each in task.cache.nodes.values())
    what = f"head on all {count} nodes" if all_of_them else f"head on {node}"
    return Candidate(kind_of(node), backbone, order, node, task, tried, what)
