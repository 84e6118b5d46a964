"""What a release would publish: the wheel works outside of the source, and both archives are complete."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CAUGHT = {"capture_output": True, "text": True}


@pytest.mark.long
def test_the_wheel_runs_the_demo_and_the_tour_outside_of_the_source(tmp_path):
    build = ["pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, "-m", *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / ("Scripts" if os.name == "nt" else "bin") / "python"
    ours = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # Dependencies come from the environment of the tests; the wheel's own folder stands before it.
    Path(ours, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", str(wheel)]
    subprocess.run(install, check=True, env=environment)
    pages = pages_and_tests(tmp_path / "pages")
    code = "import bottleneck; print(bottleneck.__file__)"
    run = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd=pages, env=environment, check=True
    )
    assert run.stdout.startswith(ours)
    done = subprocess.run(
        [python, "-m", "bottleneck", "demo"], cwd=tmp_path, env=environment, check=True, **CAUGHT
    )
    report = done.stdout.strip().splitlines()[-1].removeprefix("Report: ")
    assert Path(report) == tmp_path / "bottleneck-demo" / "report.html"
    assert Path(report).is_file()
    tour = ["pytest", "-q", "-p", "no:cacheprovider", "--long", "-k", "README", "tests/test_walkthrough.py"]
    done = subprocess.run([python, "-m", *tour], cwd=pages, env=environment, **CAUGHT)
    assert done.returncode == 0, done.stdout[-4000:]


def pages_and_tests(folder):
    """A folder with the pages for users and the tests, but not the package."""
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in ("README.md", "README.ko.md", "CONTRIBUTING.md", "setup.cfg"):
        shutil.copy(ROOT / name, folder / name)
    return folder


BUILD = """
from setuptools import build_meta
build_meta.build_sdist("dist")
build_meta.build_wheel("dist")
"""


def test_the_archives_of_a_release_are_complete(tmp_path):
    copy = tmp_path / "source"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("bottleneck", "tests", "docs", "examples"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    for path in [path for path in ROOT.iterdir() if path.is_file()] + [ROOT / "cache/FORMAT.md"]:
        (copy / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, copy / path.relative_to(ROOT))
    subprocess.run([sys.executable, "-c", BUILD], cwd=copy, check=True, capture_output=True)
    (sdist,), (wheel,) = copy.glob("dist/*.tar.gz"), copy.glob("dist/*.whl")
    with tarfile.open(sdist) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    wanted = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    made = ("build/", "dist/", "bottleneck_features.egg-info/")
    assert {name for name in wanted - packed if not name.startswith((*made, "."))} == set()
    with zipfile.ZipFile(wheel) as file:
        installed = {name for name in file.namelist() if ".dist-info/" not in name}
    assert installed == {name for name in wanted if name.startswith("bottleneck/")}
