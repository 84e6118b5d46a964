"""A finished cache behind a URL: read in ranges, with the checks of a file of this machine."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bottleneck import evaluate, extract, fit_heads
from bottleneck.cli.main import group
from bottleneck.errors import CacheError
from bottleneck.remote import filesystem, retries
from bottleneck.remote.path import RemotePath, path_of
from bottleneck.store.reader import FeatureCache, describe
from bottleneck.store.verify import verify
from tests.helpers.hostile import HOSTILE, make
from tests.helpers.photographs import write_photographs
from tests.helpers.web_server import Faults
from tests.helpers.world import MAP, A, B, world_of

SMALL = {"backbone": "small_cnn", "weights": "none", "engine": "torch", "image_size": 32, "depth": 1}


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    """A cache of this machine with two vectors and a map, in files of its own."""
    path = tmp_path_factory.mktemp("near") / "x.h5"
    world_of(300).extract(path, nodes=(A, B, MAP))
    return path


@pytest.fixture
def far(near, s3):
    """Its URL in an object store."""
    for path in near.parent.glob("*.h5"):
        s3.put(f"caches/{path.name}", path.read_bytes())
    s3.front.asked.clear()
    return f"{s3.url}/caches/x.h5"


@pytest.mark.parametrize("form", [str, Path])
def test_a_cache_in_an_object_store_reads_as_the_file_does(near, far, form):
    with FeatureCache(near) as here, FeatureCache(form(far)) as there:
        assert str(there.path) == far
        assert there.nodes == here.nodes
        assert list(there.images.key) == list(here.images.key)
        assert there.samples.key.tolist() == here.samples.key.tolist()
        for name in here.nodes:
            assert np.array_equal(there.features(name).read(0, 300), here.features(name).read(0, 300))
    assert describe(far) | {"cache": ""} == describe(near) | {"cache": ""}


def test_a_cache_on_a_web_server(near, server):
    server.files["/x.h5"] = near.read_bytes()
    with FeatureCache(near) as here, FeatureCache(f"{server.url}/x.h5") as there:
        assert np.array_equal(there.features(A.name).read(10, 90), here.features(A.name).read(10, 90))
        assert set(there.nodes) == {A.name, B.name}  # a web server does not tell what lies beside a file


def test_only_what_is_needed_is_read(far, s3, monkeypatch):
    monkeypatch.setattr(filesystem, "BLOCK", 1 << 12)
    with FeatureCache(far) as cache:
        s3.front.asked.clear()
        cache.features(MAP.name).read(0, 1)
    assert 1 <= len(s3.front.asked) <= 8


def test_a_store_with_faults_gives_all_rows(near, far, s3, monkeypatch):
    monkeypatch.setattr(retries, "TIMEOUT", 2.0)
    monkeypatch.setattr(filesystem, "BLOCK", 1 << 12)
    s3.front.faults = Faults(share=0.3, kinds=("500", "truncation", "reset"))
    with FeatureCache(near) as here, FeatureCache(far) as there:
        for name in here.nodes:
            assert np.array_equal(there.features(name).read(0, 300), here.features(name).read(0, 300))
    assert s3.front.faults.injected.total() > 2


def test_a_store_that_fails_while_rows_are_read_is_no_damage(far, s3, monkeypatch):
    monkeypatch.setattr(filesystem, "BLOCK", 1 << 12)
    with FeatureCache(far) as cache:
        monkeypatch.setattr(retries, "TIMEOUT", 0.1)
        s3.front.silent = True
        with pytest.raises(CacheError, match=r"\.h5 cannot be read: no whole answer") as caught:
            cache.features(MAP.name).read(0, 300)
        s3.front.silent = False
    assert "damaged" not in str(caught.value)


def test_damage_behind_a_url_is_named(near, s3):
    data = bytearray(near.read_bytes())
    with FeatureCache(near) as cache:
        row = cache.features(A.name).read(150, 151).tobytes()
    data[data.index(row)] ^= 1
    s3.put("x.h5", bytes(data))
    with FeatureCache(f"{s3.url}/x.h5") as cache, pytest.raises(CacheError, match=r"is damaged: rows? "):
        cache.features(A.name).read(0, 300)
    report = verify(f"{s3.url}/x.h5")
    assert not report.ok
    assert f"{s3.url}/x.h5" in report.problems[0]


def test_verify_reads_all_files_in_a_process_of_its_own(near, far):
    assert verify(far) == verify(near)
    assert verify(far).checked["files"] == 2


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_behind_a_url_is_refused_as_here(name, server, tmp_path):
    world_of(6).extract(tmp_path / "sound.h5", [A, B])
    path = make(name, tmp_path / "sound.h5", tmp_path / "hostile.h5")
    server.files["/hostile.h5"] = path.read_bytes()
    with pytest.raises(CacheError, match=HOSTILE[name][0]) as there:
        FeatureCache(f"{server.url}/hostile.h5")
    assert f"{server.url}/hostile.h5" in str(there.value)


def test_heads_from_a_cache_in_an_object_store(s3, tmp_path, monkeypatch):
    """The whole chain: fit, evaluate on the cache, info and verify by the command line."""
    monkeypatch.chdir(tmp_path)
    write_photographs(tmp_path / "photos", ("a", "b"), 12)
    extract(tmp_path / "photos", tmp_path / "x.h5", val_fraction=0.25, **SMALL)
    for path in tmp_path.glob("x*"):
        if path.is_file():
            s3.put(path.name, path.read_bytes())
    url = f"{s3.url}/x.h5"
    fitted = [fit_heads(cache, output=tmp_path / place) for cache, place in ((url, "far"), ("x.h5", "near"))]
    far, near = (result.to_json() for result in fitted)
    assert far["heads"][0]["accuracy"] == near["heads"][0]["accuracy"]
    head = far["heads"][0]["path"]
    assert Path(head).parent == tmp_path / "far"
    assert evaluate(head, url)["accuracy"] == evaluate(head, "x.h5")["accuracy"]
    for command in ("info", "verify"):
        done = CliRunner().invoke(group, ["cache", command, url])
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("{}/none.h5", "There is no feature cache s3://"),
        ("s3://no-such-bucket-here/x.h5", "There is no feature cache s3://no-such-bucket-here/x.h5"),
        ("{}", "s3://b[0-9a-f]+ holds no committed rows yet"),
        ("{}/image.h5", "is not a feature cache: expected an HDF5 file"),
        ("s3://user:hidden@bucket/x.h5", "s3://bucket/x.h5 of a cache is a chain, or has a password"),
        ("https://host/x.h5?sig=hidden", "https://host/x.h5.sig=REMOVED of a cache"),
        ("zip://x.h5::s3://bucket/x.zip", "is a chain"),
        ("nosuch://bucket/x.h5", "cannot be opened"),
    ],
)
def test_what_is_no_cache_behind_a_url(s3, url, said):
    s3.put("image.h5", b"GIF89a" * 10)
    with pytest.raises(Exception, match=said) as caught:
        FeatureCache(url.format(s3.url))
    assert "hidden" not in str(caught.value)


def test_paths_of_this_machine_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert type(path_of("x.h5")) is type(Path())
    assert type(path_of("C:/x.h5")) is type(Path())
    assert isinstance(path_of("S3://bucket/x.h5"), RemotePath)
    beside = path_of("s3://bucket/a/x.h5").with_name("x--layer3.h5")
    assert (str(beside), beside.stem, str(beside.parent)) == (
        "s3://bucket/a/x--layer3.h5",
        "x--layer3",
        "s3://bucket/a",
    )
    Path("s3:/bucket").mkdir(parents=True)
    Path("s3:/bucket/x.h5").touch()
    assert type(path_of("s3:/bucket/x.h5")) is type(Path())
