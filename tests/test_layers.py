"""Imports point only downward, so that a reader knows where a thing can and cannot come from."""

import ast
from pathlib import Path

import pytest

import bottleneck

ROOT = Path(bottleneck.__file__).parent

# From the top down; a room may import what stands on a later line, and on its own line only itself.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("demo", "installation"),
    ("report",),
    ("studies",),
    ("trials",),
    ("training",),
    ("models",),
    ("fitting", "extraction"),
    ("backbones",),
    ("data", "store", "heads", "engines"),
    ("remote",),
    ("samples",),
    ("files", "records"),
    ("threads", "processor", "progress", "names", "errors", "versions"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: Path) -> list[str]:
    """Modules that a file names in any import, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module)
    return found


def room_of(module: str) -> str:
    """`store` for bottleneck.store.reader, `fitting` for bottleneck.fitting."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


MODULES = {
    ".".join(("bottleneck", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
OURS = {
    name: [module for module in imports(path) if module.split(".")[0] == "bottleneck"]
    for name, path in MODULES.items()
} | {"bottleneck": []}  # its imports are for type checkers; tests/test_package.py holds that it makes none


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room_of(name)))
def test_imports_point_downward(name):
    others = [module for module in OURS[name] if room_of(module) not in ("", room_of(name))]
    assert [module for module in others if FLOOR_OF[room_of(module)] <= FLOOR_OF[room_of(name)]] == []


def test_no_module_imports_itself_by_way_of_others():
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name) :], name))
        if name not in done:
            for module in OURS.get(name, ()):
                visit(module, (*way, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_the_store_knows_no_torch():
    for path in (path for name, path in MODULES.items() if room_of(name) == "store"):
        assert not {"torch", "torchvision"} & {module.split(".")[0] for module in imports(path)}, path
