"""Stores on this machine, and short limits of time."""

from types import SimpleNamespace

import pytest

from bottleneck.remote import lease, retries
from tests.helpers.web_server import serving


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(lease, "SETTLED", 0.01)


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """Make this the machine of a name, whose staging folders are its own; it is "one" at first."""

    def become(name):
        monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / "machines" / name))

    become("one")
    return become


@pytest.fixture
def server():
    """A web server."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def s3_endpoint():
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    from tests.helpers.s3 import s3_server

    with s3_server() as (url, front):
        yield url, front


@pytest.fixture
def s3(s3_endpoint, monkeypatch):
    """A bucket, and the front of its server."""
    import fsspec
    import s3fs

    from tests.helpers.s3 import Bucket

    url, front = s3_endpoint
    for name, value in {"AWS_ACCESS_KEY_ID": "KEYID", "AWS_SECRET_ACCESS_KEY": "SECRETKEY"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": url})
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", url)  # for processes that are started
    front.reset()
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = Bucket(url)
    front.asked.clear()
    yield SimpleNamespace(front=front, url=bucket.url, put=bucket.put, get=bucket.get, keys=bucket.keys)
    front.reset()
    s3fs.S3FileSystem.clear_instance_cache()
