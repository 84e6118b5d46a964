"""The wheel that a release would publish works outside of the source."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_the_wheel_runs_the_demo_outside_of_the_source(tmp_path):
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
    code = "import bottleneck; print(bottleneck.__file__)"
    run = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert run.stdout.startswith(ours)
    subprocess.run([python, "-m", "bottleneck", "demo"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "bottleneck-demo" / "digits.h5").is_file()
