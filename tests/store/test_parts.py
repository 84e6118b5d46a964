"""The commit log says what happened: torn ends never did, damage in the middle is refused."""

import hashlib

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from bottleneck.errors import CacheError
from bottleneck.store.parts import LogWriter, read_log
from bottleneck.store.spec import Origin
from tests.helpers.world import MAP, ROOT, SPEC, A

ORIGIN = Origin(SPEC, ROOT)


def write(folder, parts=4):
    log = LogWriter(folder, None)
    log.start(ORIGIN)
    log.append({"nodes": [A.to_json(), MAP.to_json()]})
    for number in range(parts):
        log.append({"part": f"part-{number}.h5", "bytes": number, "sha256": "0" * 64, "rows": 2})
    log.close()
    return folder / "log"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("log")).read_bytes()


def state_of(data, folder):
    (folder / "log").write_bytes(data)
    return read_log(folder)


def sealed_line(text):
    return hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n"


def test_what_was_appended_is_read(tmp_path):
    write(tmp_path)
    state = read_log(tmp_path)
    assert (state.origin, state.nodes) == (ORIGIN, (A, MAP))
    assert [part.name for part in state.parts] == [f"part-{n}.h5" for n in range(4)]
    assert state.lines == 6


def test_no_log_is_no_state(tmp_path):
    assert read_log(tmp_path) is None


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1))
def test_a_cut_log_is_its_last_commit(data, tmp_path_factory, place):
    cut = data[: int(place * len(data))]
    state = state_of(cut, tmp_path_factory.mktemp("cut"))
    whole_lines = cut.count(b"\n")
    assert (state.lines if state else 0) == whole_lines
    assert (len(state.parts) if state else 0) == max(0, whole_lines - 2)


def flipped(data, offset, bit):
    """The log with one bit changed."""
    changed = bytearray(data)
    changed[offset] ^= 1 << bit
    return bytes(changed)


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_before_the_last_line_is_refused(data, tmp_path_factory, place, bit):
    last = data[:-1].rindex(b"\n")
    changed = flipped(data, int(place * last), bit)
    with pytest.raises(CacheError, match="damaged") as caught:
        state_of(changed, tmp_path_factory.mktemp("flip"))
    assert "Delete" in caught.value.hint


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_last_line_leaves_the_commits_before_it(data, tmp_path_factory, place, bit):
    first = data[:-1].rindex(b"\n") + 1
    changed = flipped(data, first + int(place * (len(data) - first)), bit)
    assert state_of(changed, tmp_path_factory.mktemp("flip")).lines == 5


@pytest.mark.parametrize("bit", range(8))
def test_a_lost_line_feed_before_the_last_line_makes_both_lines_torn(data, tmp_path, bit):
    changed = flipped(data, data[:-1].rindex(b"\n"), bit)
    assert state_of(changed, tmp_path).lines == 4


@pytest.mark.parametrize("change", ["drop", "swap", "repeat"])
def test_lines_that_are_not_in_their_place_are_refused(data, tmp_path, change):
    lines = data.splitlines(keepends=True)
    changed = {
        "drop": lines[:2] + lines[3:],
        "swap": [*lines[:2], lines[3], lines[2], *lines[4:]],
        "repeat": lines[:3] + lines[2:],
    }[change]
    with pytest.raises(CacheError, match=r"line [34] of"):
        state_of(b"".join(changed), tmp_path)


def test_a_torn_line_is_replaced_by_the_next_commit(data, tmp_path):
    state = state_of(data[:-10], tmp_path)
    log = LogWriter(tmp_path, state)
    log.append({"part": "part-new.h5", "bytes": 1, "sha256": "0" * 64, "rows": 1})
    log.close()
    assert [part.name for part in read_log(tmp_path).parts][-2:] == ["part-2.h5", "part-new.h5"]


def test_a_file_elsewhere_is_refused(tmp_path):
    log = LogWriter(tmp_path, None)
    log.start(ORIGIN)
    log.append({"part": "../../etc/passwd", "bytes": 1, "sha256": "0" * 64, "rows": 1})
    log.close()
    with pytest.raises(CacheError, match="elsewhere"):
        read_log(tmp_path)


@pytest.mark.parametrize("text", [b"no JSON", b"[" * 100_000, b"\xff", b'{"n":3'])
def test_a_line_that_is_no_json_is_refused_although_its_checksum_is_right(data, tmp_path, text):
    lines = data.splitlines(keepends=True)
    lines[3] = sealed_line(text)
    with pytest.raises(CacheError, match="line 4 of"):
        state_of(b"".join(lines), tmp_path)


def test_an_infinite_length_is_refused(data, tmp_path):
    text = b'{"n":2,"part":"part-0.h5","bytes":1e999,"sha256":"","rows":1}'
    lines = [*data.splitlines(keepends=True)[:2], sealed_line(text)]
    with pytest.raises(CacheError, match="of another type"):
        state_of(b"".join(lines), tmp_path)


def test_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("bottleneck.store.parts.FORMAT_VERSION", 3)
    write(tmp_path)
    monkeypatch.undo()
    with pytest.raises(CacheError, match="format"):
        read_log(tmp_path)
