"""`bottleneck doctor`: what a bug report needs to know of this installation and machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bottleneck.cli.terminal import Command, Terminal, shows_results, table

if TYPE_CHECKING:
    from bottleneck.installation import Folder


@click.command(cls=Command)
@shows_results
def command(terminal: Terminal) -> None:
    """Show versions, processor, engines, extras, folders and disk space, for a bug report.

    Nothing is written or sent. The home folder is shown as ~.
    """
    from bottleneck.installation import doctor

    found = doctor()
    machine = {
        "processor": found.processor,
        "cores": f"{found.cores} of {found.machine_cores}",
        "memory": _size(found.memory_bytes),
        "vector units": "unknown" if found.vector_units is None else ", ".join(found.vector_units) or "none",
        "GPU": "perhaps: torch looks for it" if found.accelerator else "none",
        "free disk space": _size(found.free_bytes),
    }
    engines = [
        (each.name, each.version, ", ".join(each.precisions) or "none", each.reason) for each in found.engines
    ]
    extras = [(each.name, _state(each.missing)) for each in found.extras]
    folders = [(each.what, each.path, _folder_size(each)) for each in found.folders]
    shown = [
        table("Versions", ("what", "version"), found.versions.items()),
        table("Machine", ("what", "found"), machine.items()),
        table("Engines on this processor", ("engine", "version", "precisions", "why not"), engines),
        table("Extras (not imported)", ("extra", "state"), extras),
        table("Folders", ("of", "path", "size"), folders),
    ]
    if found.environment:
        shown.append(table("Environment", ("variable", "value"), found.environment.items()))
    terminal.result(found.to_json(), *shown)


def _state(missing: list[str]) -> str:
    return f"without {', '.join(missing)}" if missing else "installed"


def _folder_size(folder: Folder) -> str:
    size = ("" if folder.complete else "> ") + _size(folder.bytes) if folder.exists else "absent"
    return size if folder.writable else f"{size}, not writable"


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
