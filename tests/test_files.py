"""Whole files are written in one rename, with the user's permissions, and errors are told apart."""

import errno
import os
from pathlib import Path

import pytest

from bottleneck import files
from bottleneck.errors import ArtifactError, CacheError, WriteError


def test_a_whole_file_replaces_the_old_one_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "x.bin"
    files.write_whole(path, b"old")
    with files.whole_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["x.bin"]


def test_an_error_of_the_caller_passes_unchanged_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def copy_half():
        with files.whole_file(path) as file:
            file.write(b"half")
            file.write((tmp_path / "another").read_bytes())

    with pytest.raises(FileNotFoundError) as caught:
        copy_half()
    assert caught.value.filename == str(tmp_path / "another")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("kind", [ArtifactError, CacheError])
def test_a_refusal_of_the_system_is_an_error_of_head_and_cache(tmp_path, kind):
    (tmp_path / "file").touch()
    with pytest.raises(kind, match="could not be written") as caught:
        files.write_whole(tmp_path / "file" / "x.bin", b"data")
    assert isinstance(caught.value, WriteError)
    assert caught.value.hint


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_whole(tmp_path / "x.bin", b"data")
    finally:
        os.umask(before)
    assert (tmp_path / "x.bin").stat().st_mode & 0o777 == 0o640


def test_file_and_folder_are_made_durable_before_and_after_the_rename(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(files, "sync", lambda descriptor: steps.append("sync"))
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda *paths: (steps.append("rename"), replace(*paths)))
    files.write_whole(tmp_path / "x.bin", b"data")
    assert steps == ["sync", "rename", "sync"]


def test_room_is_asked_of_the_nearest_folder_that_exists(tmp_path):
    files.require_space(tmp_path / "a" / "b", 1, "Work")
    with pytest.raises(CacheError, match="Work needs 1e"):
        files.require_space(tmp_path / "a" / "b", 10**30, "Work")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_full_disk_is_reported_and_the_old_file_stays(tmp_path, monkeypatch, size):
    path = tmp_path / "x.bin"
    files.write_whole(path, b"old")

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(WriteError, match="The disk is full"):
        files.write_whole(path, bytes(size))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_an_output_that_is_a_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(WriteError, match="is a folder; expected the name of a file"):
        files.write_whole(tmp_path, b"x")
    with pytest.raises(WriteError, match="is a folder"):
        files.require_file_name(tmp_path)
    files.require_file_name(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_an_output_that_is_a_device_or_a_pipe_is_refused_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/full")
    for path in (tmp_path / "pipe", tmp_path / "link", *map(Path, ("/dev/full", "/dev/stdout", "/dev/fd/1"))):
        with pytest.raises(WriteError, match="is a device or a pipe; expected the name of a file"):
            files.write_whole(path, b"x")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("error", [OSError("the server breaks off"), TimeoutError(), ConnectionResetError()])
def test_another_error_while_a_file_is_made_is_no_failed_write(tmp_path, error):
    """It has no file name either, but nothing is wrong with the disk."""

    def make():
        with files.replacing(tmp_path / "f") as fresh:
            fresh.write_bytes(b"begun")
            raise error

    with pytest.raises(type(error)) as caught:
        make()
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []
