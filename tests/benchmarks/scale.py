"""Peak memory, and the second run, as the number of images or of rows grows.

    python -m tests.benchmarks.scale [--short]

Extraction at few images and at many, beside the usual loop; `extract` again where no image has changed; heads
on a cache that is larger than `--memory`, beside scikit-learn, which holds all rows. Each in a process of its
own; memory is the peak of all resident memory, libraries included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks.heads import D, synthetic
from tests.benchmarks.images import write_photographs
from tests.benchmarks.measurement import FEWER, REPEATS, Row, main
from tests.benchmarks.peers import Clock
from tests.benchmarks.process import Child, run_child

LITE = "efficientnet_lite0"
GROWTH = 1.1  # of peak memory over ten times as many images
MEBIBYTE = 1 << 20


def rows(short: bool) -> Iterator[Row]:
    """Extraction, second runs, heads."""
    with tempfile.TemporaryDirectory(prefix="bottleneck-scale-") as scratch:
        yield from images(Path(scratch), 400 if short else 10_000)
        yield from heads(Path(scratch), 20_000 if short else 1_600_000, 64 if short else 512)


def images(scratch: Path, many: int) -> Iterator[Row]:
    """Peak memory at a tenth of the images and at all, and a second run on unchanged ones."""
    folder, few = write_photographs(scratch / "photographs", many), many // 10

    def extract(limit: int, cache: str) -> Child:
        return run_child("scale", "extraction", folder=folder, limit=limit, cache=scratch / cache)

    for limit in (few, many):
        ours = extract(limit, f"{limit}-memory.h5")
        peer = run_child("peers", "eager_extract", folder=folder, backbone=LITE, limit=min(limit, 2 * few))
        if limit == few:
            least = ours.megabytes
        yield Row(
            f"{LITE}: peak memory of extract, {limit:,} photographs",
            "MB",
            (ours.megabytes,),
            (peer.megabytes,),
            "the usual loop's process, without its loaders",
            FEWER,
            conditions=f"the peer: {min(limit, 2 * few):,} photographs",
        )
    yield Row(
        f"peak memory, {many:,} photographs beside {few:,}",
        "MB",
        (ours.megabytes,),
        (least,),
        f"{few:,} photographs",
        at_most=GROWTH,
    )
    again = [extract(many, f"{many}-memory.h5") for _ in range(REPEATS)]
    assert not any(one.found["images"] for one in again)
    yield Row(
        f"{LITE}: extract again, {many:,} unchanged photographs",
        "processor s, imports included",
        tuple(one.processor_seconds for one in again),
        (ours.processor_seconds,) * REPEATS,
        "the first run",
        FEWER,
        conditions=f"imports torch: {'yes' if again[0].found['torch'] else 'no'}",
    )


def heads(scratch: Path, n: int, mebibytes: int) -> Iterator[Row]:
    """One C on a cache under `--memory`, beside scikit-learn on the same number of rows."""
    path = scratch / "large.h5"
    run_child("scale", "write", path=path, n=n)
    ours = run_child("scale", "bounded", path=path, memory=mebibytes * MEBIBYTE, scratch=scratch)
    theirs: tuple[float, ...] = ()
    if n <= 100_000:  # more do not fit the memory of a small machine
        features = scratch / "rows.npz"
        run_child("scale", "write_rows", path=features, n=n)
        theirs = (run_child("peers", "sklearn_fit", features=features, C=1e-6).megabytes,)
    yield Row(
        f"fit-head --memory {mebibytes}MiB --C 1e-6, {n:,} rows: peak memory",
        "MB",
        (ours.megabytes,),
        theirs,
        "LogisticRegression, rows in memory" if theirs else "",
        FEWER,
        conditions=f"cache of {path.stat().st_size / 1e6:,.0f} MB; beside the imports "
        f"{ours.found['beside_imports']:.0f} MB; {ours.found['seconds']:.0f} s",
    )


# ---- each in a process of its own


def extraction(folder: str, limit: int, cache: str) -> dict:
    """What `extract` computed, and whether torch was needed."""
    import sys

    from bottleneck.extraction.extract import extract

    result = extract(folder, cache, limit=limit, precision="fp32")
    return {"images": result.computed, "torch": "torch" in sys.modules}


def bounded(path: str, memory: int, scratch: str) -> dict:
    """One C on all rows of a cache."""
    import bottleneck.heads.fit
    import bottleneck.report.curves  # noqa: F401
    from bottleneck.fitting.fit_heads import fit_heads
    from tests.benchmarks.machine import peak_megabytes

    before, clock = peak_megabytes(), Clock()
    fit_heads(path, C=1e-6, memory=memory, output=Path(scratch, "heads"))
    return clock.took(0) | {"beside_imports": peak_megabytes() - before}


def write_rows(path: str, n: int) -> dict:
    """The first n rows that `write` writes, in memory and then in an .npz file."""
    x, y = synthetic(min(n, 8192), 10)
    np.savez(path, x=np.resize(x.astype(np.float16), (n, D)), y=np.resize(y, n))
    return {}


def write(path: str, n: int, features: int = D) -> dict:
    """A cache of n float16 rows of the first features of each, in parts of a block."""
    from bottleneck.samples import SampleTable, Target
    from bottleneck.store.spec import CacheSpec, NodeSpec
    from bottleneck.store.writer import CacheWriter

    keys = [f"{i:07d}.jpg" for i in range(n)]
    digests = [i.to_bytes(32, "big") for i in range(n)]
    x, y = synthetic(min(n, 8192), 10)
    x = np.ascontiguousarray(x[:, :features])
    generator = np.random.default_rng(2)
    table = SampleTable(
        key=np.array(keys, object),
        image=np.arange(n)[:, None],
        split=np.full(n, "train", object),
        targets={"y": Target("y", "class", np.resize(y, n), tuple(map(str, range(10))))},
    )
    spec = CacheSpec(backbone={"name": "drawn"}, preprocess={"size": 8})
    with CacheWriter(Path(path), spec, [NodeSpec("bottleneck", "native", (features,))], "/") as writer:
        writer.plan(keys, [(1, 1)] * n)
        for start in range(0, n, len(x)):
            block = x[: n - start] + 0.1 * generator.standard_normal(x[: n - start].shape, dtype=np.float32)
            part = slice(start, start + len(block))
            images = [(key, digest, (1, 1)) for key, digest in zip(keys[part], digests[part], strict=True)]
            writer.add(images, {"bottleneck": block})
        writer.finish(table)
    return {}


if __name__ == "__main__":
    main(rows, __doc__)
