"""A disk that takes so many bytes of a file and no more: the file is named, and no half of it is left."""

import resource
import shutil
import signal
from contextlib import contextmanager

import pytest

from bottleneck.fitting.fit_heads import fit_heads


@contextmanager
def room(size):
    """Refuse writes beyond `size` bytes of any file, as the system does where a quota ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="module")
def head(made_cache, tmp_path_factory):
    """A head that has the statistics of its network."""
    return fit_heads(made_cache, C=1e-3, cv=2, output=tmp_path_factory.mktemp("head")).heads[0]["path"]


EXTRACT = "extract IMAGES -o OUT/new.h5 --backbone small_cnn --engine torch"
TRAIN = "finetune CACHE --head HEAD -o OUT/m.safetensors --epochs 1"
CASES = {  # by output: the command, the bytes that a file may have, the file that is named
    "cache": (EXTRACT, 20_000, "new.h5"),
    "statistics": (
        "extract IMAGES -o OUT/new.h5 --backbone small_cnn --engine torch",
        99,
        "new--batchnorm.safetensors",
    ),
    "head": ("fit-head CACHE -o OUT --cv 2 --C 0.001", 20_000, "c--label--bottleneck--logistic.safetensors"),
    "model": (TRAIN, 60_000, "m.safetensors"),
    "history": (TRAIN, 99, "m.history.json"),
    "figure": ("evaluate HEAD CACHE --confusion OUT/f.png", 999, "f.png"),
    "misclassified": ("evaluate HEAD CACHE --errors OUT/e.csv", 9, "e.csv"),
    "predictions csv": ("predict HEAD IMAGES --engine torch -o OUT/p.csv", 999, "p.csv"),
    "predictions jsonl": ("predict HEAD IMAGES --engine torch -o OUT/p.jsonl", 999, "p.jsonl"),
    "predictions parquet": ("predict HEAD IMAGES --engine torch -o OUT/p.parquet", 999, "p.parquet"),
    "neighbours": ("similar CACHE --all -o OUT/n.csv", 999, "n.csv"),
    "sheet": ("similar CACHE IMAGES/train/red/0.png --sheet OUT/s.png", 999, "s.png"),
    "arrays": ("cache export CACHE -o OUT/a.npz", 9_999, "a.npz"),
    "table": ("cache export CACHE -o OUT/a.parquet", 9_999, "a.parquet"),
    "program": ("export HEAD --format onnx -o OUT/h.onnx", 9_999, "h.onnx"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_full_disk_names_the_file_and_leaves_no_half(made_cache, head, images, tmp_path, run, case):
    text, size, named = CASES[case]
    for path in made_cache.parent.glob("c*"):
        shutil.copy(path, tmp_path / path.name)
    out = tmp_path / "out"
    out.mkdir()
    places = {"CACHE": tmp_path / made_cache.name, "HEAD": head, "IMAGES": images, "OUT": out}
    for name, place in places.items():
        text = text.replace(name, str(place))
    before = {path: path.read_bytes() for path in tmp_path.glob("c*") if path.is_file()}
    with room(size):
        result = run(*text.split())
    (line,) = [line for line in result.err.splitlines() if "rror" in line]
    assert result.code == 1
    assert str(out / named) in line
    assert "could not be written: File too large." in line
    assert not (out / named).exists()
    assert list(out.glob("*.new")) == []
    assert {path: path.read_bytes() for path in before} == before
