"""Memory and processor time per row of a cache whose rows stay in parts, and what they come to at 100 M rows.

    python -m tests.benchmarks.rows [--rows 1000000] [--keep FOLDER]

The rows are synthetic (D = 8, float16, two classes), written by `CacheWriter`. Each stage runs in a process
of its own. State: what the process holds after the stage beyond what it held before, by row; the keys that a
source has in memory anyway are made before. Peak: the largest resident memory of the stage beyond that.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bottleneck.files import FileStat
from bottleneck.samples import SampleTable, Target
from bottleneck.store.spec import CacheSpec, NodeSpec, Origin
from bottleneck.store.state import CacheState
from bottleneck.store.tables import objects
from bottleneck.store.writer import CacheWriter
from tests.benchmarks.machine import this_machine

D = 8
NODE = NodeSpec("bottleneck", "native", (D,))
SPEC = CacheSpec({"name": "synthetic", "weights": "none"}, {"size": 8})
ROOT = "/photographs"
BATCH = 4096
WHOLE = 100_000_000


def digests(start: int, stop: int) -> np.ndarray:
    """Return (n, 32) uint8 that look like sha256."""
    return np.random.default_rng(start).integers(0, 256, (stop - start, 32), dtype=np.uint8)


def keys_of(rows: int) -> tuple[str, ...]:
    return tuple(f"{row // 1000:06}/{row:09}.jpg" for row in range(rows))


def stats_of(rows: int) -> np.ndarray:
    """Return (n, 4) int64 as a file system gives them."""
    number = np.arange(rows)
    clock = 1_700_000_000_000_000_000
    return np.stack([50_000 + number % 9973, clock + 7 * number, clock + 7 * number + 1, number], axis=1)


def samples_of(keys: tuple[str, ...]) -> SampleTable:
    rows = len(keys)
    split = objects(["train"]).repeat(rows)
    split[::10] = "val"
    target = Target("label", "class", np.arange(rows) % 2, ("a", "b"))
    return SampleTable(objects(keys), np.arange(rows)[:, None], split, {"label": target})


def write(path: Path, rows: int) -> Callable[[], object]:
    keys, stats = keys_of(rows), stats_of(rows)

    def run() -> object:
        with CacheWriter(path, SPEC, [NODE], ROOT) as writer:
            writer.plan(keys, stats)
            for start in range(0, rows, BATCH):
                stop = min(rows, start + BATCH)
                random = np.random.default_rng(start)
                features = random.standard_normal((stop - start, D), dtype=np.float32)
                features[:, 0] += np.arange(start, stop) % 2
                each = zip(keys[start:stop], digests(start, stop), stats[start:stop].tolist(), strict=True)
                images = [(key, digest.tobytes(), FileStat._make(stat)) for key, digest, stat in each]
                writer.add(images, {NODE.name: features}, engines={NODE.name: "synthetic"})
            return writer.finish(samples_of(keys), consolidate=False)

    return run


def opened(path: Path, rows: int) -> Callable[[], object]:
    from bottleneck.store.reader import FeatureCache

    return lambda: FeatureCache(path)


def read(path: Path, rows: int) -> Callable[[], object]:
    from bottleneck.store.reader import FeatureCache

    cache = FeatureCache(path)

    def run() -> object:
        features = cache.sample_rows(NODE.name)
        for start in range(0, rows, BATCH):
            features.read(start, start + BATCH)
        return features

    return run


def plan(path: Path, rows: int) -> Callable[[], object]:
    from bottleneck.store.plan import plan_run

    keys, stats = keys_of(rows), stats_of(rows)

    def run() -> object:
        state = CacheState(path, Origin(SPEC, ROOT), [NODE])
        planned = plan_run(state, keys, stats)
        assert planned.reused == rows
        return state, planned

    return run


def verify(path: Path, rows: int) -> Callable[[], object]:
    from bottleneck.store.verify import Check

    def run() -> object:
        check = Check()
        check.cache(Path(f"{path}.parts"))
        assert not check.problems, check.problems[0]
        return check

    return run


def fit_head(path: Path, rows: int) -> Callable[[], object]:
    from bottleneck.fitting.fit_heads import fit_heads

    return lambda: fit_heads(path, C=1.0, memory=128 << 20, output=path.parent / "heads")


STAGES: dict[str, Callable[[Path, int], Callable[[], object]]] = {
    "write": write,
    "open": opened,
    "read all rows": read,
    "plan": plan,
    "verify": verify,
    "fit-head": fit_head,
}


def resident() -> int:
    """Return the bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def stage(name: str, path: Path, rows: int) -> None:
    """Run one stage in this process and print its figures."""
    run = STAGES[name](path, rows)
    before, started = resident(), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    kept = run()
    seconds = time.process_time() - started
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    print(json.dumps({"seconds": seconds, "state": resident() - before, "peak": peak - before}))
    del kept


def main() -> None:
    """Print a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="folder for the cache, which stays there")
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows = arguments.rows
    if arguments.stage:
        stage(arguments.stage[0], Path(arguments.stage[1]), rows)
        return
    print(this_machine().title)
    print(f"{rows:,} rows of {D} values in parts; per row, and for {WHOLE:,} rows")
    columns = ("state, B", "peak, B", "CPU, µs", "state, GB", "peak, GB", "hours")
    print(f"{'stage':14}" + "".join(f"{column:>11}" for column in columns))
    with tempfile.TemporaryDirectory() as temporary:
        path = (arguments.keep or Path(temporary)) / "cache.h5"
        for name in STAGES:
            if name == "write" and Path(f"{path}.parts").exists():
                continue
            command = [sys.executable, "-m", "tests.benchmarks.rows", "--rows", str(rows)]
            done = subprocess.run([*command, "--stage", name, str(path)], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            state, peak, seconds = (found[key] / rows for key in ("state", "peak", "seconds"))
            print(
                f"{name:14}{state:11.0f}{peak:11.0f}{1e6 * seconds:11.1f}"
                f"{state * WHOLE / 1e9:11.1f}{peak * WHOLE / 1e9:11.1f}{seconds * WHOLE / 3600:11.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
