#!/usr/bin/env python3
"""How fast is `extract` over a network, beside the same images on this machine?

    python tests/benchmarks/remote.py [--images 400] [--latency 50] [--rounds 3] [--backbone NAME]

Takes 3 minutes on 2 idle cores. A server on this machine, a process of its own, waits `latency` milliseconds
before each answer; it serves the photographs by their addresses (http), and as an S3 store that lists and
reads (s3, where s3fs is installed). Its own work is on the same cores, and counts against the network.

Each measurement is a process of its own; contenders take turns, and each round gives the ratios of its own
measurements. Rates are images per second without start-up; processor time is that of the same seconds, in
which other programs do not count. "one reader" has a single read in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from extraction import write_photographs
from machine import print_machine

TARGET = 0.8  # of the local rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--latency", type=float, default=50, help="milliseconds before each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    args = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as scratch:
        os.environ["BOTTLENECK_CACHE"] = f"{scratch}/user"
        folder = write_photographs(Path(scratch, "photographs"), args.images)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
        (folder / "list.csv").write_text("\n".join(["image", *names]))
        with server(folder, args.latency / 1000) as url:
            compare(folder, url, args, Path(scratch))


def compare(folder: Path, url: str, args: argparse.Namespace, scratch: Path) -> None:
    """Print the rates of each round, and the median of their ratios to the local one."""
    contenders = {"local": [str(folder / "list.csv")], "http": [f"{url}/bucket/list.csv"]}
    if importlib.util.find_spec("s3fs"):
        contenders["s3"] = ["s3://bucket/", "--endpoint", url]
    contenders["http, one reader"] = [f"{url}/bucket/list.csv", "--reads", "1"]
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(args.rounds):
        for name, given in contenders.items():
            cache = scratch / f"{number}-{name}.h5"
            measured = child(*given, str(cache), "--backbone", args.backbone)
            rates[name].append(measured["images_per_second"])
            spent[name].append(measured["processor_seconds"] / args.images * 1000)
    print(f"{args.images} photographs, {args.backbone}, {args.latency:g} ms before each answer")
    for name, measured in rates.items():
        ratios = [rate / near for rate, near in zip(measured, rates["local"], strict=True)]
        shown = ", ".join(f"{rate:.0f}" for rate in measured)
        target = f"   target {TARGET}" if name in ("http", "s3") else ""
        cost = f"{statistics.median(spent[name]):.1f} ms of processor time an image"
        ratio = f"ratio to local {statistics.median(ratios):.2f}{target}"
        print(f"{name:18} {shown:>16} images/s, {cost}   {ratio}")


def child(*arguments: str) -> dict[str, float]:
    """Return what an extraction in a process of its own prints."""
    done = subprocess.run([sys.executable, __file__, "one", *arguments], check=True, capture_output=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def one() -> None:
    """One extraction: print its rate and its processor time as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("cache")
    parser.add_argument("--backbone")
    parser.add_argument("--endpoint")
    parser.add_argument("--reads", type=int)
    args = parser.parse_args(sys.argv[2:])
    if args.endpoint:
        from fsspec.config import conf

        conf["s3"] = {"endpoint_url": args.endpoint, "key": "none", "secret": "none"}
    if args.reads:
        from bottleneck.data import source

        source.REMOTE_READS = args.reads
    import bottleneck

    bottleneck.extract(
        args.source, f"{args.cache}.first", backbone=args.backbone, limit=32
    )  # imports, engine
    before = time.process_time()
    result = bottleneck.extract(args.source, args.cache, backbone=args.backbone)
    spent = time.process_time() - before
    assert result.failed == 0
    print(json.dumps({"images_per_second": result.images_per_second, "processor_seconds": spent}))


@contextmanager
def server(folder: Path, latency: float) -> Iterator[str]:
    """Yield the URL of a server of the files in `folder`, as /bucket/NAME, in a process of its own."""
    command = [sys.executable, __file__, "serve", str(folder), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
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
    elif sys.argv[1:2] == ["one"]:
        one()
    else:
        main()
