"""Run parts of an extraction on the workers of a Ray cluster, a bounded number of parts at each.

    parts ──► free workers ──► results, in the order in which they are done

Ray places the workers, starts them again where their process dies, and repeats what they had in work. The
pool gives parts to workers that are ready, and takes them back from those whose node is lost or that refuse.
Nodes that come later get workers, and workers that Ray places later get parts.

Parts of a worker that died again and again are computed after all others, each by a worker that has nothing
else, then image by image: the image that ends workers becomes a failure, and those beside it get their rows.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import bottleneck
from bottleneck.data.loader import LoadedImage
from bottleneck.errors import BottleneckError, ClusterError, Note, counted, first_line
from bottleneck.extraction.ray_actor import actor_class
from bottleneck.extraction.ray_cluster import Size, living_nodes, sizes_of
from bottleneck.extraction.ray_task import Done, Part, Task
from bottleneck.progress import Reporter

AT_WORK = 3  # parts of one worker at a time: two in the network, and one that is being read and decoded
RESTARTS = 3  # of a worker whose process dies, and of its parts; then the pool starts another one
RETURNS = 4  # of a part whose node is lost; then it is computed alone
BLAMES = 2  # workers that an image ends alone; then it is a failure
MOST_DEADLY = 8  # such images; then the fault is not theirs
DEATHS = 4  # of workers of one node, with nothing done between; then the node gets none
POLL_SECONDS = 1.0  # between looks at the cluster's nodes
SETTLED_SECONDS = 5.0  # after which the user is told of workers although others are still starting
PATIENCE_SECONDS = 30.0  # without a worker, after which the user is told what is awaited


@dataclass(eq=False)
class _Slot:
    """A worker.

    info : what it told at its start; None before. parts : that it has, by their results.
    alone : it has one part, which ended workers before, and gets no other beside it.
    """

    size: Size
    handle: Any
    started: Any
    info: dict[str, Any] | None = None
    parts: dict[Any, Part] = field(default_factory=dict)
    done: int = 0
    alone: bool = False

    @property
    def node(self) -> str | None:
        """The id of its node, where that is known."""
        return self.size.node.id if self.size.node else self.info["node"] if self.info else None

    @property
    def place(self) -> str:
        """Its node, for a sentence."""
        if self.info is not None:
            return f"{self.info['host']} (node {self.info['node'][:8]})"
        return str(self.size.node or "a node that Ray chose")


class Pool:
    """Workers of a Ray cluster that compute parts; a context manager, which ends them.

    Parameters
    ----------
    task : ray_worker.Task
    sizes : the first workers (`sizes_of`)
    gpus : of each worker that comes later
    reporter : is told how many workers there are on how many nodes

    Attributes
    ----------
    refused : reasons of workers that would not or could not take part, by their nodes
    lost : number of workers that were lost. repeated : of parts that others computed again
    nodes : hosts of the nodes that computed, by id. computed : number of images by the node's address
    """

    def __init__(self, task: Task, sizes: Sequence[Size], gpus: float, reporter: Reporter) -> None:
        import ray

        self._ray, self._gpus, self._reporter = ray, gpus, reporter
        # In a list, so that each worker fetches it once, also when Ray has started it again
        self._task = [ray.put(pickle.dumps(task))]
        self._worker: Any = ray.remote(actor_class())
        self.refused: dict[str, str] = {}
        self.lost = self.repeated = 0
        self.nodes: dict[str, str] = {}
        self.computed: Counter[str] = Counter()
        self._given_up: set[str] = set()  # ids of nodes
        self._deaths: Counter[str | None] = Counter()  # of workers, by their node
        self._returns: Counter[tuple[int, ...]] = Counter()  # by the indices of a part
        self._blames: Counter[tuple[int, ...]] = Counter()
        self._again: deque[Part] = deque()
        self._alone: deque[Part] = deque()
        self._deadly: list[LoadedImage] = []
        self._named = 0  # of these, told by now
        self._looked = self._changed = time.monotonic()
        self._told = (0, 0)
        self._slots: list[_Slot] = []
        self._fixed = all(size.node is None for size in sizes)  # their number was given
        for size in sizes:
            self._start(size)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._slots:
            self._end(self._slots[-1])

    def wait(self) -> None:
        """Wait for the first worker. Raises ClusterError where none can take part."""
        while not any(slot.info for slot in self._slots):
            for _ in self._step({}):
                raise AssertionError("a result of no part")

    def run(self, next_part: Callable[[int], Part | None]) -> Iterator[Done]:
        """Yield what the parts give, as soon as it is done.

        next_part : returns a part of about so many images; None where there are no more.

        Raises
        ------
        ClusterError
            No worker is left, or many images end each worker that gets them.
        """
        while True:
            more = self._hand_out(next_part)
            at_work = {ref: slot for slot in self._slots for ref in slot.parts}
            if not more and not at_work:
                return
            yield from self._step(at_work)
            if named := self._deadly[self._named :]:
                self._named = len(self._deadly)
                yield Done(list(named))

    def notes(self) -> Iterator[Note]:
        """Yield the notes on who computed, who refused and what was given out again."""
        hosts = sorted(set(self.nodes.values()))
        text = f"Computed on Ray by workers on {counted(len(self.nodes), 'node')}: {', '.join(hosts[:5])}."
        details = {"nodes": len(self.nodes), "hosts": hosts, "images_by_address": dict(self.computed)}
        yield Note("ray-workers", text, details=details)
        if self._fixed and (missing := sum(slot.info is None for slot in self._slots)):
            text = (
                f"{missing} of {len(self._slots)} Ray workers had not started when the work was done: each "
                f"waits for {self._slots[0].size} free on one node."
            )
            yield Note("ray-workers-unstarted", text, details={"unstarted": missing})
        if self.refused:
            details = {"refused": dict(self.refused)}
            text = f"Ray workers took no part: {self._reasons()}."
            yield Note("ray-workers-refused", text, details=details)
        if self.lost:
            text = f"{self.lost} Ray workers were lost; others got {self.repeated} of their batches."
            yield Note("ray-workers-lost", text, details={"lost": self.lost, "repeated": self.repeated})

    def _reasons(self) -> str:
        return "; ".join(f"{place} {reason}" for place, reason in self.refused.items())

    def _hand_out(self, next_part: Callable[[int], Part | None]) -> bool:
        """Give parts to workers that have fewer than `AT_WORK`; return False where there are no more."""

        def give(slot: _Slot, part: Part) -> None:
            slot.parts[slot.handle.compute.remote(self._task, part)] = part

        able = [slot for slot in self._slots if slot.info and not slot.alone]
        while free := [slot for slot in able if len(slot.parts) < AT_WORK]:
            slot = min(free, key=lambda slot: len(slot.parts))
            assert slot.info is not None
            part = self._again.popleft() if self._again else next_part(slot.info["batch"])
            if part is None:
                break
            give(slot, part)
        else:
            return True
        for slot in able:
            if self._alone and not slot.parts:
                slot.alone = True
                give(slot, self._alone.popleft())
        return bool(self._alone)

    def _step(self, at_work: dict[Any, _Slot]) -> Iterator[Done]:
        """Wait for results or starts, at most `POLL_SECONDS`; yield the results, and look at the nodes."""
        starting = {slot.started: slot for slot in self._slots if slot.info is None}
        if waited := [*at_work, *starting]:
            # Results stay where they are until their turn, so that the store of this node has one at a time
            self._ray.wait(waited, num_returns=1, timeout=POLL_SECONDS, fetch_local=False)
            ready, _ = self._ray.wait(waited, num_returns=len(waited), timeout=0, fetch_local=False)
            for ref in ready:
                if ref in starting and starting[ref] in self._slots:
                    self._welcome(starting[ref])
                elif ref in at_work and ref in at_work[ref].parts and at_work[ref] in self._slots:
                    yield from self._finish(ref, at_work[ref])
        if time.monotonic() - self._looked >= POLL_SECONDS or not self._slots:
            self._look()
        self._tell()

    def _welcome(self, slot: _Slot) -> None:
        """Take in a worker that has started, or its refusal."""
        try:
            slot.info = self._ray.get(slot.started)
        except self._ray.exceptions.RayError as error:
            self._give_up(slot, f"ended at its start: {_last_line(error)}", died=True)
            return
        if slot.info["refusal"]:
            self._give_up(slot, slot.info["refusal"])

    def _finish(self, ref: Any, slot: _Slot) -> Iterator[Done]:
        """Yield the result of a part; where it has none, the part is given out again."""
        exceptions = self._ray.exceptions
        try:
            done = self._ray.get(ref)
        except exceptions.RayTaskError as error:  # raised by our own code
            raise _failure(slot.place, getattr(error, "cause", error)) from error
        except exceptions.RayActorError as error:
            self._give_up(slot, f"ended at its work: {_last_line(error)}", died=True)
        except exceptions.RayError:  # as where a node went away that had the result
            self._take_back(slot.parts.pop(ref), slot)
            slot.alone = False
        else:
            if isinstance(done, str):
                self._give_up(slot, done)
                return
            assert slot.info is not None
            self.nodes[slot.info["node"]] = slot.info["host"]
            self.computed[slot.info["address"]] += len(slot.parts.pop(ref).indices)
            self._deaths.pop(slot.node, None)
            slot.done, slot.alone = slot.done + 1, False
            yield done

    def _start(self, size: Size) -> None:
        """Ask Ray for a worker. It waits where the node is busy, or until there is one."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(size.node.id, soft=False) if size.node else "SPREAD"
        options = self._worker.options(
            num_cpus=size.cpus,
            num_gpus=size.gpus,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
            max_concurrency=AT_WORK,
            scheduling_strategy=where,
        )
        handle = options.remote(bottleneck.__version__, size.cpus, size.gpus > 0)
        self._slots.append(_Slot(size, handle, handle.info.remote(self._task)))

    def _end(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        with suppress(Exception):  # it is gone already
            self._ray.kill(slot.handle)

    def _give_up(self, slot: _Slot, reason: str, died: bool = False) -> None:
        """End a worker and take its parts back. It is replaced, unless it has refused or its node is gone.

        died : its process ended, or is out of reach: only `DEATHS` of a node in a row are a refusal.
        """
        self._end(slot)
        lives = slot.node is None or slot.node in {node.id for node in living_nodes()}
        if died and lives:
            self._deaths[slot.node] += 1
        for part in slot.parts.values():
            self._take_back(part, slot, blamed=died and lives)
        if lives and (self._deaths[slot.node] >= DEATHS if died else not slot.done):
            self.refused[slot.place] = reason
            self._given_up |= {slot.node} if slot.node else set()
            return
        self.lost += 1
        if lives or slot.size.node is None:  # on another node, as soon as one has room
            self._start(slot.size)

    def _take_back(self, part: Part, slot: _Slot, blamed: bool = False) -> None:
        """Keep a part for another worker. blamed : its worker died, perhaps of it.

        Raises ClusterError where many images were found to end their workers.
        """
        self.repeated += 1
        self._returns[part.indices] += 1
        if not blamed and self._returns[part.indices] <= RETURNS:
            (self._alone if slot.alone else self._again).append(part)
        elif not slot.alone:
            self._alone.append(part)
        elif len(part.indices) > 1:
            self._alone += part.singles()
        else:
            self._blames[part.indices] += 1
            if self._blames[part.indices] < BLAMES:
                self._alone.append(part)
            else:
                self._name(part, slot)

    def _name(self, part: Part, slot: _Slot) -> None:
        """Make the one image of a part a failure. Raises ClusterError where there were many."""
        self._deaths.pop(slot.node, None)
        reason = f"ends each Ray worker that computes it, the last one on {slot.place}"
        self._deadly.append(LoadedImage(part.indices[0], part.keys[0], error=reason, passing=True))
        if len(self._deadly) > MOST_DEADLY:
            raise ClusterError(
                f"{counted(len(self._deadly), 'image')} ended each Ray worker that computed them alone; "
                "the last is "
                f"{part.keys[0]}, on {slot.place}.",
                "Run extract without --ray to see why; a worker may have too little memory.",
            )

    def _look(self) -> None:
        """Give up workers on nodes that are gone, and start some on nodes that have come."""
        self._looked = time.monotonic()
        nodes = living_nodes()
        alive = {node.id for node in nodes}
        for slot in [slot for slot in self._slots if slot.node and slot.node not in alive]:
            self._give_up(slot, "lost its node")
        if not self._fixed:
            served = {slot.node for slot in self._slots} | self._given_up
            for size in sizes_of([node for node in nodes if node.id not in served], None, self._gpus):
                self._start(size)
        if not self._slots:
            raise ClusterError(
                f"No Ray worker can take part: {self._reasons() or 'all nodes are lost'}.",
                "Finished work is saved: run extract again when the nodes are in order.",
            )

    def _tell(self) -> None:
        """Tell the user how many workers there are, when that has changed, or what is awaited."""
        ready = [slot for slot in self._slots if slot.info]
        now, state = time.monotonic(), (len(ready), len({slot.node for slot in ready}))
        starting = len(self._slots) - len(ready)
        if state == self._told:
            if not ready and now - self._changed > PATIENCE_SECONDS:
                self._changed = now
                self._reporter.tell("Waiting for Ray: no worker has started. Its nodes may be busy.")
        elif not starting or now - self._changed > SETTLED_SECONDS:
            self._told, self._changed = state, now
            more = f", {starting} more awaited" if starting else ""
            self._reporter.tell(f"Ray: {counted(state[0], 'worker')} on {counted(state[1], 'node')}{more}.")


def _failure(place: str, cause: BaseException) -> ClusterError:
    """Return the error of a worker as one of the run."""
    if isinstance(cause, BottleneckError):
        return ClusterError(f"The Ray worker on {place} failed: {cause.message}", cause.hint)
    return ClusterError(f"The Ray worker on {place} failed: {type(cause).__name__}: {_last_line(cause)}.")


def _last_line(error: BaseException) -> str:
    """Return the last line of an error of Ray that says something: the others are a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return first_line(lines[-1] if lines else type(error).__name__)
