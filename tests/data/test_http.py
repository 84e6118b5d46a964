"""Images by their address: a server on this machine stands for the web."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bottleneck.data import http
from bottleneck.data.source import read_source
from bottleneck.errors import ImageError, SourceError
from tests.helpers.encoded import image, tar_of

STAMP = "Sun, 06 Nov 1994 08:49:37 GMT"


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `head`, `ranges` and `length`: whether it knows such things."""

    daemon_threads = True
    head = ranges = length = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"


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
        self.server.asked.append((self.command, self.path))
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        if wanted and self.server.ranges and body is None:
            first, last = wanted.removeprefix("bytes=").split("-")
            data = data[int(first) : int(last) + 1 if last else None]
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Last-Modified", STAMP)
        if self.server.length:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if body is None else body)


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_one_image(server):
    server.files["/photos/1.png"] = image()
    source = read_source(f"{server.url}/photos/1.png")
    assert source.root == f"{server.url}/photos"
    assert source.images == ("1.png",)
    assert source.read("1.png") == image()
    assert source.stat("1.png") == (len(image()), 784111777 * 10**9)


@pytest.mark.parametrize("path", ["/a%20b.png", "/1.png?size=2&key=a%2Fb"])
def test_addresses_that_are_quoted_or_ask_something(server, path):
    server.files[path] = image()
    source = read_source(server.url + path)
    assert source.read(source.images[0]) == image()


def test_a_manifest_and_images_by_address_in_one(server, tmp_path):
    server.files |= {"/1.png": image(), "/list.csv": b"image\n1.png\n2.png\n"}
    source = read_source(f"{server.url}/list.csv")
    assert source.images == ("1.png", "2.png")  # nobody asks for each image beforehand
    assert source.read("1.png") == image()
    with pytest.raises(OSError, match="404"):
        source.read("2.png")
    (tmp_path / "list.csv").write_text(f"image\n{server.url}/1.png\n")
    source = read_source(tmp_path / "list.csv")
    assert source.read(f"{server.url}/1.png") == image()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_shard_is_read_in_parts(server, ranges):
    server.ranges = ranges
    server.files["/s.tar"] = tar_of({"a/1.png": image(), "b/2.png": image(9)})
    source = read_source(f"{server.url}/s.tar")
    assert [source.read(key) for key in source.images] == [image(), image(9)]


def test_a_server_that_knows_no_head(server):
    server.head = False
    server.files["/1.png"] = image()
    assert read_source(f"{server.url}/1.png").stat("1.png")[0] == len(image())


@pytest.mark.parametrize(
    ("path", "said"),
    [("/2.png", "does not exist"), ("/photos/", "lists no folders"), ("/1.txt", "is none of these")],
)
def test_what_cannot_be_a_source(server, path, said):
    server.files["/1.txt"] = b""
    with pytest.raises(SourceError, match=said):
        read_source(server.url + path)


def test_a_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SourceError, match=r"cannot be reached: the server does not answer"):
        read_source(f"http://127.0.0.1:{port}/1.png")


def test_an_answer_without_end_is_cut(server, monkeypatch):
    monkeypatch.setattr(http, "MOST_BYTES", 10)
    server.files["/1.png"] = image()
    with pytest.raises(ImageError, match="is larger"):
        read_source(f"{server.url}/1.png").read("1.png")
