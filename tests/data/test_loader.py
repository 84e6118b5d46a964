"""Loading in order: failures in their place, copies settled as if one by one, bounds, an early close."""

import hashlib
import io
import pkgutil
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bottleneck.data.decode import pixels_from_bytes
from bottleneck.data.loader import NotedImages, fill_pixels, load_images, readable_pixels
from bottleneck.data.preprocess import Preprocess, ViewRecipe
from bottleneck.data.workers import Job, MemoryBudget
from bottleneck.errors import SourceError
from bottleneck.files import FileStat

pytestmark = pytest.mark.usefixtures("all_cores")  # decoders and passes run side by side

PREPROCESS = Preprocess(8, 8, "bilinear", (0.5,) * 3, (0.5,) * 3)


def picture(shade, side=8):
    file = io.BytesIO()
    Image.new("L", (side, side), shade).save(file, "PNG")
    return file.getvalue()


class Shelf:
    """A source in memory; `before` is called with each key that is read."""

    root = "memory"

    def __init__(self, files, before=lambda key: None):
        self.files = files
        self.before = before
        self.reads = []

    def read(self, key):
        self.before(key)
        self.reads.append(key)
        return self.files[key]

    def stat(self, key):
        if key not in self.files:
            raise FileNotFoundError(2, "No such file or directory", key)
        return len(self.files[key]), 42


def shelf(count, **options):
    return Shelf({f"{number:03}": picture(number % 256) for number in range(count)}, **options)


def load(source, keys=None, **options):
    return list(load_images(source, keys or list(source.files), PREPROCESS, **({"workers": 3} | options)))


def decoders():
    return [thread for thread in threading.enumerate() if thread.name == "bottleneck-decode"]


@pytest.mark.parametrize("workers", [0, 1, 2, 7])
def test_images_come_in_the_order_of_their_keys(workers):
    source = shelf(150, before=lambda key: time.sleep(0.002 if key[-1] in "13" else 0))
    images = load(source, workers=workers)
    assert [image.key for image in images] == list(source.files)
    assert [image.index for image in images] == list(range(150))
    for image in images:
        data = source.files[image.key]
        assert image.stat == FileStat(len(data), 42)
        assert image.digest == hashlib.sha256(data).digest()
        assert np.array_equal(image.pixels, pixels_from_bytes(data, PREPROCESS))
        assert image.error is None
    assert sorted(source.reads) == list(source.files)  # each file once


def test_keys_can_be_in_any_order_and_a_part():
    source = shelf(20)
    keys = ["007", "003", "019"]
    assert [image.key for image in load(source, keys)] == keys


def test_a_corrupt_image_at_each_of_64_positions_moves_no_neighbour():
    files = {f"{number:02}": picture(number) for number in range(64)}
    for position in range(64):
        bad = (b"", b"no image", picture(1)[:-30])[position % 3]
        source = Shelf(files | {f"{position:02}": bad})
        images = list(load(source))
        assert [image.key for image in images] == [f"{number:02}" for number in range(64)]
        failed = images.pop(position)
        assert failed.error
        assert (failed.passing, failed.pixels) == (False, None)
        assert failed.digest == hashlib.sha256(bad).digest()
        assert all((image.pixels == int(image.key)).all() for image in images)


def test_a_file_that_is_gone_or_locked_is_a_failure():
    def lock(key):
        if key == "001":
            raise PermissionError(13, "Permission denied", "/secret/path/001")

    images = load(shelf(3, before=lock), ["000", "gone", "001", "002"])
    assert [image.error for image in images] == [
        None,
        "cannot be read: No such file or directory",
        "cannot be read: Permission denied",
        None,
    ]
    assert [image.passing for image in images] == [False, False, True, False]
    assert images[1].digest is None
    assert images[1].stat == FileStat()


class Panic(BaseException):
    """What libraries written in Rust raise."""


ERRORS = [
    MemoryError(),
    RecursionError("too deep"),
    RuntimeError("[enforce fail at alloc.cpp:1]"),
    Panic("no"),
]
STAGES = [  # every step from file to array
    "hashlib.sha256",
    "bottleneck.data.image_header.Image.open",
    "bottleneck.data.loader.EncodedImage.memory",
    "PIL.PngImagePlugin.PngImageFile.load",
    "PIL.PngImagePlugin.PngImageFile.getexif",
    "bottleneck.data.decode.to_mode",
    "bottleneck.data.decode.as_array",
    "bottleneck.data.loader.MemoryBudget.reserve",
    "torch.nn.functional.interpolate",
]


JPEG_STAGES = [  # those that a JPEG passes in place of PNG's; views take a path of their own
    "bottleneck.data.decode.jpeg_array",
    "simplejpeg.decode_jpeg",
    "bottleneck.data.decode.fast_pixels",
    "bottleneck.data.preprocess.ViewRecipe.apply",
]


class Tripwire:
    """Raises `error` once, when the image "31" reaches `stage`. `raised` is what it raised."""

    def __init__(self, stage, error, source, monkeypatch):
        self.stage, self.error, self.raised = stage, error, []
        self.current = threading.local()
        for name in ("stat", "read"):
            setattr(source, name, self.named(getattr(source, name), name))
        for place in {stage} - {"stat", "read"}:
            owner, name = pkgutil.resolve_name(place.rpartition(".")[0]), place.rpartition(".")[2]
            monkeypatch.setattr(owner, name, self.tripping(getattr(owner, name)))

    def trip(self):
        if getattr(self.current, "key", None) == "31":
            self.current.key = None
            self.raised.append(self.stage)
            raise self.error

    def named(self, call, name):
        def named(key):
            self.current.key = key
            return (self.tripping(call) if name == self.stage else call)(key)

        return named

    def tripping(self, call):
        def tripping(*arguments, **options):
            self.trip()
            return call(*arguments, **options)

        return tripping


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("stage", ["stat", "read", *STAGES])
def test_the_fence_whatever_one_image_raises_is_its_failure_alone(stage, error, monkeypatch):
    source = Shelf({f"{number:02}": picture(number, side=9) for number in range(64)})
    wire = Tripwire(stage, error, source, monkeypatch)
    images = load(source)
    assert wire.raised == [stage]
    assert [image.key for image in images] == list(source.files)
    exif_is_dispensable = stage.endswith("getexif") and isinstance(error, Exception)
    assert [image.key for image in images if image.error] == ([] if exif_is_dispensable else ["31"])
    assert all((image.pixels == image.index).all() for image in images if image.error is None)
    assert not decoders()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("stage", JPEG_STAGES)
def test_the_fence_holds_for_jpegs_and_their_views(stage, error, monkeypatch):
    files = {}
    for number in range(64):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (2 * number,) * 3).save(file, "JPEG")
        files[f"{number:02}"] = file.getvalue()
    views = {"views": ViewRecipe(2, seed=0)} if "View" in stage or stage.endswith("fast_pixels") else {}
    expected = {image.key: image.pixels for image in load(Shelf(files), **views)}
    source = Shelf(files)
    wire = Tripwire(stage, error, source, monkeypatch)
    images = load(source, **views)
    assert wire.raised == [stage]
    assert [image.key for image in images] == list(files)
    failed = [image.key for image in images if image.error]
    decoded_by_pillow = stage == "torch.frombuffer" and isinstance(error, RuntimeError)
    assert failed == ([] if decoded_by_pillow else ["31"])
    assert all((image.pixels == expected[image.key]).all() for image in images if image.error is None)
    assert not decoders()


def test_an_interrupt_is_no_failure_of_an_image():
    def trip(key):
        if key == "005":
            raise KeyboardInterrupt

    source = shelf(20, before=trip)
    images = load_images(source, list(source.files), PREPROCESS, workers=2)
    assert [next(images).key for _ in range(5)] == ["000", "001", "002", "003", "004"]
    with pytest.raises(KeyboardInterrupt):
        next(images)
    assert not decoders()


@pytest.mark.parametrize("size", [(99_999_999, 1), (1, 99_999_999), (100_001, 3)])
def test_an_image_of_an_extreme_shape_is_a_failure_beside_good_ones(size):
    shape = struct.pack(">II", *size)
    header = b"IHDR" + shape + bytes([1, 0, 0, 0, 0])  # one bit a pixel, 97 kB
    pixels = zlib.compress(b"\0" * (1 + -(-size[0] // 8)) * size[1])
    chunks = (header, b"IDAT" + pixels, b"IEND")
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    one, extreme, other = load(Shelf({"a": picture(1), "b": data, "c": picture(2)}))
    assert extreme.error == f"is {size[0]} × {size[1]} pixels, and 100,000 are allowed a side: cut it up"
    assert not extreme.passing
    assert (one.pixels == 1).all()
    assert (other.pixels == 2).all()


def test_an_image_that_needs_more_than_the_memory_is_a_failure():
    source = Shelf({"a": picture(1), "b": picture(1, side=800)})
    a, b = load(source, memory=8 << 20)
    assert a.error is None
    assert b.error == "needs 14 MiB to decode, and 7 are allowed: scale it down"


def test_known_images_are_not_decoded():
    source = shelf(5)
    known = {hashlib.sha256(source.files["002"]).digest()}
    images = load(source, known=known)
    assert [image.pixels is None for image in images] == [False, False, True, False, False]
    assert images[2].error is None
    assert images[2].digest in known
    assert images[2].decode_seconds == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 6), st.sets(st.integers(0, 5)))
def test_copies_are_settled_as_if_one_by_one(contents, workers, known):
    """Content 5 is no image; sleeping readers let copies overtake their originals."""
    data = [picture(shade) for shade in range(5)] + [b"no image"]
    files = {f"{number:02}": data[content] for number, content in enumerate(contents)}
    delays = {f"{number:02}": (7 * number % 5) / 4000 for number in range(len(contents))}
    digests = {hashlib.sha256(data[content]).digest() for content in known}
    images = load(Shelf(files, before=lambda key: time.sleep(delays[key])), workers=workers, known=digests)
    outcomes = [(image.error is None, image.pixels is None) for image in images]
    first = {content: contents.index(content) for content in contents}
    expected = [
        (content != 5 or content in known, content in known or content == 5 or first[content] != position)
        for position, content in enumerate(contents)
    ]
    assert outcomes == expected


def test_a_copy_that_overtakes_its_original_loses_its_pixels():
    overtaken = threading.Event()
    source = Shelf({"first": picture(7), "copy": picture(7), "last": picture(8)})

    def before(key):
        if key == "first":
            assert overtaken.wait(10)
        if key == "last":  # read by the worker that has done with the copy
            overtaken.set()

    source.before = before
    first, copy, _ = load(source, workers=2)
    assert first.pixels is not None
    assert (copy.pixels, copy.error) == (None, None)


def test_closing_early_stops_the_threads_and_the_reading():
    source = shelf(1000)
    images = load_images(source, list(source.files), PREPROCESS, workers=4)
    assert next(images).key == "000"
    assert decoders()
    images.close()
    assert not decoders()
    assert len(source.reads) < 300


def test_an_error_of_the_caller_stops_the_threads():
    def consume():
        for _ in load_images(shelf(50), list(shelf(50).files), PREPROCESS, workers=2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert not decoders()


def test_nothing_to_load():
    assert load(shelf(0)) == []
    assert not decoders()


def test_reading_runs_a_bounded_number_ahead():
    source = shelf(2000)
    images = load_images(source, list(source.files), PREPROCESS, workers=2)
    next(images)
    deadline = time.monotonic() + 10
    while len(source.reads) < 90 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(source.reads) <= 100
    images.close()


def test_many_reads_in_flight_keep_what_waits_for_the_caller_within_the_memory():
    source = shelf(64)
    source.reads_at_once = 32
    large = Preprocess(512, 512, "bilinear", (0.5,) * 3, (0.5,) * 3)  # 0.75 MiB
    images = load_images(source, list(source.files), large, workers=2, memory=8 << 20)
    next(images)
    deadline = time.monotonic() + 10
    while len(source.reads) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(source.reads) == 10
    images.close()


def test_an_image_that_takes_too_long_is_a_failure_and_the_rest_goes_on():
    release = threading.Event()

    def stick(key):
        if key in ("003", "004"):
            release.wait(60)

    source = shelf(12, before=stick)
    source.files["009"] = source.files["003"]
    images = load(source, workers=2, wait_limit=0.3)
    release.set()
    assert [image.key for image in images] == list(source.files)
    assert [image.error is not None for image in images] == [n in (3, 4) for n in range(12)]
    assert "0.3 seconds" in images[3].error
    assert images[3].passing


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="no processor time of other threads")
def test_an_image_that_waits_for_a_core_is_not_lost():
    """A thread without a core spends no processor time, as one that sleeps."""
    images = load(shelf(3, before=lambda key: time.sleep(1)), workers=3, time_limit=0.5)
    assert [image.error for image in images] == [None] * 3


def test_an_image_that_uses_the_processor_too_long_is_a_failure():
    release = threading.Event()

    def spin(key):
        while key == "001" and not release.is_set():
            pass

    images = load(shelf(3, before=spin), workers=1, time_limit=0.3)
    release.set()
    assert [image.error is not None for image in images] == [False, True, False]
    assert "0.3 seconds of processor time" in images[1].error
    assert images[1].passing


def test_a_process_that_was_stopped_loses_no_image(monkeypatch):
    """Ctrl-Z and fg: the clock has gone on, the decoder has not."""
    real, ahead = time.monotonic, [0.0]
    monkeypatch.setattr("bottleneck.data.workers.time.monotonic", lambda: real() + ahead[0])

    def stop(key):
        time.sleep(0.5)
        ahead[0] = 100.0
        time.sleep(1)

    (image,) = load(shelf(1, before=stop), workers=1, wait_limit=20)
    assert image.error is None


def test_the_copy_of_an_image_that_takes_too_long_fails_with_it(monkeypatch):
    release = threading.Event()
    started = threading.Event()
    original = PREPROCESS.geometry

    def stick(self, height, width):
        if threading.current_thread().name == "bottleneck-decode" and (height, width) == (31, 31):
            started.set()
            release.wait(60)
        return original(height, width)

    monkeypatch.setattr(Preprocess, "geometry", stick)
    source = Shelf({"slow": picture(1, side=31), "copy": picture(1, side=31), "other": picture(2)})
    source.before = lambda key: key == "copy" and started.wait(10)
    slow, copy, other = load(source, workers=2, wait_limit=0.5)
    release.set()
    assert "0.5 seconds" in slow.error
    assert "too long" in copy.error
    assert other.pixels is not None


def test_a_stuck_image_does_not_keep_the_memory_from_an_earlier_one(monkeypatch):
    release, holding = threading.Event(), threading.Event()
    original = PREPROCESS.geometry

    def stick(self, height, width):
        if threading.current_thread().name == "bottleneck-decode" and height == 31:
            holding.set()
            release.wait(60)
        return original(height, width)

    monkeypatch.setattr(Preprocess, "geometry", stick)
    source = Shelf({"early": picture(1), "stuck": picture(1, side=31)})
    source.before = lambda key: key == "early" and holding.wait(10)
    early, stuck = load(source, workers=2, wait_limit=0.5, memory=40_000)
    release.set()
    assert early.pixels is not None
    assert "0.5 seconds" in stuck.error


def test_a_file_larger_than_the_memory_is_a_failure():
    source = Shelf({"a": picture(1), "b": b"\0" * 12_000_000})
    a, b = load(source, memory=8 << 20)
    assert a.error is None
    assert "11 MiB; the limit is 7" in b.error
    assert source.reads == ["a"]


def test_images_in_work_share_the_memory():
    budget = MemoryBudget(100)
    held, most = [], []
    lock = threading.Lock()

    def work(number):
        with budget.reserve(Job(number, ""), 30 + number):
            with lock:
                held.append(30 + number)
                most.append(sum(held))
            time.sleep(0.002)
            with lock:
                held.remove(30 + number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert 60 < max(most) <= 100


def test_an_image_beyond_the_memory_is_decoded_alone():
    budget = MemoryBudget(100)
    with budget.reserve(Job(0, ""), 1000):
        assert budget.reserved.popitem()[1] == 100


def test_waiting_for_memory_does_not_count_as_time_taken():
    budget = MemoryBudget(100)
    job = Job(1, "")
    job.started = 0.0
    first = budget.reserve(Job(0, ""), 80)
    first.__enter__()
    waiting = threading.Thread(target=lambda: budget.reserve(job, 80).__enter__())
    waiting.start()
    deadline = time.monotonic() + 10
    while job.started is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert job.started is None
    first.__exit__(None, None, None)
    waiting.join(10)
    assert job.started > 0


def test_views_come_with_the_pixels_and_leave_them_as_they_are():
    source = shelf(6)
    recipe = ViewRecipe(count=2, seed=3)
    plain = load(source)
    with_views = load(source, views=recipe)
    again = load(source, list(reversed(source.files)), views=recipe, workers=1)
    for one, two, three in zip(plain, with_views, reversed(again), strict=True):
        assert one.views is None
        assert np.array_equal(one.pixels, two.pixels)
        assert two.views.shape == (2, 8, 8, 3)
        assert np.array_equal(two.views, three.views)


def test_the_pixels_of_what_can_be_read_come_without_copies():
    source = Shelf({"a": picture(1), "b": b"no image", "c": picture(1), "d": picture(2)})
    done = []
    pixels = readable_pixels(source, list(source.files), PREPROCESS, workers=2, advance=done.append)
    assert (pixels.shape, pixels[:, 0, 0, 0].tolist(), sum(done)) == ((2, 8, 8, 3), [1, 2], 4)
    with pytest.raises(SourceError, match=r"None of 1 image of memory can be read; b: is damaged"):
        readable_pixels(source, ["b"], PREPROCESS, workers=1)


def test_pixels_are_written_in_order_copies_included_and_failures_left_as_they_were():
    source = Shelf({"a": picture(1), "b": b"no image", "c": picture(1), "d": picture(2)})
    out, done = np.full((4, 8, 8, 3), 9, np.uint8), []
    images = fill_pixels(out, source, list(source.files), PREPROCESS, advance=done.append)
    assert out[:, 0, 0, 0].tolist() == [1, 9, 1, 2]
    assert [image.key for image in images if image.error] == ["b"]
    assert images[0].digest == images[2].digest
    assert all(image.pixels is None for image in images)
    assert sum(done) == 4


def test_first_views_are_written_in_place_of_pixels():
    source = shelf(3)
    source.files["003"] = source.files["001"]
    recipe = ViewRecipe(count=2, seed=3)
    out = np.zeros((4, 8, 8, 3), np.uint8)
    fill_pixels(out, source, list(source.files), PREPROCESS, views=recipe)
    views = [image.views[0] for image in load(shelf(3), views=recipe)]
    assert np.array_equal(out, np.stack([*views, views[1]]))


def test_notes_on_images_are_grouped_by_kind_with_counts_and_first_names():
    clear = io.BytesIO()
    Image.new("LA", (8, 8), (9, 0)).save(clear, "PNG")
    files = {f"{number}": clear.getvalue() + bytes([number]) for number in range(7)}
    noted = NotedImages()
    for image in load(Shelf({"plain": picture(1)} | files)):
        noted.add(image)
    (note,) = noted.notes()
    assert (note.code, note.details["count"]) == ("image-transparent", 7)
    assert note.message == (
        "Images that are transparent everywhere show the colours stored below: 0, 1, 2, 3, 4 and 2 more."
    )
