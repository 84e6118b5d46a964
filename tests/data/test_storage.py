"""Stores other than a folder: fsspec URLs, zip archives, tar shards."""

import gzip
import io
import os
import signal
import sys
import tarfile
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import fsspec
import pytest

from bottleneck.data.config import ReadConfig
from bottleneck.data.loader import load_images
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.read_source import read_source
from bottleneck.data.source import Source, image_files
from bottleneck.data.storage import RemoteFiles
from bottleneck.errors import ImageError, SourceError
from bottleneck.remote import retries
from tests.helpers.encoded import image, tar_of


@pytest.fixture
def memory():
    """A folder in fsspec's memory store: its URL, and a function that writes files there."""
    store = fsspec.filesystem("memory")
    root = f"/{uuid.uuid4().hex}"

    def put(name, data):
        store.pipe_file(f"{root}/{name}", data)

    yield f"memory:/{root}", put
    store.rm(root, recursive=True)


def told(source):
    target = source.samples.targets["label"]
    return [target.class_names[code] for code in target.values]


def test_a_folder_behind_a_url(memory):
    url, put = memory
    for name in ("train/b/1.png", "val/a/2.png"):
        put(name, image())
    put("train/notes.txt", b"x")
    source = read_source(url)
    assert source.root == url
    assert source.images == ("train/b/1.png", "val/a/2.png")
    assert told(source) == ["b", "a"]
    assert source.samples.split.tolist() == ["train", "val"]
    assert source.ignored == 1
    assert source.read("val/a/2.png") == image()
    assert source.stat("val/a/2.png") == source.stat("val/a/2.png")
    assert source.stat("val/a/2.png")[0] == len(image())


def test_a_change_behind_a_url_changes_its_stat(memory):
    url, put = memory
    put("a/1.png", image())
    before = read_source(url).stat("a/1.png")
    put("a/1.png", image())
    assert read_source(url).stat("a/1.png") != before


def test_one_image_and_a_manifest_behind_a_url(memory):
    url, put = memory
    put("here/1.png", image())
    put("there/2.png", image(9))
    put("here/list.csv", f"image\n1.png\n../there/2.png\n{url}/here/1b.png\n".encode())
    put("here/1b.png", image(8))
    assert read_source(f"{url}/here/1.png").images == ("1.png",)
    source = read_source(f"{url}/here/list.csv")
    assert source.images == ("../there/2.png", "1.png", "1b.png")
    assert source.absent == {}
    assert source.read("../there/2.png") == image(9)


def test_absent_images_of_a_manifest_behind_a_url(memory):
    url, put = memory
    put("1.png", image())
    put("list.csv", b"image\n1.png\n2.png\nnowhere/3.png\n")
    source = read_source(f"{url}/list.csv")
    assert source.images == ("1.png",)
    assert source.absent == {"2.png": "does not exist", "nowhere/3.png": "does not exist"}


def test_a_manifest_names_images_by_url(memory, tmp_path):
    url, put = memory
    put("1.png", image(3))
    (tmp_path / "list.csv").write_text(f"image\n{url}/1.png\n")
    source = read_source(tmp_path / "list.csv")
    assert source.images == (f"{url}/1.png",)
    assert source.read(f"{url}/1.png") == image(3)
    assert source.stat(f"{url}/1.png")[0] == len(image(3))


def test_what_is_not_there(memory):
    url, put = memory
    put("a/readme.txt", b"x")
    with pytest.raises(SourceError, match=r"1 × \.txt"):
        read_source(f"{url}/a")
    with pytest.raises(SourceError, match="does not exist"):
        read_source(f"{url}/b")
    with pytest.raises(SourceError, match="nosuchprotocol"):
        read_source("nosuchprotocol://x/y")


def test_a_file_url_is_a_path(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(image())
    source = read_source(f"file://{tmp_path}")
    assert (source.root, source.images) == (str(tmp_path), ("a/1.png",))


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("https://user:secret@host/data/", "https://host/data"),
        ("https://h/a?X-Amz-Signature=secret&v=1", "https://h/a?X-Amz-Signature=REMOVED&v=1"),
        ("https://h/a?v=1&sig=secret", "https://h/a?v=1&sig=REMOVED"),
        ("https://h/a?design=1", "https://h/a?design=1"),
    ],
)
def test_credentials_do_not_reach_the_root(url, root):
    assert RemoteFiles(None, "host/data", url).root == root


@pytest.mark.parametrize(
    ("scheme", "extra"), [("s3", "s3"), ("gcs", "gs"), ("hf", "hf"), ("simplecache::s3", "s3")]
)
def test_a_missing_package_of_a_store_is_named_without_credentials(monkeypatch, scheme, extra):
    def absent(url, **options):
        raise ImportError(f"cannot load {url}")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(SourceError, match=rf"pip install 'bottleneck-features\[{extra}\]'") as caught:
        read_source(f"{scheme}://user:secret@bucket/photos")
    assert "secret" not in str(caught.value)


SECRET = "s3://user:SECRET@bucket/photos?X-Amz-Signature=SECRET"


class Store:
    """A filesystem whose answers tests choose. fails : the exception of every request."""

    def __init__(self, fails=None, folder=False):
        self.fails, self.folder = fails, folder

    def isdir(self, path):
        if self.fails:
            raise self.fails
        return self.folder

    def exists(self, path):
        return False

    def cat_file(self, path, start=None, end=None):
        raise self.fails

    info = cat_file


@pytest.mark.parametrize(
    ("store", "options", "said"),
    [
        (PermissionError(f"no access to {SECRET}"), {}, "cannot be opened: no access to"),
        (PermissionError("x" * 190 + SECRET), {}, "cannot be opened"),  # cut within the URL
        (Store(RuntimeError(f"no answer from {SECRET}")), {}, "cannot be reached: no answer"),
        (Store(), {}, "does not exist"),
        (Store(folder=True), {"label_columns": ("label",)}, "Columns are named, but"),
    ],
)
def test_no_error_of_a_source_shows_credentials(monkeypatch, store, options, said):
    def opened(url, **options):
        if isinstance(store, Exception):
            raise store
        return store, "bucket/photos"

    monkeypatch.setattr("fsspec.core.url_to_fs", opened)
    with pytest.raises(SourceError, match=said) as caught:
        read_source(SECRET, ReadConfig(**options))
    assert "SECRET" not in str(caught.value)
    assert "user" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError(SECRET), OSError(5, SECRET), FileNotFoundError(SECRET)])
def test_no_failure_of_an_image_shows_credentials(error, monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)
    files = RemoteFiles(Store(error), "bucket", "s3://bucket")
    source = Source(files.root, ("a.png",), image_files(["a.png"]).samples, 0, {}, files)
    preprocess = Preprocess(size=8, resize=8, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
    (image,) = load_images(source, ["a.png"], preprocess, workers=1)
    assert "cannot be read" in image.error
    assert "SECRET" not in image.error


def test_keys_that_are_urls_with_secrets_are_told(tmp_path):
    (tmp_path / "m.csv").write_text("image\nhttps://h/b.png?sig=SECRET\nhttps://h/c.png?v=2\n")
    (note,) = [note for note in read_source(tmp_path / "m.csv").notes if note.code == "secrets-in-keys"]
    assert note.details == {"images": 1}
    assert "SECRET" not in note.message


@pytest.mark.parametrize("form", ["{}", "zip://::{}", "zip://::file://{}"])
def test_a_zip_archive(tmp_path, form):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20):
            archive.writestr(f"train/c{number % 2}/{number:02}.png", image(number))
        archive.writestr("__MACOSX/train/._00.png", b"x")
    source = read_source(form.format(path))
    assert len(source.images) == 20
    assert source.samples.targets["label"].class_names == ("c0", "c1")
    assert source.ignored == 1
    with ThreadPoolExecutor(8) as pool:
        data = list(pool.map(source.read, source.images * 5))
    assert data == [image(int(key[-6:-4])) for key in source.images] * 5


@pytest.mark.parametrize("damage", ["text", "member"])
def test_damaged_archives(tmp_path, damage):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", image(1))
    data = bytearray(path.read_bytes())
    if damage == "text":
        path.write_bytes(b"no archive")
        with pytest.raises(SourceError, match="cannot be opened"):
            read_source(path)
        return
    data[data.index(b"IHDR")] ^= 0xFF  # the checksum no longer fits
    path.write_bytes(data)
    with pytest.raises(ImageError, match="cannot be read"):
        read_source(path).read("a/1.png")


def test_a_tar_through_fsspec_can_be_read_by_threads(tmp_path):
    members = {f"a/{number:03}.png": image(number) + bytes([number]) * 20_000 for number in range(40)}
    tar_of(members, tmp_path / "x.tar")
    source = read_source(f"tar://::{tmp_path}/x.tar")
    assert source.images == tuple(members)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns between any two instructions
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(source.read, source.images * 5)) == list(members.values()) * 5
    finally:
        sys.setswitchinterval(interval)


def test_a_manifest_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("list.csv", "image,label\na.png,cat\nsub/b.png,dog\n")
        archive.writestr("a.png", image(1))
        archive.writestr("sub/b.png", image(2))
    source = read_source(f"zip://list.csv::{tmp_path}/x.zip")
    assert source.root == f"zip://::{tmp_path}/x.zip"
    assert [source.read(key) for key in source.images] == [image(1), image(2)]


def test_one_shard(tmp_path):
    tar_of({"./a/1.png": image(1), "b/deep/2.png": image(2), "b/2.json": b"{}"}, tmp_path / "x.tar")
    source = read_source(tmp_path / "x.tar")
    assert source.root == str(tmp_path)
    assert source.images == ("x.tar/a/1.png", "x.tar/b/deep/2.png")
    assert told(source) == ["a", "b"]
    assert source.ignored == 1
    assert [source.read(key) for key in source.images] == [image(1), image(2)]


def test_a_folder_of_shards(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(2):
            tar_of({f"c{number}/1.png": image(number)}, tmp_path / split / f"{number}.tar")
    (tmp_path / "readme.txt").write_text("x")
    source = read_source(tmp_path)
    assert source.images[0] == "train/0.tar/c0/1.png"
    assert source.ignored == 1
    assert source.samples.split.tolist() == ["train", "train", "val", "val"]
    assert told(source) == ["c0", "c1", "c0", "c1"]
    assert source.read("val/1.tar/c1/1.png") == image(1)


def test_shards_behind_a_url(memory):
    url, put = memory
    put("s/0.tar", tar_of({"a/1.png": image(1)}))
    put("s/1.tar", tar_of({"a/1.png": image(2)}))
    source = read_source(f"{url}/s")
    assert source.images == ("0.tar/a/1.png", "1.tar/a/1.png")
    assert source.read("1.tar/a/1.png") == image(2)
    assert read_source(f"{url}/s/0.tar").images == ("0.tar/a/1.png",)


def test_a_shard_that_changed_changes_the_stat_of_its_members(tmp_path):
    tar_of({"a/1.png": image(1)}, tmp_path / "x.tar")
    before = read_source(tmp_path / "x.tar").stat("x.tar/a/1.png")
    os.utime(tmp_path / "x.tar", ns=(1, 1))
    assert read_source(tmp_path / "x.tar").stat("x.tar/a/1.png") != before


def test_links_in_a_shard_are_named_failures(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        info = tarfile.TarInfo("a/1.png")
        info.size = len(image())
        tar.addfile(info, io.BytesIO(image()))
    source = read_source(tmp_path / "x.tar")
    assert source.images == ("x.tar/a/1.png",)
    assert list(source.absent) == ["x.tar/a/link.png"]


def test_a_shard_cut_off_after_it_was_listed_fails_its_lost_members_alone(tmp_path):
    data = tar_of({"a/1.png": image(1), "a/2.png": image(2)}, tmp_path / "x.tar")
    source = read_source(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(data[: 512 + 512 + 512 + 20])
    assert source.read("x.tar/a/1.png") == image(1)
    with pytest.raises(ImageError, match="cut off"):
        source.read("x.tar/a/2.png")


@pytest.mark.parametrize("damage", ["header", "cut", "compressed", "text"])
def test_damaged_shards_are_refused(tmp_path, damage):
    data = bytearray(tar_of({"a/1.png": image(1), "a/2.png": image(2)}))
    if damage == "header":
        data[1024 + 150] ^= 0xFF  # in the second header's checksum
    elif damage == "cut":
        data = data[: 512 + 512 + 512 + 20]
    elif damage == "compressed":
        data = gzip.compress(data)
    else:
        data = b"not a tar at all" * 100
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(SourceError, match=r"x\.tar cannot be read"):
        read_source(tmp_path / "x.tar")


def test_two_members_of_one_name_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for shade in (1, 2):
            info = tarfile.TarInfo("a/1.png")
            info.size = len(image(shade))
            tar.addfile(info, io.BytesIO(image(shade)))
    with pytest.raises(SourceError, match=r"Duplicate sample key .x\.tar/a/1\.png."):
        read_source(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_tar_header_of_gigabytes_is_refused_before_it_is_read(tmp_path, kind):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 3 << 30
    (tmp_path / "s.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(SourceError, match="a header of 3,221,225,472 bytes; 1,048,576 are allowed"):
        read_source(tmp_path / "s.tar")


def test_thousands_of_nested_long_names_are_refused(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    block = header.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")
    (tmp_path / "s.tar").write_bytes(block * 3000 + bytes(10240))
    with pytest.raises(SourceError, match="cannot be read"):
        read_source(tmp_path / "s.tar")


@contextmanager
def processor_seconds(most):
    """End the test's work after so much processor time; what these inputs used to take were minutes."""

    def end(*_):
        raise AssertionError(f"more than {most} s of processor time")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def member(kind, body=b"", name="a/0.png", size=None):
    """A header and the blocks of a member."""
    header = tarfile.TarInfo(name)
    header.type, header.size = kind, len(body) if size is None else size
    return header.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512)


MIB = 1 << 20
PAX_BODIES = {
    "digits": b"%d comment=" % MIB + b"7" * (MIB - 17) + b"\n",
    "records that overlap": b"2 " * (MIB // 2 - 1) + b"2=",
    "no record": b"x" * MIB,
    "a record beyond its end": b"99 path=x\n",
    "a record of no length": b"0 path=x\n",
    "digits that precede a charset": b"1" * (MIB - 16) + b" hdrcharset=BI\n",
}


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
@pytest.mark.parametrize("body", PAX_BODIES.values(), ids=PAX_BODIES)
def test_a_pax_header_that_takes_quadratic_time_is_refused(tmp_path, kind, body):
    data = member(kind, body) + member(tarfile.REGTYPE, image())
    (tmp_path / "s.tar").write_bytes(data + bytes(1024))
    with processor_seconds(20), pytest.raises(SourceError, match=r"a pax header with a number|at byte 0 is"):
        read_source(tmp_path / "s.tar")


def test_ordinary_pax_headers_are_read(tmp_path):
    name = "개" * 80 + ".png"
    with tarfile.open(
        tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "a=b"}
    ) as tar:
        info = tarfile.TarInfo(f"a/{name}")
        info.size, info.mtime = len(image()), 1.5
        info.pax_headers = {"SCHILY.xattr.user.x": "line\nline = 7" + "1" * 200}
        tar.addfile(info, io.BytesIO(image()))
    source = read_source(tmp_path / "s.tar")
    assert source.images == (f"s.tar/a/{name}",)
    assert source.read(source.images[0]) == image()


def sparse_header(extended):
    """A header of an old GNU sparse file, whose map goes on in a chain of blocks."""
    block = bytearray(member(tarfile.GNUTYPE_SPARSE, size=0, name="sparse.png"))
    block[482] = extended
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_an_endless_map_of_a_sparse_file_is_refused(tmp_path):
    (tmp_path / "s.tar").write_bytes(sparse_header(1) + (bytes(504) + b"\1" + bytes(7)) * 100_000)
    with processor_seconds(20), pytest.raises(SourceError, match="a map of a sparse file of more than"):
        read_source(tmp_path / "s.tar")


def test_a_sparse_file_is_a_failure_and_its_neighbours_are_read(tmp_path):
    chain = (bytes(504) + b"\1" + bytes(7)) * 2 + bytes(512)
    data = sparse_header(1) + chain + member(tarfile.REGTYPE, image()) + bytes(1024)
    (tmp_path / "s.tar").write_bytes(data)
    source = read_source(tmp_path / "s.tar")
    assert list(source.images) == ["s.tar/a/0.png"]
    assert source.read("s.tar/a/0.png") == image()
    assert list(source.absent) == ["s.tar/sparse.png"]


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_a_map_in_a_pax_header_is_not_read(tmp_path, version):
    major, minor = version.split(".")
    records = {
        "0.0": [
            "GNU.sparse.size=9",
            "GNU.sparse.numblocks=1",
            "GNU.sparse.offset=0",
            "GNU.sparse.numbytes=1",
        ],
        "0.1": ["GNU.sparse.size=9", "GNU.sparse.map=" + "0,1," * 200_000 + "0,1"],
        "1.0": [f"GNU.sparse.major={major}", f"GNU.sparse.minor={minor}", "GNU.sparse.realsize=9"],
    }[version]
    lines = b"".join(b"%d %s\n" % (length_of(record), record.encode()) for record in records)
    data = member(tarfile.XHDTYPE, lines) + member(tarfile.REGTYPE, b"9999999999\n" * 2000)
    (tmp_path / "s.tar").write_bytes(data + member(tarfile.REGTYPE, image(), "a/1.png") + bytes(1024))
    with processor_seconds(20):
        source = read_source(tmp_path / "s.tar")
    assert list(source.images) == ["s.tar/a/1.png"]
    assert list(source.absent) == ["s.tar/a/0.png"]


def length_of(record):
    """The length of a pax record, which counts its own digits."""
    return next(n for n in range(len(record), len(record) + 20) if n == len(f"{n} {record}\n"))


def test_empty_members_are_listed_in_linear_time(tmp_path, long):
    """Ten thousand, or a million with --long: 120 µs of processor time each."""
    count = 1_000_000 if long else 10_000
    with open(tmp_path / "s.tar", "wb") as file:
        file.writelines(member(tarfile.REGTYPE, name=f"{number}.png") for number in range(count))
        file.write(bytes(1024))
    with processor_seconds(120 if long else 60):
        assert len(read_source(tmp_path / "s.tar").images) == count


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet", "s.tar", "i.png", "z.zip"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(SourceError, match="is a pipe or a device"):
        read_source(tmp_path / name)
