"""The heads that `train` tries: one on each node, and some on the best nodes side by side, as time allows."""

from __future__ import annotations

from dataclasses import replace

from bottleneck.errors import Note, counted
from bottleneck.fitting.head_files import file_name
from bottleneck.models.scoring import has_mirrors
from bottleneck.names import nodes_in
from bottleneck.studies.train.budget import FINAL, Clock
from bottleneck.studies.train.candidates import (
    FLIPPED,
    MOST_COMBINED,
    Candidate,
    combinations,
    kind_of,
    width,
)
from bottleneck.studies.train.request import Request
from bottleneck.trials.heads import try_head
from bottleneck.trials.mirrors import try_mirrored
from bottleneck.trials.task import Task


def try_heads(request: Request, tasks: dict[str, Task], clock: Clock) -> tuple[list[Candidate], list[Note]]:
    """Return the heads that the time allows, and a note on those left out.

    tasks : by backbone. The bottleneck comes first, then the nodes from the top down.
    """
    found, skipped = list[Candidate](), list[str]()
    total = sum(len(request.nodes[backbone]) + len(MOST_COMBINED) + 1 for backbone in tasks)
    with request.reporter.step("Trying heads", total=total, unit="heads") as advance:
        for backbone, task in tasks.items():
            nodes, single = request.nodes[backbone], list[Candidate]()
            for node in [nodes[0], *reversed(nodes[1:])]:
                _within(request, clock, task, node, backbone, single, skipped)
                advance(1)
            single.sort(key=lambda each: nodes.index(each.node))
            found += single
            sets = combinations(single)
            for node in sets:
                _within(request, clock, task, node, backbone, found, skipped)
                advance(1)
            advance(len(MOST_COMBINED) + 1 - len(sets))
    if not skipped:
        return found, []
    text = (
        f"{counted(len(skipped), 'candidate was', 'candidates were')} left out to keep to the minutes: "
        f"{'; '.join(skipped[:6])}."
    )
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
    tried = try_head(task, node, request.records, record)  # one bar counts the heads
    clock.learn(width(task, node), tried.seconds)
    order, count = request.backbones.index(backbone), len(nodes_in(node))
    all_of_them = count > 1 and count == sum(not each.is_map for each in task.cache.nodes.values())
    what = f"head on all {counted(count, 'node')}" if all_of_them else f"head on {node}"
    return Candidate(kind_of(node), backbone, order, node, task, tried, what)


def try_flip(request: Request, head: Candidate, clock: Clock) -> tuple[list[Candidate], list[Note]]:
    """Return the head on the mean of each image and its mirror image, where the cache has mirrored views.

    Where the time does not allow it there is a note instead.
    """
    if not has_mirrors(head.task.cache, head.node):
        return [], []
    if not clock.allows(clock.fit(width(head.task, head.node)) * (1 + FINAL)):
        text = "There was no time to try the mean of each image and its mirror image."
        return [], [Note("flip-left-out", text, True)]
    return [flip_candidate(request, head)], []


def flip_candidate(request: Request, head: Candidate) -> Candidate:
    """Try the mean of each image and its mirror image, or read the finished trial."""
    record = file_name(head.backbone, head.task.target.name, head.node, "flip")
    tried = try_mirrored(head.task, head.node, head.tried, request.records, record, request.reporter)
    return replace(
        head, kind=FLIPPED, tried=tried, what=f"{head.what}, mean of each image and its mirror image"
    )
