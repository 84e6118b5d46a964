"""What each command imports before it works, read from the source: nothing is imported."""

import ast
from functools import cache
from itertools import takewhile
from pathlib import Path

import bottleneck
from bottleneck.cli.main import COMMANDS

ROOT = Path(bottleneck.__file__).parents[1]


def command_modules(command: str) -> tuple[str, ...]:
    """The command's module of `bottleneck.cli`, and what its functions import before their first result."""
    module = COMMANDS[command][0]
    found = [module]
    for node in ast.parse(_file(module).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            before = takewhile(lambda step: not isinstance(step, ast.Assign | ast.With), node.body)
            found += [step.module for step in before if isinstance(step, ast.ImportFrom) and step.module]
    return tuple(dict.fromkeys(found))


def libraries_of(command: str) -> set[str]:
    """The libraries outside of the package that are imported with `command_modules`.

    Imports within functions and for type checkers do not count, nor what those libraries import themselves.
    """
    found, seen, waiting = set[str](), set[str](), [*command_modules(command)]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        names = _imports_of(module)
        ours = {name for name in names if name.split(".")[0] == "bottleneck"}
        waiting += [name for name in ours if _file(name).exists()]
        found |= names - ours
    return found


@cache
def _imports_of(module: str) -> set[str]:
    return _imported(ast.parse(_file(module).read_text("utf-8")).body)


def _imported(body: list[ast.stmt]) -> set[str]:
    """Names of modules, and of what is imported from them, which may be modules too."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            names |= _imported(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            names |= _imported(node.body) | _imported(getattr(node, "orelse", []))
    return names


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
