"""What an image, a head and a row cost in time of cores, as their number grows.

    python -m tests.benchmarks.scaling [--short]

A cache of EfficientNet-Lite0 (fp32) grows from size to size, after a first run that builds the engine; the
time of a run that finds nothing new is taken off. Images are 1,000 photographs with a number behind their
last byte, which makes each new. Heads: 13 values of C × 5 folds and a refit on 1,280 features in 10 classes.
Rows: a cache of 64 features is written, opened and verified. The peer of each size is the smallest one.
`costs.py` turns such figures into those of many images, for docs/scaling.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.images import write_photographs
from tests.benchmarks.machine import processor_seconds
from tests.benchmarks.measurement import FEWER, Row, main
from tests.benchmarks.process import run_child
from tests.benchmarks.scale import write

SIZES = (1_000, 5_000, 20_000, 50_000)
ROWS = 1_000_000
NARROW, FIRST, DRAWN = 64, 64, 1000
MILLI, MICRO = 1e3, 1e6


def rows(short: bool) -> Iterator[Row]:
    """Images, heads, rows."""
    sizes = SIZES[:2] if short else SIZES
    with tempfile.TemporaryDirectory(prefix="bottleneck-scaling-") as scratch:
        yield from images(Path(scratch), sizes)
        found = {size: run_child("scaling", "sweep", folder=scratch, size=size).found for size in sizes}
        for size in sizes:
            yield grown("fit-head, a row", "ms of cores", size, sizes, {n: found[n]["ms"] for n in sizes})
        sizes = sizes if short else (*sizes, ROWS)
        kept = {size: run_child("scaling", "store", folder=scratch, size=size) for size in sizes}
        for what in ("write", "open", "verify"):
            for size in sizes:
                values = {n: kept[n].found[what] for n in sizes}
                yield grown(f"cache, {what} a row", "µs of cores", size, sizes, values)
        per_row = (kept[sizes[-1]].megabytes - kept[sizes[0]].megabytes) * MICRO / (sizes[-1] - sizes[0])
        yield Row("cache, memory a row while it is written and read", "bytes", (per_row,))


def images(scratch: Path, sizes: tuple[int, ...]) -> Iterator[Row]:
    """Extraction into one cache whose folder grows."""
    made = sorted(write_photographs(scratch / "made", DRAWN).rglob("*.jpg"), key=lambda path: path.stem)
    folder, cache, before = scratch / "photographs", scratch / "images.h5", 0
    folder.mkdir()
    spent: dict[int, float] = {}
    for size in (FIRST, *sizes):
        for number in range(before, size):
            data = made[number % DRAWN].read_bytes() + number.to_bytes(4, "big")
            (folder / f"{number:06}.jpg").write_bytes(data)
        first, again = (
            run_child("scale", "extraction", folder=folder, limit=size, cache=cache) for _ in "12"
        )
        assert (first.found["images"], again.found["images"]) == (size - before, 0)
        spent[size] = MILLI * (first.processor_seconds - again.processor_seconds) / (size - before)
        if size != FIRST:
            conditions = f"{first.megabytes:.0f} MB; unchanged: {again.processor_seconds:.1f} s of cores"
            yield grown("extract, a new image", "ms of cores", size, sizes, spent, conditions)
        before = size


def grown(
    what: str, unit: str, size: int, sizes: tuple[int, ...], values: dict[int, float], conditions: str = ""
) -> Row:
    """One size beside the smallest."""
    least = (values[sizes[0]],)
    peer = f"{sizes[0]:,}"
    return Row(f"{what}: {size:,}", unit, (values[size],), least, peer, FEWER, conditions=conditions)


# ---- each in a process of its own


def sweep(folder: str, size: int) -> dict:
    """Milliseconds of cores a row of what `fit-head` does."""
    from bottleneck.fitting.fit_heads import fit_heads

    cache = Path(folder, f"heads-{size}.h5")
    write(str(cache), size)
    started = processor_seconds()
    record = fit_heads(cache, output=Path(folder, "heads")).heads[0]
    spent = processor_seconds() - started
    cache.unlink()
    return {"ms": MILLI * spent / size, "C": record["C"]}


def store(folder: str, size: int) -> dict:
    """Microseconds of cores a row of writing, opening and verifying a cache."""
    from bottleneck.store.reader import FeatureCache
    from bottleneck.store.verify import verify

    cache = Path(folder, f"rows-{size}.h5")
    marks = [processor_seconds()]
    write(str(cache), size, NARROW)
    marks.append(processor_seconds())
    with FeatureCache(cache) as opened:
        assert len(opened.images.key) == size
    marks.append(processor_seconds())
    assert verify(cache).ok
    marks.append(processor_seconds())
    cache.unlink()
    return dict(zip(("write", "open", "verify"), (MICRO * np.diff(marks) / size).tolist(), strict=True))


if __name__ == "__main__":
    main(rows, __doc__)
