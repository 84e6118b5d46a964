"""A web server on this machine that stands for the web, and faults that it and others inject."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STAMP = "Sun, 06 Nov 1994 08:49:37 GMT"
FAULTS = ("500", "stall", "truncation", "reset")


class Faults:
    """Which requests fail, and how: a share of them, drawn by a seed.

    A request that failed `in_a_row` times succeeds, so that what is asked for does not depend on the order in
    which threads ask. stall : seconds for which a server then says nothing.
    """

    def __init__(self, share=0.1, seed=0, stall=2.0, kinds=FAULTS, in_a_row=2):
        self.share, self.stall, self.kinds, self.in_a_row = share, stall, kinds, in_a_row
        self.injected = Counter()
        self._random, self._lock, self._failed = random.Random(seed), threading.Lock(), Counter()

    def draw(self, request):
        """The fault of a request, or None."""
        with self._lock:
            if self._random.random() >= self.share or self._failed[request] >= self.in_a_row:
                return None
            self._failed[request] += 1
            kind = self._random.choice(self.kinds)
            self.injected[kind] += 1
            return kind


def reset(connection):
    """Close a connection so that the other side sees it reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(OSError):
        connection.close()


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `head`, `ranges` and `length`: whether it knows such things.

    refusals : (status or "reset", headers) of the next requests. moved : (code, URL) by path.
    faults : of requests for bytes. delay : seconds before each answer. silent : it never answers.
    """

    daemon_threads = True
    request_queue_size = 64
    head = ranges = length = True
    faults, delay, silent = None, 0.0, False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.refusals, self.moved = {}, [], [], {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.closing = threading.Event()

    def handle_error(self, request, client_address):
        """Clients that hang up are what is tested."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        if self.server.head:
            self.answer(b"")
        else:
            self.send_error(405)

    def do_GET(self):
        self.answer(None)

    def answer(self, body):
        server = self.server
        server.asked.append((self.command, self.path))
        if server.silent:
            server.closing.wait(60)
            return
        if server.delay:
            time.sleep(server.delay)
        if self.path in server.moved:
            code, url = server.moved[self.path]
            self.send_response(code)
            self.send_header("Location", url)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.refusals and body is None:
            status, headers = server.refusals.pop(0)
            if status == "reset":
                reset(self.connection)
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            return
        fault = server.faults.draw(self.path) if server.faults and body is None else None
        if fault in ("500", "reset"):
            reset(self.connection) if fault == "reset" else self.send_error(500)
            return
        self.send_file(body, fault)

    def send_file(self, body, fault):
        server, data = self.server, self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        if wanted and server.ranges and body is None:
            first, last = wanted.removeprefix("bytes=").split("-")
            data = data[int(first) : int(last) + 1 if last else None]
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Last-Modified", STAMP)
        if server.length:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        data = data if body is None else body
        self.wfile.write(data[: len(data) // 2] if fault else data)
        if fault == "stall":
            server.closing.wait(server.faults.stall)


@contextmanager
def serving():
    """A running server."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            running.closing.set()
            running.shutdown()
            thread.join()
