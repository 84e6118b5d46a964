"""`bottleneck doctor`: complete for a bug report, quick, and without names of users."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import bottleneck
from bottleneck import installation, processor
from bottleneck.cli.main import group
from bottleneck.remote.path import path_of
from bottleneck.report.glyphs import add_lacking
from bottleneck.store.staging import staging_folder

KEYS = {"versions", "cores", "vector_units", "engines", "extras", "folders", "free_bytes", "notes"}


@pytest.fixture
def cpuinfo(monkeypatch):
    """Set the facts that the system tells of its processor."""
    return lambda facts: monkeypatch.setattr(processor, "_facts", lambda: facts)


def absent(monkeypatch, name):
    """Let a distribution be not installed."""
    real = installation.package_version
    monkeypatch.setattr(installation, "package_version", lambda asked: None if asked == name else real(asked))


def test_json_has_what_a_bug_report_needs_without_torch():
    code = "import sys; sys.argv = ['bottleneck', 'doctor', '--json']; from bottleneck.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
    line, torch = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = json.loads(line)
    assert set(found) >= KEYS
    assert found["versions"]["bottleneck"] == bottleneck.__version__
    assert {"python", "torch", "h5py", "numpy"} <= set(found["versions"])
    assert found["cores"] >= 1
    assert found["free_bytes"] > 0
    assert torch == "False"


def test_tables_fit_80_columns():
    result = CliRunner().invoke(group, ["doctor"])
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "onnxruntime" in result.stdout


def test_what_earlier_figures_lacked_is_no_note_of_a_command():
    add_lacking("개")
    result = CliRunner().invoke(group, ["doctor", "--json"])
    assert "characters-not-drawn" not in [note["code"] for note in json.loads(result.stdout)["notes"]]


def test_home_and_user_are_not_shown(monkeypatch, tmp_path):
    home = tmp_path / "홍길동"
    (home / "cache" / "graphs").mkdir(parents=True)
    (home / "cache" / "graphs" / "a.graph").write_bytes(bytes(1000))
    (home / "cache" / "graphs" / "link").symlink_to(home / "cache" / "graphs" / "a.graph")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("BOTTLENECK_CACHE", str(home / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(home / "src"), "/data/홍길동/src", f"{home}x"]))
    monkeypatch.setattr(installation.getpass, "getuser", lambda: "홍길동")
    found = bottleneck.doctor()
    graphs = found.folders[0]
    assert (graphs.path, graphs.files, graphs.bytes) == ("~/cache/graphs", 2, 1000)
    assert found.environment["PYTHONPATH"].split(os.pathsep)[:2] == ["~/src", "/data/USER/src"]
    assert str(home) + os.sep not in json.dumps(found.to_json(), default=str, ensure_ascii=False)


def test_what_a_stopped_run_left_of_a_cache_at_a_url_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path))
    folder = staging_folder(path_of("s3://bucket/x.h5"))
    folder.mkdir(parents=True)
    (folder / "x.h5").write_bytes(bytes(1000))
    (found,) = [each for each in bottleneck.doctor().folders if each.what == "caches to be uploaded"]
    assert (found.files, found.bytes) == (1, 1000)


def test_an_engine_says_why_it_is_not_there(monkeypatch):
    absent(monkeypatch, "onnxruntime")
    engine = installation._engine("onnxruntime", ("fp32", "int8"))
    assert (engine.found, engine.precisions) == (False, [])
    assert engine.reason == "not installed: pip install onnxruntime"


def test_an_engine_that_cannot_be_imported_says_why(monkeypatch):
    def broken(name):
        raise ImportError("libgomp.so.1: cannot open shared object file\nsecond line")

    monkeypatch.setattr(installation.importlib, "import_module", broken)
    engine = installation._engine("onnxruntime", ("fp32",))
    assert engine.reason == "cannot be imported: libgomp.so.1: cannot open shared object file"
    assert not engine.found


def test_other_installations_are_told(monkeypatch):
    monkeypatch.setattr(installation, "package_version", lambda name: "0.0.9")
    other = SimpleNamespace(version="0.0.9")
    notes = list(installation._notes(other, {"torch": None}, [], 1 << 20))
    assert [note.code for note in notes] == [
        "other-version-installed",
        "dependencies-missing",
        "namesake-installed",
        "disk-nearly-full",
    ]


@pytest.mark.parametrize("place", ["file", "file/below", "link"])
def test_a_cache_folder_that_cannot_be_written_is_told(monkeypatch, tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "folder")
    monkeypatch.setenv("BOTTLENECK_CACHE", str(tmp_path / place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    found = bottleneck.doctor()
    closed = {folder.what for folder in found.folders if not folder.writable}
    assert {"exported networks", "known networks"} <= closed
    assert "weights of torchvision" not in closed
    (note,) = [note for note in found.notes if note.code == "folders-not-writable"]
    assert str(tmp_path / place / "graphs") in note.message
    result = CliRunner().invoke(group, ["doctor"])
    assert "not writable" in " ".join(result.stdout.split())


def test_vector_units_of_other_systems(cpuinfo):
    cpuinfo({"machdep.cpu.features": "SSE4.2 AVX1.0 FMA", "machdep.cpu.leaf7_features": "AVX2"})
    assert processor.vector_units() == ["sse4_2", "avx", "avx2", "fma"]
    cpuinfo({"Features": "fp asimd asimddp"})
    assert processor.vector_units() == ["asimd", "asimddp"]
    cpuinfo({})
    assert processor.vector_units() is None
