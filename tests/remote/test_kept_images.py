"""`--cache-images`: what was read over a network is not read again, unless it changed or was damaged."""

import os
import pickle
import shutil
from collections import namedtuple

import pytest

from bottleneck import extract
from bottleneck.data import kept_images
from bottleneck.data.config import ReadConfig
from bottleneck.data.read_source import read_source
from bottleneck.errors import SourceError
from tests.helpers import web_server
from tests.helpers.encoded import image, tar_of

SMALL = {"backbone": "small_cnn", "weights": "none", "engine": "torch", "image_size": 32, "depth": 1}
NAMES = [f"{number}.png" for number in range(6)]


@pytest.fixture
def web(server):
    server.files |= {f"/{name}": image(number) for number, name in enumerate(NAMES)}
    server.files["/list.csv"] = "\n".join(["image", *NAMES]).encode()
    return server


def opened(web, folder):
    return read_source(f"{web.url}/list.csv", ReadConfig(cache_images=str(folder)))


def read_all(source):
    """The bytes of all images, read as the loader does, and the details of the note on them."""
    data = []
    for key in source.images:
        source.stat(key)
        data.append(source.read(key))
    return data, source.reading_notes()[-1].details


def sent(web):
    """The images whose bytes the server sent since the last call."""
    asked = [path for method, path in web.asked if method == "GET" and path.endswith(".png")]
    web.asked.clear()
    return asked


def kept(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_second_extraction_reads_no_bytes_over_the_network(web, tmp_path):
    url, options = f"{web.url}/list.csv", {**SMALL, "cache_images": str(tmp_path / "kept")}
    first = extract(url, tmp_path / "a.h5", **options)
    assert len(sent(web)) == len(NAMES)
    second = extract(url, tmp_path / "b.h5", **options)
    assert sent(web) == []
    assert (first.images, second.images) == (6, 6)
    notes = [next(note for note in done.notes if note.code == "images-kept") for done in (first, second)]
    assert [note.details["added"] for note in notes] == [6, 0]
    assert f"came from {tmp_path / 'kept'} and 0 " in notes[1].message


def test_an_object_store_is_listed_and_not_read(s3, tmp_path):
    for number, name in enumerate(NAMES):
        s3.put(f"data/{name}", image(number))
    for _ in range(2):
        s3.front.asked.clear()
        data, _ = read_all(read_source(f"{s3.url}/data", ReadConfig(cache_images=str(tmp_path / "kept"))))
        assert data == [image(number) for number in range(6)]
    assert [path for method, path in s3.front.asked if path.endswith(".png")] == []


def test_members_of_shards_are_kept(web, tmp_path):
    web.files["/all.tar"] = tar_of({f"a/{name}": image(number) for number, name in enumerate(NAMES)})
    for came in (0, 6):
        found = read_source(f"{web.url}/all.tar", ReadConfig(cache_images=str(tmp_path / "kept")))
        data, details = read_all(found)
        assert (data, details["read"]) == ([image(number) for number in range(6)], came)


def test_a_file_that_changed_is_read_again_and_takes_the_place_of_the_old(web, tmp_path):
    read_all(opened(web, tmp_path))
    before = len(kept(tmp_path))
    web.files["/3.png"] = image(33) + b"longer"
    sent(web)
    data, details = read_all(opened(web, tmp_path))
    assert sent(web) == ["/3.png"]
    assert data[3] == image(33) + b"longer"
    assert (details["read"], details["added"], len(kept(tmp_path))) == (5, 1, before)


@pytest.mark.parametrize("damage", ["byte", "cut", "empty", "trailer"])
def test_a_damaged_file_is_read_again_and_told(web, tmp_path, damage):
    read_all(opened(web, tmp_path))
    path = kept(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[5 if damage == "byte" else -1] ^= 1
    path.write_bytes({"cut": data[:-9], "empty": b""}.get(damage, data))
    for damaged in (1, 0):
        found = opened(web, tmp_path)
        data, details = read_all(found)
        assert data == [image(number) for number in range(6)]
        assert details["damaged"] == damaged
        assert ("kept file was damaged" in found.reading_notes()[-1].message) == bool(damaged)


def test_a_full_disk_ends_keeping_and_not_reading(web, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(kept_images.FREE - 1))
    found = opened(web, tmp_path)
    assert read_all(found)[0] == [image(number) for number in range(6)]
    assert kept(tmp_path) == []
    assert "No more were added: its disk has 1.07 GB free" in found.reading_notes()[-1].message


def test_a_folder_that_fails_meanwhile_is_told(web, tmp_path, monkeypatch):
    found = opened(web, tmp_path)

    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    assert read_all(found)[0] == [image(number) for number in range(6)]
    assert kept(tmp_path) == []
    assert "No more were added: Permission denied" in found.reading_notes()[-1].message


def test_a_folder_that_cannot_be_made_is_refused_before_any_image_is_read(web, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError, match=r"cannot be kept in .*file.* Give --cache-images a folder"):
        opened(web, tmp_path / "file")
    assert sent(web) == []


def test_images_of_this_machine_are_not_kept_and_it_is_told(tmp_path):
    (tmp_path / "1.png").write_bytes(image())
    found = read_source(tmp_path, ReadConfig(cache_images=str(tmp_path / "kept")))
    assert [note.code for note in found.notes] == ["images-not-kept"]
    assert not (tmp_path / "kept").exists()


def test_signatures_in_addresses_change_nothing_and_are_not_written(web, tmp_path):
    for signature, came in (("ONE", 0), ("TWO", 1)):
        web.files[f"/0.png?sig={signature}"] = image()
        (tmp_path / "list.csv").write_text(f"image\n{web.url}/0.png?sig={signature}\n")
        found = read_source(tmp_path / "list.csv", ReadConfig(cache_images=str(tmp_path / "kept")))
        assert read_all(found) == ([image()], {"read": came, "added": 1 - came, "damaged": 0})
    (path,) = kept(tmp_path / "kept")
    assert b"ONE" not in path.read_bytes()


def test_reread_reads_over_the_network_and_keeps_what_came(web, tmp_path):
    """A server may tell the same size and time for other bytes."""
    url, options = f"{web.url}/list.csv", {**SMALL, "cache_images": str(tmp_path / "kept")}
    extract(url, tmp_path / "a.h5", **options)
    web.files["/3.png"] = other = image(3)[:-1] + b"x"
    sent(web)
    extract(url, tmp_path / "a.h5", reread=True, **options)
    assert len(sent(web)) == len(NAMES)
    assert read_all(opened(web, tmp_path / "kept"))[0][3] == other


def test_a_source_goes_to_another_process_without_its_counts(web, tmp_path):
    found = opened(web, tmp_path)
    read_all(found)
    there = pickle.loads(pickle.dumps(found))
    data, details = read_all(there)
    assert data == [image(number) for number in range(6)]
    assert details == {"read": 6, "added": 0, "damaged": 0}
    assert there.files.store._retrier is there.retrier


def test_images_whose_time_is_no_time_of_change_are_read_again(web, tmp_path, monkeypatch):
    """Some servers give all files the first second of 1970; a changed file of the same size has it too."""
    monkeypatch.setattr(web_server, "STAMP", "Thu, 01 Jan 1970 00:00:01 GMT")
    first, _ = read_all(opened(web, tmp_path / "kept"))
    web.files["/0.png"] = first[0][:-1] + b"x"
    source = opened(web, tmp_path / "kept")
    second, _ = read_all(source)
    assert second[0] == web.files["/0.png"]
    assert second[1:] == first[1:]
    assert "6 are not kept: nothing tells whether they have changed" in source.reading_notes()[-1].message
