"""How does extraction on many actors end if some are slow or die, or the driver is killed? A simulation.

    python -m tests.benchmarks.stragglers

The driver hands out batches in order, at most `in_flight` to an actor, which computes one at a time. What is
computed reaches the driver, which commits every `commit` batches. An actor that dies loses the batch that it
computes and those that wait there: they go back to the front of the queue, for the next free actor. The actor
is back after `restart` seconds. Lives are exponential, from a seed; times are in seconds.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cluster:
    """Seconds a batch of each actor; batches in flight and a commit; mean life and restart in seconds."""

    seconds: Sequence[float]
    in_flight: int = 2
    commit: int = 32
    life: float | None = None
    restart: float = 60.0


@dataclass
class Run:
    """What came of a run: batches in the order of commits, starts by batch, deaths by actor."""

    committed: list[int] = field(default_factory=list)
    started: dict[int, int] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)
    most_in_flight: int = 0
    seconds: float = 0.0

    @property
    def repeated(self) -> int:
        """Batches that were started again."""
        return sum(self.started.values()) - len(self.started)


def simulate(
    batches: int, cluster: Cluster, seed: int = 0, done: Collection[int] = (), until: float = math.inf
) -> Run:
    """Run the batches that are not `done`; killed at `until`, the driver loses what it has not committed."""
    draw, run, gone = random.Random(seed), Run(), set(done)
    waiting = deque(batch for batch in range(batches) if batch not in gone)
    left, received = len(waiting), []
    given: list[deque[int]] = [deque() for _ in cluster.seconds]  # the first one of each is being computed
    ends = [0.0] * len(
        cluster.seconds
    )  # of the batch that is being computed; an end at another time is of one that was lost
    alive = [True] * len(cluster.seconds)
    events: list[tuple[float, int, str]] = []

    def live(actor: int, now: float) -> None:
        alive[actor] = True
        if cluster.life is not None:
            heapq.heappush(events, (now + draw.expovariate(1 / cluster.life), actor, "death"))

    def start(actor: int, now: float) -> None:
        batch = given[actor][0]
        run.started[batch] = run.started.get(batch, 0) + 1
        ends[actor] = now + cluster.seconds[actor]
        heapq.heappush(events, (ends[actor], actor, "end"))

    def hand_out(now: float) -> None:
        for depth in range(cluster.in_flight):  # each has one before any has two
            for actor, queue in enumerate(given):
                if waiting and alive[actor] and len(queue) == depth:
                    queue.append(waiting.popleft())
                    if depth == 0:
                        start(actor, now)
        run.most_in_flight = max(run.most_in_flight, *map(len, given))

    for actor in range(len(cluster.seconds)):
        live(actor, 0.0)
    hand_out(0.0)
    while left and (now := events[0][0]) <= until:
        _, actor, what = heapq.heappop(events)
        if what == "end" and alive[actor] and given[actor] and ends[actor] == now:
            received.append(given[actor].popleft())
            left -= 1
            if len(received) == cluster.commit or not left:
                run.committed += received
                received = []
            if given[actor]:
                start(actor, now)
        elif what == "death":
            alive[actor] = False
            run.deaths[actor] = run.deaths.get(actor, 0) + 1
            waiting.extendleft(reversed(given[actor]))
            given[actor].clear()
            heapq.heappush(events, (now + cluster.restart, actor, "back"))
        elif what == "back":
            live(actor, now)
        hand_out(now)
        run.seconds = now
    return run


ACTORS, BATCHES, SECONDS = 16, 4096, 8.0  # a batch of 256 images at 32 images/s of an actor


def tables() -> list[str]:
    """Return the tables of docs/scaling.md: one slow actor, then deaths."""
    ideal = BATCHES * SECONDS / ACTORS
    lines = ["| one of 16 actors is | one queue | with 8 in flight | a shard each |", "|---|---|---|---|"]
    for factor in (1, 2, 5, 20, 100):
        speeds = [SECONDS * factor] + [SECONDS] * (ACTORS - 1)
        best = BATCHES / sum(1 / speed for speed in speeds)
        two, eight = (simulate(BATCHES, Cluster(speeds, in_flight)).seconds / best for in_flight in (2, 8))
        named = "as fast as the others" if factor == 1 else f"{factor} times slower"
        lines.append(f"| {named} | {two:.3f} | {eight:.3f} | {factor * ideal / best:.2f} |")
    lines += [
        "",
        "| mean life of an actor | deaths | batches repeated | committed | time |",
        "|---|" + "---|" * 4,
    ]
    for minutes in (None, 240, 60, 15, 5):
        run = simulate(BATCHES, Cluster([SECONDS] * ACTORS, life=minutes and minutes * 60.0), seed=1)
        named = "no death" if minutes is None else f"{minutes} minutes"
        cells = (sum(run.deaths.values()), run.repeated, len(run.committed), f"{run.seconds / ideal:.3f}")
        lines.append(f"| {named} | " + " | ".join(map(str, cells)) + " |")
    return lines


if __name__ == "__main__":
    print(*tables(), sep="\n")
