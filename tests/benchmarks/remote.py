"""How fast is `extract` over a network, beside the same images on this machine?

    python -m tests.benchmarks.remote [--short]

Takes 3 minutes on 2 idle cores. A server on this machine, a process of its own, waits 50 milliseconds
before each answer; it serves the photographs by their addresses (http), and as an S3 store that lists and
reads (s3, where s3fs is installed). Its own work is on the same cores, and counts against the network.

Each measurement is a process of its own; contenders take turns, and each round gives the ratios of its own
measurements. Rates are images per second without start-up; processor time is that of the same seconds, in
which other programs do not count. "one reader" has a single read in flight.
"""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.benchmarks.images import write_photographs
from tests.benchmarks.measurement import NOT_INSTALLED, REPEATS, Row, main, speed
from tests.benchmarks.peers import Clock
from tests.benchmarks.process import ROOT, run_child

BACKBONE = "efficientnet_lite0"
LATENCY = 0.05  # seconds before each answer
WANTED = {"http": 0.8, "s3": 0.8}  # of the local rate


def rows(short: bool) -> Iterator[Row]:
    """Rates over the network beside the local one."""
    with tempfile.TemporaryDirectory(prefix="bottleneck-remote-") as scratch:
        images = 100 if short else 400
        folder = write_photographs(Path(scratch, "photographs"), images)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
        (folder / "list.csv").write_text("\n".join(["image", *names]))
        with server(folder, LATENCY) as url:
            yield from compare(folder, url, images)


def compare(folder: Path, url: str, images: int) -> Iterator[Row]:
    """Each way of reading in turn, `REPEATS` times."""
    contenders: dict[str, dict] = {
        "local": {"source": folder / "list.csv"},
        "http": {"source": f"{url}/bucket/list.csv"},
        "http, one reader": {"source": f"{url}/bucket/list.csv", "reads": 1},
    }
    if importlib.util.find_spec("s3fs"):
        contenders["s3"] = {"source": "s3://bucket/", "endpoint": url}
    else:
        yield Row("extract over s3", reason=f"s3fs is {NOT_INSTALLED}")
    found: dict[str, list[dict]] = {name: [] for name in contenders}
    for _ in range(REPEATS):
        for name, options in contenders.items():
            found[name].append(run_child("remote", "one", **options).found)
    local = found.pop("local")
    conditions = f"{images} photographs, {BACKBONE}, {1000 * LATENCY:g} ms before each answer"
    for name, ours in found.items():
        what = f"extract over {name}"
        yield from speed(what, ours, local, "the same files here", WANTED.get(name), conditions)


def one(source: str, endpoint: str | None = None, reads: int | None = None) -> dict:
    """One extraction, in a process of its own: its rate, and its time of cores after a first one."""
    if endpoint:
        from fsspec.config import conf

        conf["s3"] = {"endpoint_url": endpoint, "key": "none", "secret": "none"}
    if reads:
        from bottleneck.data import source as sources

        sources.REMOTE_READS = reads
    from bottleneck import extract

    with tempfile.TemporaryDirectory() as caches:
        extract(source, f"{caches}/first.h5", backbone=BACKBONE, limit=32)  # imports, engine
        clock = Clock()
        result = extract(source, f"{caches}/all.h5", backbone=BACKBONE)
        took = clock.took(result.computed)
    assert result.failed == 0
    return took | {"seconds": result.computed / result.images_per_second}


@contextmanager
def server(folder: Path, latency: float) -> Iterator[str]:
    """Yield the URL of a server of the files in `folder`, as /bucket/NAME, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.remote", "serve", str(folder), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


async def serve(folder: Path, latency: float) -> None:
    """Serve files, and lists of them as S3 does, until killed. Prints the port."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}

    def listing(prefix: str) -> bytes:
        entry = "<Contents><Key>{}</Key><Size>{}</Size><ETag>{}</ETag>"
        entry += "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        found = [
            entry.format(name, len(data), name) for name, data in files.items() if name.startswith(prefix)
        ]
        return (
            f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(found)}</ListBucketResult>".encode()
        )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.readline():
            method, target, _ = request.decode().split(" ")
            while (await reader.readline()).strip():
                pass
            await asyncio.sleep(latency)
            parts = urlsplit(target)
            asked, query = unquote(parts.path).removeprefix("/bucket").lstrip("/"), parse_qs(parts.query)
            data = listing(query.get("prefix", [""])[0]) if "list-type" in query else files.get(asked)
            status, body = ("200 OK", data) if data is not None else ("404 Not Found", b"")
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n"
            head += 'ETag: "1"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n'
            writer.write(head.encode() + (b"" if method == "HEAD" else body))
            await writer.drain()
        writer.close()

    running = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=256)
    print(running.sockets[0].getsockname()[1], flush=True)
    await running.serve_forever()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(Path(sys.argv[2]), float(sys.argv[3])))
    else:
        main(rows, __doc__)
