"""Images by their address: a server on this machine stands for the web."""

import contextlib
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from bottleneck.data.loader import load_images
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.read_source import read_source
from bottleneck.errors import ImageError, SourceError
from bottleneck.files import UNKNOWN_STAT, FileStat
from bottleneck.remote import http, retries
from bottleneck.remote.filesystem import RemoteStore
from bottleneck.remote.retries import Retrier
from bottleneck.remote.urls import allow
from tests.helpers.encoded import image, tar_of
from tests.helpers.web_server import Handler, Server, serving


def cat(url):
    """The bytes at a URL, asked for again as `retries` says."""
    return RemoteStore(http.WebFileSystem(), url, Retrier()).cat(url)


def test_one_image(server):
    server.files["/photos/1.png"] = image()
    source = read_source(f"{server.url}/photos/1.png")
    assert source.root == f"{server.url}/photos"
    assert source.images == ("1.png",)
    assert source.read("1.png") == image()
    assert source.stat("1.png") == FileStat(len(image()), 784111777 * 10**9)


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
    [("/2.png", "does not exist"), ("/photos/", r"a manifest or a \.tar\.$"), ("/1.txt", "is none of these")],
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


@pytest.mark.parametrize("refusal", [408, 429, 500, 502, 503, 504, "reset"])
def test_what_may_pass_is_tried_again(server, refusal):
    server.files["/1.png"] = image()
    source = read_source(f"{server.url}/1.png")
    server.refusals = [(refusal, {}), (refusal, {})]
    assert source.read("1.png") == image()
    assert server.asked.count(("GET", "/1.png")) == 3


def test_retries_end(server):
    server.refusals = [(503, {})] * 10
    with pytest.raises(OSError, match="the server answers 503"):
        cat(f"{server.url}/1.png")
    assert len(server.asked) == 1 + retries.RETRIES


@pytest.mark.parametrize("asks", ["2", "soon"])
def test_a_server_is_asked_again_when_it_wants(server, monkeypatch, asks):
    pauses = []
    monkeypatch.setattr(retries.time, "sleep", pauses.append)
    value = asks if asks == "2" else format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    server.files["/1.png"] = image()
    server.refusals = [(429, {"Retry-After": value})]
    cat(f"{server.url}/1.png")
    assert pauses[0] == 2 if asks == "2" else 1 < pauses[0] <= 3


def test_a_server_that_wants_a_long_pause_is_given_up(server):
    server.refusals = [(503, {"Retry-After": "3600"})]
    with pytest.raises(OSError, match="the server answers 503"):
        cat(f"{server.url}/1.png")


def test_what_does_not_pass_is_asked_once(server):
    server.refusals = [(403, {})]
    with pytest.raises(OSError, match="the server answers 403"):
        cat(f"{server.url}/1.png")
    assert len(server.asked) == 1


def test_an_answer_that_trickles_is_cut(server, monkeypatch):
    monkeypatch.setattr(retries, "TIMEOUT", 0.2)
    monkeypatch.setattr(Handler, "answer", trickle)
    started = time.monotonic()
    with pytest.raises(OSError, match=r"sends too slowly: [0-9]+ bytes in 0 seconds"):
        cat(f"{server.url}/list.csv")
    assert time.monotonic() - started < 5


def trickle(self, body):
    self.send_response(200)
    self.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(100):
            self.wfile.write(b"x")
            time.sleep(0.05)


def test_headers_that_trickle_are_cut(server, monkeypatch):
    monkeypatch.setattr(retries, "TIMEOUT", 0.2)
    monkeypatch.setattr(retries, "RETRIES", 0)

    def answer(self, body):
        with contextlib.suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"H")
                time.sleep(0.05)

    monkeypatch.setattr(Handler, "answer", answer)
    started = time.monotonic()
    with pytest.raises(OSError, match="server"):
        cat(f"{server.url}/list.csv")
    assert time.monotonic() - started < 4


def test_an_absurd_length_is_no_size(server, monkeypatch):
    server.files["/1.png"] = image()
    send = Handler.send_header

    def lie(self, name, value):
        send(self, name, str(10**30) if name == "Content-Length" else value)

    monkeypatch.setattr(Handler, "send_header", lie)
    source = read_source(f"{server.url}/1.png")
    assert source.stat("1.png")[0] == 0
    assert source.read("1.png") == image()


ODD = [
    "http://[::1/x.png",
    "nosuch://x.png",
    "dask://x.png",
    f"http://{'h' * 300}/x.png",
    "http://a..b/x.png",
]


@pytest.mark.parametrize(
    "address", [*ODD, "http:///x.png", "http://localhost:99999/x.png", "https://x y/x.png"]
)
def test_an_address_that_cannot_be_opened_is_one_failure(tmp_path, address):
    (tmp_path / "good.png").write_bytes(image())
    (tmp_path / "list.csv").write_text(f"image\ngood.png\n{address}\n")
    source = read_source(tmp_path / "list.csv")
    preprocess = Preprocess(8, 8, "bilinear", (0.5,) * 3, (0.5,) * 3)
    loaded = {one.key: one for one in load_images(source, list(source.images), preprocess, workers=2)}
    assert loaded["good.png"].error is None
    assert loaded[address].error
    assert len(loaded[address].error) < 350


def test_an_absolute_path_in_a_list_from_the_web_is_one_failure(server):
    server.files |= {"/1.png": image(), "/list.csv": b"image\n1.png\n/1.png\n"}
    source = read_source(f"{server.url}/list.csv")
    assert source.read("1.png") == image()
    with pytest.raises(ImageError, match="is no address"):
        source.read("/1.png")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_host_named_by_its_ipv6_address(tmp_path):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        url = f"http://[::1]:{listening.getsockname()[1]}"
        with Server() as running:
            running.socket.close()
            running.socket = listening
            threading.Thread(target=running.serve_forever, daemon=True).start()
            running.files |= {"/1.png": image(), "/list.csv": f"image\n1.png\n{url}/2.png\n".encode()}
            running.files["/2.png"] = image(3)
            source = read_source(f"{url}/list.csv")
            assert source.root == url
            assert [source.read(key) for key in source.images] == [image(), image(3)]
            running.shutdown()


@pytest.mark.strangers
def test_a_list_from_the_web_opens_no_file_of_this_machine(server, tmp_path):
    (tmp_path / "secret.png").write_bytes(image())
    names = ["1.png", f"file://{tmp_path}/secret.png", "http://127.0.0.1:1/x.png", f"{server.url}/2.png"]
    server.files["/list.csv"] = "\n".join(["image", *names]).encode()
    source = read_source(f"{server.url}/list.csv")
    assert set(source.images) == {"1.png", "2.png"}
    assert "--allow-local" in source.absent[names[1]]
    assert "--allow-remote" in source.absent[names[2]]


@pytest.fixture
def two_servers():
    """Two hosts: on this machine, two ports."""
    with serving() as ours, serving() as other:
        yield [ours, other]


def decoded(source):
    preprocess = Preprocess(2, 2, "bilinear", (0.5,) * 3, (0.5,) * 3)
    return {item.key: item.error for item in load_images(source, source.images, preprocess, workers=2)}


@pytest.mark.strangers
@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_list_reaches_no_other_host_by_a_redirect(two_servers, code):
    """The list names its own host, which sends us to another: to that of this machine, say."""
    ours, other = two_servers
    other.files["/secret.png"] = image(3)
    ours.files |= {"/list.csv": b"image\nhere.png\nmoved.png\nlured.png\n", "/here.png": image(1)}
    ours.files["/new/moved.png"] = image(2)
    ours.moved = {"/moved.png": (code, "/new/moved.png"), "/lured.png": (code, f"{other.url}/secret.png")}
    errors = decoded(read_source(f"{ours.url}/list.csv"))
    assert [errors["here.png"], errors["moved.png"]] == [None, None]
    assert "redirects to 127.0.0.1" in errors["lured.png"]
    assert "--allow-remote" in errors["lured.png"]
    assert other.asked == []
    with allow(remote=True):
        source = read_source(f"{ours.url}/list.csv")
        assert set(decoded(source).values()) == {None}
        assert UNKNOWN_STAT not in source.stats(source.images)  # else each run would read all of them again
    assert ("GET", "/secret.png") in other.asked


@pytest.mark.strangers
def test_a_chain_of_redirects_is_held_against_its_start(two_servers):
    ours, other = two_servers
    ours.files["/list.csv"] = b"image\na.png\n"
    ours.moved = {"/a.png": (302, "/b.png"), "/b.png": (302, f"{other.url}/a.png")}
    other.files["/a.png"] = image(3)
    assert "another host" in decoded(read_source(f"{ours.url}/list.csv"))["a.png"]
    assert other.asked == []


@pytest.mark.strangers
def test_what_the_user_names_may_be_redirected(two_servers):
    """As many sites do to the hosts that keep their files."""
    ours, other = two_servers
    ours.moved = {"/a.png": (302, f"{other.url}/b.png"), "/f.png": (302, "file:///etc/passwd")}
    ours.moved["/g.png"] = (302, "ftp://127.0.0.1/a.png")
    other.files["/b.png"] = image(3)
    assert set(decoded(read_source(f"{ours.url}/a.png")).values()) == {None}
    for name in ("f", "g"):
        with pytest.raises(SourceError, match="cannot be reached"):
            read_source(f"{ours.url}/{name}.png")


def test_a_large_file_of_a_server_that_sends_no_parts_is_refused(server, monkeypatch):
    monkeypatch.setattr(http, "MOST_WHOLE", 10)
    server.ranges = False
    server.files["/s.tar"] = tar_of({"a/1.png": image()})
    with pytest.raises(SourceError, match="sends no parts of files"):
        read_source(f"{server.url}/s.tar")
