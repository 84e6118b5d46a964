"""The package from outside: light to import, at peace with pandas, honest about its version."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bottleneck
from bottleneck.cli.main import COMMANDS
from bottleneck.samples import Target
from tests.helpers.caches import write_cache
from tests.helpers.commands import libraries_of


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_import_no_torch(arguments):
    code = f"""
import sys
sys.argv = ["bottleneck", *{arguments}]
from bottleneck.cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("heavy:", [name for name in ("torch", "sklearn", "matplotlib", "h5py") if name in sys.modules])
"""
    printed = python(code)
    assert "heavy: []" in printed
    assert "bottleneck" in printed


def test_import_is_light():
    loaded = python(
        "import sys, bottleneck; print(len([n for n in sys.modules if n.startswith('bottleneck')]))"
    )
    assert int(loaded) == 1


@pytest.mark.parametrize(
    "module", ["bottleneck.models.predict", "bottleneck.models.evaluate", "bottleneck.extraction.extract"]
)
def test_what_runs_a_head_imports_no_large_library_before_it_is_needed(module):
    heavy = ("torch", "sklearn", "scipy", "matplotlib", "pandas", "onnxruntime", "openvino")
    printed = python(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])")
    assert printed.strip() == "[]"


LARGE = ("torch", "torchvision", "timm", "sklearn", "scipy.stats", "scipy", "onnx", "onnxruntime", "openvino")
LARGE += ("pandas", "matplotlib", "jinja2", "h5py", "importlib.metadata")
NETWORKS = {"torch", "torchvision", "timm"}
BEFORE_WORK = {  # what each command imports before it works; others are imported where they are needed
    "demo": NETWORKS | {"sklearn", "scipy", "matplotlib", "jinja2", "h5py"},
    "train": NETWORKS | {"h5py"},
    "extract": {"h5py"},
    "fit-head": {"h5py"},
    "finetune": NETWORKS | {"h5py"},
    "scratch": NETWORKS | {"h5py"},
    "compare": NETWORKS | {"h5py"},
    "evaluate": {"h5py"},
    "predict": set(),
    "explain": NETWORKS | {"scipy", "matplotlib", "h5py"},
    "export": NETWORKS,
    "similar": {"scipy", "h5py"},
    "audit": {"scipy", "h5py"},
    "suggest": {"scipy", "h5py"},
    "drift": {"scipy", "h5py"},
    "advise": NETWORKS | {"scipy", "scipy.stats", "matplotlib", "h5py"},
    "rank": {"scipy", "h5py"},
    "transfer-study": NETWORKS | {"scipy", "scipy.stats", "matplotlib", "h5py"},
    "report": NETWORKS | {"sklearn", "scipy", "matplotlib", "jinja2", "h5py"},
    "inspect": NETWORKS | {"h5py"},
    "backbones": set(),
    "cache": {"h5py"},
    "doctor": {"importlib.metadata"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_these_large_libraries_before_it_works(command):
    found = libraries_of(command)
    loaded = {name for name in LARGE if any(each == name or each.startswith(name + ".") for each in found)}
    assert loaded == BEFORE_WORK[command]


def test_commands_on_heads_load_nothing_for_training_versions_or_masked_arrays(tmp_path):
    """Each of the three takes a twentieth of the time that `predict` needs for its imports."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    printed = python(f"""
import sys
before = set(sys.modules)
import bottleneck.cli.evaluate, bottleneck.cli.extract, bottleneck.cli.fit_head, bottleneck.cli.predict
import bottleneck.models.predict
from bottleneck.data.read_source import read_source
read_source({str(tmp_path)!r})
unwanted = ("bottleneck.training.config", "importlib.metadata", "numpy.ma")
print([name for name in unwanted if name in sys.modules and name not in before])
""")
    assert printed.strip() == "[]"


def test_fitting_heads_imports_no_scikit_learn():
    heavy = ("sklearn", "scipy", "pandas", "matplotlib", "torchvision", "timm")
    printed = python(
        f"import sys, bottleneck.fitting.fit_heads; print([name for name in {heavy} if name in sys.modules])"
    )
    assert printed.strip() == "[]"


def test_training_imports_no_scikit_learn():
    heavy = ("sklearn", "scipy", "pandas")
    printed = python(
        f"import sys, bottleneck.training.finetune; print([name for name in {heavy} if name in sys.modules])"
    )
    assert printed.strip() == "[]"


def test_a_small_fit_is_solved_and_written_without_a_large_library(tmp_path):
    X = np.random.default_rng(0).standard_normal((40, 10)).astype(np.float32)
    cache = write_cache(tmp_path / "c.h5", X, [Target("label", "class", np.arange(40) % 2, ("a", "b"))])
    heavy = ("torch", "sklearn", "scipy", "pandas", "matplotlib", "onnxruntime", "openvino")
    printed = python(f"""
import json, sys
sys.argv = ["bottleneck", "fit-head", {str(cache)!r}, "-o", {str(tmp_path / "heads")!r}, "--json"]
from bottleneck.cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in {heavy} if name in sys.modules])
""")
    found, loaded = printed.strip().splitlines()
    assert loaded == "[]"
    assert json.loads(found)["heads"][0]["library"] == "numpy"


def test_every_lazy_name_exists():
    for name in bottleneck.__all__:
        assert getattr(bottleneck, name) is not None


def test_type_checkers_see_the_names_that_are_imported_on_first_use():
    tree = ast.parse(Path(bottleneck.__file__).read_text(encoding="utf-8"))
    static = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("bottleneck.")
        for alias in node.names
    }
    assert static == bottleneck._MODULE_OF


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nansum"):
        _ = bottleneck.nansum


def test_pandas_beside_us_works_and_gives_one_warning():
    """pandas takes any module named `bottleneck` for PyData's; our 0.x version makes it leave us alone."""
    code = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import pandas
    total = pandas.Series([1.0, float("nan"), 2.0]).sum()
print(json.dumps([total, [[w.category.__name__, str(w.message)] for w in caught]]))
"""
    total, caught = json.loads(python(code))
    assert total == 3.0
    assert [category for category, _ in caught] == ["UserWarning"]
    assert "bottleneck" in caught[0][1]


def test_wrong_usage_exits_2_and_errors_exit_1(tmp_path):
    usage = subprocess.run([sys.executable, "-m", "bottleneck", "extract"], capture_output=True, text=True)
    assert usage.returncode == 2
    failed = subprocess.run(
        [sys.executable, "-m", "bottleneck", "extract", str(tmp_path / "absent"), "--json"],
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("Error: ")
    assert len(failed.stderr.strip().splitlines()) == 1
