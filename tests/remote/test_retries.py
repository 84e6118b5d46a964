"""What is sent again, how often, and when a host is given up."""

import errno
import socket
import threading
import time

import pytest

from bottleneck.errors import ImageError
from bottleneck.remote import filesystem, retries
from bottleneck.remote.filesystem import RemoteStore
from bottleneck.remote.retries import Passing, Refused, Retrier, may_pass

URL = "https://user:secret@host.example:81/folder"


class BotocoreError(Exception):
    """As a package of the network raises."""


BotocoreError.__module__ = "botocore.exceptions"


class NoCredentialsError(BotocoreError):
    """Which another request would not find either."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError(), True),
        (OSError(errno.EIO, "the server failed"), True),
        (Passing("the server answers 503"), True),
        (BotocoreError("the server breaks off"), True),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), True),
        (socket.gaierror(socket.EAI_NONAME, "no such host"), False),
        (NoCredentialsError("none"), False),
        (Refused("the server answers 403"), False),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (ImageError("is larger than 1 GiB"), False),
        (ValueError("no address"), False),
    ],
)
def test_what_is_sent_again(error, expected):
    tries = []

    def attempt(seconds):
        tries.append(seconds)
        raise error

    with pytest.raises(type(error)):
        Retrier().run(URL, attempt)
    assert may_pass(error) == expected
    assert len(tries) == (1 + retries.RETRIES if expected else 1)


def test_an_attempt_may_take_as_long_as_its_bytes_need():
    seconds = []
    Retrier().run(URL, seconds.append, size=0)
    Retrier().run(URL, seconds.append, size=10 * retries.SLOWEST)
    assert seconds == [retries.TIMEOUT, retries.TIMEOUT + 10]


def fail(seconds):
    raise Passing("the server answers 503 at https://host.example/1.png")


def failing(retrier, times, url=URL):
    for _ in range(times):
        with pytest.raises(Passing):
            retrier.run(url, fail)


def test_a_host_that_fails_in_a_row_is_given_up_and_others_are_not(monkeypatch):
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)
    retrier = Retrier()
    failing(retrier, retries.MOST_SILENT)
    with pytest.raises(Passing, match=r"since 32 requests in a row to https://host\.example:81 "):
        retrier.run(URL, lambda seconds: 1)
    assert retrier.run("https://other.example/1.png", lambda seconds: 2) == 2
    retried, given_up = retrier.notes()
    assert retried.details == {"requests": retries.MOST_SILENT * retries.RETRIES}
    assert "the server answers 503 at (96)" in retried.message
    assert given_up.details == {"host": "https://host.example:81", "requests": 1}
    assert "secret" not in given_up.message


def test_an_answer_of_any_kind_begins_the_count_anew(monkeypatch):
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: None)

    def refuse(seconds):
        raise FileNotFoundError

    retrier = Retrier()
    for _ in range(3):
        failing(retrier, retries.MOST_SILENT - 1)
        with pytest.raises(FileNotFoundError):
            retrier.run(URL, refuse)
    assert retrier.run(URL, lambda seconds: 1) == 1


class Blocking:
    """A filesystem of another kind, which knows no limit of time."""

    def __init__(self):
        self.over = threading.Event()

    def cat_file(self, path, start=None, end=None):
        self.over.wait(60)
        return b""


def test_a_backend_without_limits_of_its_own_has_ours(monkeypatch):
    monkeypatch.setattr(retries, "TIMEOUT", 0.05)
    blocking, started = Blocking(), time.monotonic()
    with pytest.raises(TimeoutError, match=r"no whole answer within 0\.05 s"):
        RemoteStore(blocking, "sftp://host/folder", Retrier()).cat("1.png")
    assert time.monotonic() - started < 30  # not the minute
    blocking.over.set()


class Cut:
    """A filesystem that sends fewer bytes than it announces, `times` times."""

    def __init__(self, times):
        self.times = times

    def info(self, path):
        return {"name": path, "size": 10}

    def invalidate_cache(self, path=None):
        pass

    def cat_file(self, path, start=None, end=None):
        self.times -= 1
        return b"01234" if self.times >= 0 else b"0123456789"[start:end]


def test_fewer_bytes_than_announced_are_asked_for_again():
    assert RemoteStore(Cut(2), "sftp://host", Retrier()).cat("1.png", whole=10) == b"0123456789"
    assert RemoteStore(Cut(2), "sftp://host", Retrier()).cat("1.png", 2, 4) == b"2345"
    with pytest.raises(OSError, match="fewer bytes than announced"):
        RemoteStore(Cut(9), "sftp://host", Retrier()).cat("1.png", whole=10)


def test_a_file_is_read_in_parts_and_each_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(filesystem, "BLOCK", 4)
    with RemoteStore(Cut(1), "sftp://host", Retrier()).open("1.png") as file:
        file.seek(3)
        assert file.read(4) == b"3456"
        assert file.read() == b"789"
