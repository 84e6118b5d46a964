"""Sources of every form that the workers of a Ray cluster can read give the cache of one process."""

import zipfile

import fsspec
import pytest

from bottleneck import extract
from bottleneck.data.read_source import read_source
from tests.helpers.encoded import tar_of
from tests.helpers.ray_nodes import rows_of, write_images
from tests.helpers.tiny_network import NET
from tests.helpers.web_server import Faults, serving

pytest.importorskip("ray", reason="needs the extra ray")

COUNT = 30


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("source") / "images", COUNT)
    (folder / "0020.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def server(images):
    """A web server that has the images and a list of them, with one that is not there."""
    with serving() as running:
        running.files |= {f"/{path.name}": path.read_bytes() for path in images.iterdir()}
        names = ["image", *sorted(path.name for path in images.iterdir()), "gone.png"]
        running.files["/list.csv"] = "\n".join(names).encode()
        running.files["/all.tar"] = tar_of({path.name: path.read_bytes() for path in images.iterdir()})
        yield running


@pytest.fixture
def bucket():
    """A bucket of a store that workers reach by what the driver knows of it."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    from tests.helpers.s3 import Bucket, s3_server

    with s3_server() as (url, _), pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ACCESS_KEY_ID": "KEYID", "AWS_SECRET_ACCESS_KEY": "SECRETKEY"}.items():
            patch.setenv(name, value)
        given = {"endpoint_url": url, "key": "KEYID", "secret": "SECRETKEY"}
        patch.setitem(fsspec.config.conf, "s3", given)
        s3fs.S3FileSystem.clear_instance_cache()
        yield Bucket(url)
        s3fs.S3FileSystem.clear_instance_cache()


def require_equal(nodes, source, tmp_path):
    """Extract in one process and on the cluster; return both results."""
    ours, theirs = (
        extract(source, tmp_path / f"{name}.h5", ray=ray, **NET)
        for name, ray in (("alone", None), ("ray", nodes.address))
    )
    assert (ours.images, ours.computed, ours.failures) == (theirs.images, theirs.computed, theirs.failures)
    assert rows_of(tmp_path / "alone.h5") == rows_of(tmp_path / "ray.h5")
    assert "ray-workers" in [note.code for note in theirs.notes]
    return ours, theirs


@pytest.mark.parametrize("form", ["manifest", "tar", "zip"])
def test_a_source_in_files_at_a_shared_path(nodes, images, tmp_path, form):
    files = {path.name: path.read_bytes() for path in sorted(images.iterdir())}
    source = tmp_path / f"source.{form}"
    if form == "manifest":
        source = tmp_path / "source.csv"
        source.write_text("\n".join(["image", *map(str, sorted(images.iterdir())), "/gone/gone.png"]))
    elif form == "tar":
        source.write_bytes(tar_of(files))
    else:
        with zipfile.ZipFile(source, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    ours, _ = require_equal(nodes, source, tmp_path)
    assert ours.computed == COUNT - 1


@pytest.mark.parametrize("name", ["list.csv", "all.tar"])
def test_a_web_server(nodes, server, tmp_path, name):
    ours, _ = require_equal(nodes, f"{server.url}/{name}", tmp_path)
    assert len(ours.failures) == 1 + (name == "list.csv")


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_an_object_store(nodes, images, bucket, tmp_path, form):
    files = {path.name: path.read_bytes() for path in sorted(images.iterdir())}
    if form == "shards":
        names = sorted(files)
        for number in range(2):
            bucket.put(f"data/{number}.tar", tar_of({name: files[name] for name in names[number::2]}))
    else:
        for name, data in files.items():
            bucket.put(f"data/{name}", data)
    ours, _ = require_equal(nodes, f"{bucket.url}/data", tmp_path)
    assert ours.computed == COUNT - 1


def test_requests_that_workers_send_again_are_counted(nodes, server, tmp_path):
    source = read_source(f"{server.url}/list.csv")
    server.faults = Faults(share=0.5, kinds=("500", "reset"), in_a_row=1)
    result = extract(source, tmp_path / "ray.h5", ray=nodes.address, ray_workers=1, **NET)
    assert (result.computed, len(result.failures)) == (COUNT - 1, 2)
    (told,) = (note.details for note in result.notes if note.code == "requests-retried")
    assert told["requests"] == server.faults.injected.total() > NET["batch_size"]
