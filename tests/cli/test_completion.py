"""Completion in bash, zsh and fish, as README describes it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bottleneck.samples import Target
from tests.helpers.caches import write_cache

CODE = "import sys; sys.argv[0] = 'bottleneck'; from bottleneck.cli.main import main; main()"


def completed(shell, words, typed):
    """What a shell receives for `bottleneck WORDS… TYPED<TAB>`."""
    line = " ".join(["bottleneck", *words, typed])
    environment = {
        **os.environ,
        "_BOTTLENECK_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": typed if shell == "fish" else str(len(words) + 1),
    }
    return subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_bash_completes_commands_options_and_choices():
    assert completed("bash", [], "ext") == "plain,extract\n"
    assert completed("bash", ["extract", "photos"], "--val") == "plain,--val-fraction\n"
    assert completed("bash", ["extract", "--engine"], "open") == "plain,openvino\n"
    assert completed("bash", ["extract"], "pho") == "file,pho\n"


@pytest.mark.parametrize(("shell", "separator"), [("zsh", "\n"), ("fish", "\t")])
def test_other_shells_show_the_help_beside_a_command(shell, separator):
    shown = completed(shell, [], "doct")
    assert f"doctor{separator}Show versions, processor" in shown


def test_nodes_of_the_cache_are_completed(tmp_path):
    X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    target = Target("label", "class", np.array([0, 1, 0, 1]), ("a", "b"))
    write_cache(tmp_path / "개미.h5", X, [target], more={"blocks.4": X})
    cache = str(tmp_path / "개미.h5")
    assert completed("bash", ["fit-head", cache, "--node"], "b") == "plain,blocks.4\nplain,bottleneck\n"
    assert completed("bash", ["fit-head", cache, "--node"], "blocks.4+bot") == "plain,blocks.4+bottleneck\n"
    assert completed("bash", ["similar", str(tmp_path / "absent.h5"), "--node"], "b").strip() == ""


# How each shell, with README's line LINE, tells what it completes `bottleneck trai` to.
SHELLS = {
    "bash": """
LINE
COMP_WORDS=(bottleneck trai) COMP_CWORD=1
compopt() { :; }
_bottleneck_completion bottleneck
echo "${COMPREPLY[@]}"
""",
    "zsh": """
autoload -Uz compinit && compinit -u -D
LINE
words=(bottleneck trai) CURRENT=2
_describe() { print -rl -- "${completions_with_descriptions[@]}"; }
_bottleneck_completion
""",
    "fish": """
LINE
complete -C "bottleneck trai"
""",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_line_of_the_readme_works_in_the_shell(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "bottleneck").write_text(f"#!{sys.executable}\n" + CODE.replace("; ", "\n"))
    (tmp_path / "bottleneck").chmod(0o755)
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    (line,) = [row for row in readme.splitlines() if f"{shell}_source" in row]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment["XDG_CONFIG_HOME"] = str(tmp_path)
    script = SHELLS[shell].replace("LINE", line.split("#")[0].strip())
    command = [shell, *(["-f"] if shell == "zsh" else []), "-c", script]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip().partition(":")[0].split()[0] == "train"
