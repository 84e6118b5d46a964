"""One to five of SIGINT, SIGTERM and SIGHUP, 1 to 300 ms apart, at a run of the command line's own `main`.

    python -m tests.store.faults.signals [--long]

Each round sends them at a random moment, and compares the committed rows with those before; every few rounds
a run is left to finish, and its content is compared with the expected one.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.world import MAP, A, content, world_of
from tests.store.faults.kill import committed
from tests.store.faults.runner import main

IMAGES = 60
NODES = [A, MAP]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST = 120.0  # seconds after the last signal; then the round counts as a hang
RUN = f"""
import sys, time, types, click
from bottleneck.cli import main
from bottleneck.store import committer
from bottleneck.store.writer import CacheWriter
from pathlib import Path
from tests.helpers.world import MAP, A, world_of

committer.PART_ROWS = 5
add = CacheWriter.add

def slow_add(*arguments, **keywords):
    time.sleep(0.02)
    add(*arguments, **keywords)

CacheWriter.add = slow_add

@click.command()
@click.argument("path")
def command(path):
    world_of({IMAGES}).extract(Path(path), [A, MAP])

sys.modules["work"] = types.SimpleNamespace(command=command)
main.COMMANDS["work"] = ("work", "works")
main.main()
"""


def wait_for_handlers(run: subprocess.Popen[bytes]) -> None:
    """Wait until the process handles SIGTERM; before that it has done nothing, and dies as any program."""
    while run.poll() is None:
        status = Path(f"/proc/{run.pid}/status").read_text()
        caught = re.search(r"SigCgt:\s*(\w+)", status)
        if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)


def strike(child: subprocess.Popen[bytes], dice: random.Random) -> tuple[list[int], int | None, bytes]:
    """Send one to five signals; return them, the exit code as a shell has it (None: it hung), and stderr."""
    sent = []
    for _ in range(dice.randint(1, 5)):
        if child.poll() is None:
            sent.append(dice.choice(SIGNALS))
            child.send_signal(sent[-1])
        time.sleep(dice.uniform(0.001, 0.3))
    try:
        _, said = child.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        child.kill()
        return sent, None, child.communicate()[1]
    # Python gives its handlers up when it ends: a signal then kills it, which a shell calls 128 + signal.
    return sent, 128 - child.returncode if child.returncode < 0 else child.returncode, said


def count(figures: dict, sent: list[int], code: int | None, said: bytes, lost: int) -> None:
    """Enter a round into the figures. lost : committed rows that are gone."""
    figures["rounds"] += 1
    figures["signals"] += len(sent)
    figures["interrupted"] += bool(code)
    figures["defect: hangs"] += code is None
    other = code not in (None, 0, *(128 + number for number in sent))
    figures["defect: crashes or other exit codes"] += other
    if other or b"Traceback" in said:
        print(f"exit code {code} after signals {sent}: {said.decode(errors='replace')[-2000:]}", flush=True)
    figures["defect: tracebacks"] += b"Traceback" in said
    figures["defect: committed rows lost"] += lost


FIGURES = ("rounds", "signals", "interrupted", "caches finished")
DEFECTS = (
    "hangs",
    "crashes or other exit codes",
    "tracebacks",
    "committed rows lost",
    "final content differs",
)


def run(folder: Path, rounds: int, seed: int = 0) -> dict:
    """Send random signals to runs, and let each cache be finished at last."""
    dice = random.Random(seed)
    figures = dict.fromkeys([*FIGURES, *(f"defect: {what}" for what in DEFECTS)], 0)
    expected = world_of(IMAGES).expected(NODES)
    for number in range(rounds):
        path = folder / f"{number // 4}" / "cache.h5"
        path.parent.mkdir(exist_ok=True)
        before = committed(path)
        child = subprocess.Popen([sys.executable, "-c", RUN, "work", str(path)], stderr=subprocess.PIPE)
        wait_for_handlers(child)
        time.sleep(dice.uniform(0, 1.5))
        sent, code, said = strike(child, dice)
        count(figures, sent, code, said, len(before - committed(path)))
        if number % 4 == 3 or number == rounds - 1:
            world_of(IMAGES).extract(path, NODES)
            figures["caches finished"] += 1
            figures["defect: final content differs"] += content(path) != expected
    return figures


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    main(run, short=3, long=200)
