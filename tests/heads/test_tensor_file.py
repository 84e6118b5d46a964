"""What is said of a file that is no head: what it is, what was expected, what to do."""

import gzip
import io
import os
import pickle

import h5py
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from bottleneck.errors import ArtifactError
from bottleneck.heads.artifact import load_head
from tests.helpers.heads import head


@pytest.fixture
def path(tmp_path):
    return head().save(tmp_path / "머리.safetensors")


def encoded(kind):
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, kind)
    return file.getvalue()


def hdf5():
    file = io.BytesIO()
    h5py.File(file, "w").close()
    return file.getvalue()


def array():
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


OTHERS = {
    "empty": (lambda data: b"", "is empty"),
    "zeroed": (lambda data: bytes(len(data)), "begins with zeros: its content was lost"),
    "first block zeroed": (lambda data: bytes(512) + data[512:], "begins with zeros: its content was lost"),
    "PNG": (lambda data: encoded("PNG"), "is a PNG image"),
    "JPEG": (lambda data: encoded("JPEG"), "is a JPEG image"),
    "GIF": (lambda data: encoded("GIF"), "is a GIF image"),
    "cache": (lambda data: hdf5(), "is an HDF5 file, as feature caches and Keras models are"),
    "pickle": (lambda data: pickle.dumps({"coef": 1}), "is a pickle, which is not read"),
    "gzip": (gzip.compress, "is a gzip file"),
    "array": (lambda data: array(), "is a NumPy array"),
    "page": (lambda data: b"\n<!DOCTYPE html><html>404</html>", "is a page of the web"),
    "pointer": (
        lambda data: b"version https://git-lfs.github.com/spec/v1\n",
        "is a pointer of Git LFS",
    ),
    "json": (lambda data: b'{"coef": [1, 2]}', "is JSON"),
    "text": (lambda data: b"image,label\na.jpg,x\n", "is of another format, or its beginning is damaged"),
    "one byte short": (lambda data: data[:-1], "is cut off: it has {less} of {whole} bytes"),
    "half a header": (lambda data: data[:100], "is cut off: it has 100 bytes, and its header alone {header}"),
    "seven bytes": (lambda data: data[:7], "is of another format, or its beginning is damaged"),
    "longer": (lambda data: data + bytes(3), "has 3 bytes after its end"),
    "header of a terabyte": (lambda data: (1 << 40).to_bytes(8, "little") + data[8:], "is of another format"),
    "header of one bracket": (lambda data: (1).to_bytes(8, "little") + b"{", "has a damaged header"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_file_that_is_no_head_is_told_in_one_sentence(path, case):
    data = path.read_bytes()
    change, fault = OTHERS[case]
    path.write_bytes(change(data))
    numbers = {"whole": len(data), "less": len(data) - 1, "header": 8 + int.from_bytes(data[:8], "little")}
    with pytest.raises(ArtifactError) as caught:
        load_head(path)
    expected = fault.format(**{name: f"{number:,}" for name, number in numbers.items()})
    assert str(caught.value).startswith(f"{path} {expected}")
    assert caught.value.message.endswith("; expected a head or model file.")
    assert caught.value.hint == "Copy it again from where it came, or make it again."


def test_weights_are_no_head(path):
    path.write_bytes(save({"conv.weight": np.ones((2, 2), np.float32)}, metadata={"format": "pt"}))
    with pytest.raises(ArtifactError, match="contains tensors without a head: its format is pt; expected"):
        load_head(path)


def test_what_is_no_file_is_told(path, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="pipe is a pipe or a device; expected a head or model file"):
        load_head(tmp_path / "pipe")
    with pytest.raises(ArtifactError) as caught:
        load_head(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is a folder; expected a head or model file. Give for example {path}."
    )
