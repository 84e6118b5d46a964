"""Pages that the site takes from elsewhere: commands from click, public names, the format of the cache.

MkDocs calls `on_files` before it builds. Nothing is written to the source folder.
"""

import inspect
import sys
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
# Weight of pages in the search: those that explain come before those that list.
BOOST = {"index.md": 2.5, "concepts.md": 4, "tasks.md": 2, "versions.md": 6}
BOOST |= {"python.md": 0.6, "measured.md": 0.25, "DECISIONS.md": 0.1, "comparison.md": 0.5}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "commands.md": commands_page(),
        "python.md": python_page(),
        "formats/cache.md": (ROOT / "cache" / "FORMAT.md").read_text("utf-8"),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Give the page its weight in the search."""
    page.meta["search"] = {"boost": BOOST.get(page.file.src_uri, 1)}


def python_page() -> str:
    """Return one section for each public name, which mkdocstrings fills from its docstring."""
    import bottleneck

    lines = [
        "# Python",
        "Every public name. Each is imported as `from bottleneck import NAME`, such as `load_model`, "
        "`predict` or `train`. Commands and functions have the same names and defaults.",
        "## A model in Python: load_model, then predict",
        '```python\nfrom bottleneck import load_model\n\nmodel = load_model("models/photos.safetensors")\n'
        'print(model.predict("new.jpg"))\n```',
    ]
    lines += [f"::: {module}.{name}" for name, module in sorted(bottleneck._MODULE_OF.items())]
    return "\n\n".join(lines)


def commands_page() -> str:
    """Return one section for each command, with its arguments, options and defaults."""
    from bottleneck.cli.main import group

    parts = ["# Commands", "Written from the program itself. Every command takes `--json`."]
    for name, command in leaves(group):
        context = click.Context(command, info_name=f"bottleneck {name}")
        usage = f"bottleneck {name} " + " ".join(command.collect_usage_pieces(context))
        parts += [f"## {name}", f"```text\n{usage}\n```", inspect.cleandoc(command.help or "")]
        rows = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        table = ["| option | meaning |", "|---|---|"]
        table += [f"| `{cell(flags)}` | {cell(text)} |" for flags, text in filter(None, rows)]
        parts.append("\n".join(table))
    return "\n\n".join(parts)


def leaves(group: click.Group, before: str = "") -> list[tuple[str, click.Command]]:
    """Return (name, command) of all commands below a group, in its order."""
    found: list[tuple[str, click.Command]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = isinstance(command, click.Group)
        found += leaves(command, f"{before}{name} ") if inner else [(before + name, command)]
    return found


def cell(text: str) -> str:
    """Return text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
