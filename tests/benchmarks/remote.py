"""How fast is `extract` over a network with 50 ms of latency, beside the same images on this machine?

    python -m tests.benchmarks.remote [--short]

A server on this machine, a process of its own, waits LATENCY seconds before each answer. It serves the
photographs by their addresses, as a manifest names them (http), and as an S3 store that lists and reads (s3,
where s3fs is installed). Its own work is on the same cores, and counts against the network. Contenders take
turns, each in a process of its own; rates are without start-up. With one read in flight the latency shows.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.benchmarks.images import write_photographs
from tests.benchmarks.measurement import NOT_INSTALLED, REPEATS, Row, main, speed
from tests.benchmarks.peers import Clock
from tests.benchmarks.process import ROOT, run_child

LATENCY = 0.05  # seconds before each answer
WANTED = 0.8  # of the rate of files on this machine


def rows(short: bool) -> Iterator[Row]:
    """Both kinds of store beside the folder, and one read in flight beside 32."""
    count = 240 if short else 800
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_photographs(Path(scratch, "photographs"), count)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
        (folder / "list.csv").write_text("\n".join(["image", *names]))
        with server(folder) as url:
            given: dict[str, dict[str, object]] = {
                "near": {"source": folder / "list.csv"},
                "http": {"source": f"{url}/bucket/list.csv"},
                "one read": {"source": f"{url}/bucket/list.csv", "reads": 1},
            }
            if find_spec("s3fs"):
                given["s3"] = {"source": "s3://bucket/", "endpoint": url}
            found: dict[str, list[dict]] = {name: [] for name in given}
            for _ in range(REPEATS):
                for name, options in given.items():
                    found[name].append(run_child("remote", "ours", **options).found)
    conditions = f"{count} photographs, {LATENCY * 1000:g} ms before each answer"
    for name in ("http", "s3"):
        what = f"extract over {name}, 32 reads in flight"
        if name in found:
            yield from speed(what, found[name], found["near"], "a folder", WANTED, conditions)
        else:
            yield Row(what, reason=NOT_INSTALLED)
    yield from speed("extract over http, 1 read in flight", found["one read"], found["near"], "a folder")


def ours(source: str, endpoint: str = "", reads: int = 0) -> dict:
    """One extraction, after one of 32 images for imports and engine."""
    if endpoint:
        from fsspec.config import conf

        conf["s3"] = {"endpoint_url": endpoint, "key": "none", "secret": "none"}
    if reads:
        from bottleneck.data import source as source_module

        source_module.REMOTE_READS = reads
    from bottleneck import extract

    with tempfile.TemporaryDirectory() as folder:
        extract(source, f"{folder}/first.h5", limit=32)
        clock = Clock()
        result = extract(source, f"{folder}/all.h5")
        assert result.failed == 0
        return clock.took(result.computed) | {"seconds": result.seconds}


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Yield the URL of a server of the files in `folder`, as /bucket/NAME, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.remote", "serve", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


async def serve(folder: Path) -> None:
    """Serve files, and lists of them as S3 does, until killed. Prints the port."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    entry = (
        "<Contents><Key>{}</Key><Size>{}</Size><ETag>{}</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
    )

    def listing(prefix: str) -> bytes:
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
            await asyncio.sleep(LATENCY)
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
        asyncio.run(serve(Path(sys.argv[2])))
    else:
        main(rows, __doc__)
