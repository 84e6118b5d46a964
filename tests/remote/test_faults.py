"""Sources behind a network that fails: all rows, none twice, in bounded time; what failed is tried again."""

import io
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bottleneck import extract
from bottleneck.data.read_source import read_source
from bottleneck.remote import retries
from bottleneck.store.reader import FeatureCache
from bottleneck.threads import REMOTE_READS
from tests.helpers.encoded import image, tar_of
from tests.helpers.web_server import Faults

SMALL = {"backbone": "small_cnn", "weights": "none", "engine": "torch", "image_size": 32, "depth": 1}
COUNT = 120
IMAGES = {f"c{number % 2}/{number:03}.png": image(number) for number in range(COUNT)}
LIST = "\n".join(["image,label", *(f"{name},{name[:2]}" for name in IMAGES)]).encode()


@pytest.fixture
def short_limit(monkeypatch):
    monkeypatch.setattr(retries, "TIMEOUT", 2.0)


def rows(path):
    """The features of a cache by the last two parts of their keys."""
    with FeatureCache(path) as cache:
        keys = ["/".join(key.split("/")[-2:]) for key in cache.images.key]
        features = cache.features("bottleneck").read(0, len(keys))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, features, strict=True))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The rows of the same images on this machine."""
    folder = tmp_path_factory.mktemp("near")
    for name, data in IMAGES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return rows(extract(folder, folder / "near.h5", **SMALL).cache)


def require_all(result, expected):
    assert (result.images, result.computed, result.failed) == (COUNT, COUNT, 0)
    found = rows(result.cache)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def details(notes, code):
    return [note.details for note in notes if note.code == code]


@pytest.mark.parametrize("form", ["manifest", "shard"])
def test_a_web_server_with_faults(server, short_limit, expected, tmp_path, form):
    server.files |= {f"/{name}": data for name, data in IMAGES.items()}
    server.files |= {"/list.csv": LIST, "/all.tar": tar_of(IMAGES)}
    source = read_source(f"{server.url}/{'list.csv' if form == 'manifest' else 'all.tar'}")
    server.faults = Faults(in_a_row=2 if form == "manifest" else 10)
    result = extract(source, tmp_path / "c.h5", **SMALL)
    require_all(result, expected)
    assert len(server.faults.injected) == 4
    (told,) = details(result.notes, "requests-retried")
    assert told["requests"] == server.faults.injected.total()


@pytest.mark.parametrize("form", ["folder", "manifest", "shards"])
def test_an_object_store_with_faults(s3, short_limit, expected, tmp_path, form):
    if form == "shards":
        for number in range(3):
            names = sorted(IMAGES)[number * COUNT // 3 : (number + 1) * COUNT // 3]
            s3.put(f"data/{number}.tar", tar_of({name: IMAGES[name] for name in names}))
    else:
        for name, data in IMAGES.items():
            s3.put(f"data/{name}", data)
    if form == "manifest":
        s3.put("data/list.csv", LIST)
    s3.front.faults = Faults(seed=1)
    result = extract(f"{s3.url}/data{'/list.csv' if form == 'manifest' else ''}", tmp_path / "c.h5", **SMALL)
    require_all(result, expected)
    assert s3.front.faults.injected.total() > 5
    again = extract(f"{s3.url}/data{'/list.csv' if form == 'manifest' else ''}", tmp_path / "c.h5", **SMALL)
    assert (again.reused, again.computed) == (COUNT, 0)


def test_a_server_that_never_answers_is_given_up_and_asked_again_by_the_next_run(
    server, monkeypatch, tmp_path
):
    monkeypatch.setattr(retries, "TIMEOUT", 0.1)
    server.files |= {"/list.csv": LIST} | {f"/{name}": data for name, data in IMAGES.items()}
    server.files["/first.csv"] = b"\n".join(LIST.splitlines()[:3])
    extract(f"{server.url}/first.csv", tmp_path / "c.h5", **SMALL)  # the network has its statistics
    source = read_source(f"{server.url}/list.csv")
    server.silent = True
    server.asked.clear()
    result = extract(source, tmp_path / "c.h5", **SMALL)
    assert (result.images, result.failed) == (2, COUNT - 2)
    assert details(result.notes, "rows-kept-unread") == [{"kept": 2}]
    assert set(result.failures) == set(list(IMAGES)[2:])
    assert all("cannot be read" in reason for reason in result.failures.values())
    assert len(server.asked) <= (1 + retries.RETRIES) * (retries.MOST_SILENT + REMOTE_READS)
    (told,) = details(result.notes, "host-given-up")
    assert told["requests"] >= COUNT - retries.MOST_SILENT - REMOTE_READS
    server.silent = False
    monkeypatch.setattr(retries, "TIMEOUT", 5.0)
    again = extract(f"{server.url}/list.csv", tmp_path / "c.h5", **SMALL)
    assert (again.images, again.computed, again.failed) == (COUNT, COUNT - 2, 0)


def test_a_store_that_never_answers_is_an_error_before_any_work(s3, monkeypatch, tmp_path):
    monkeypatch.setattr(retries, "TIMEOUT", 0.1)
    s3.front.silent = True
    with pytest.raises(Exception, match="cannot be reached") as caught:
        extract(f"{s3.url}/data", tmp_path / "c.h5", **SMALL)
    assert "FSSPEC_S3_ENDPOINT_URL" in str(caught.value)
    assert "SECRETKEY" not in str(caught.value)


def test_an_image_that_no_one_announced_whole_is_tried_again(server, tmp_path):
    """A connection that closes early looks like the end of a file whose size the server does not tell."""
    server.length = False
    server.files |= {f"/{name}": data for name, data in IMAGES.items()} | {"/list.csv": LIST}
    server.files["/c1/007.png"] = image(7)[:40]
    first = extract(f"{server.url}/list.csv", tmp_path / "c.h5", **SMALL)
    assert list(first.failures) == ["c1/007.png"]
    server.files["/c1/007.png"] = image(7)
    second = extract(f"{server.url}/list.csv", tmp_path / "c.h5", **SMALL)
    assert (second.images, second.failed) == (COUNT, 0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("s3://no-such-bucket-here/data", "does not exist. Check the names"),
        ("{}/empty", "does not exist. Check the names"),
        ("{}", "No images in s3://.*: looked for .* found no files"),
    ],
)
def test_what_is_no_source_in_an_object_store(s3, name, said):
    with pytest.raises(Exception, match=said):
        read_source(name.format(s3.url))


@pytest.mark.parametrize("whole", [False, True])
def test_a_store_without_credentials_names_what_to_set(s3, monkeypatch, whole):
    """Not even a broken setting makes an error show a secret."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    if not whole:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(Exception, match="cannot be reached") as caught:
        read_source(f"{s3.url}/data")
    assert "AWS_PROFILE" in str(caught.value)
    assert "SECRETKEY" not in str(caught.value)


def test_a_bucket_is_listed_anew(s3):
    s3.put("data/1.png", image(1))
    assert len(read_source(f"{s3.url}/data").images) == 1
    s3.put("data/2.png", image(2))
    assert len(read_source(f"{s3.url}/data").images) == 2


def test_an_object_that_was_replaced_after_the_listing_is_read_as_it_is(s3):
    s3.put("data/1.png", image(1))
    source = read_source(f"{s3.url}/data")
    s3.put("data/1.png", image(2) + b"longer")
    assert source.read("1.png") == image(2) + b"longer"


def test_a_zip_in_an_object_store(s3):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(8):
            archive.writestr(f"a/{number}.png", image(number))
    s3.put("all.zip", file.getvalue())
    source = read_source(f"zip://::{s3.url}/all.zip")
    assert source.reads_at_once
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, source.images)) == [image(number) for number in range(8)]
    again = pickle.loads(pickle.dumps(source))
    assert again.read(again.images[0]) == image(0)
