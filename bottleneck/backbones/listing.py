"""List the networks that can be had, without importing the libraries that publish them.

These libraries take seconds to import, and a network is built to learn the width of its features. What was
found is kept in the user's cache folder for the installed versions; a later list is read from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from bottleneck import __version__
from bottleneck.backbones.listed import DAMAGED, TIMM, Listed
from bottleneck.errors import BackboneError, WriteError
from bottleneck.files import user_cache, write_whole
from bottleneck.versions import package_version

# Feature width and timm's parameter counts need a built network, which takes up to a second each.
MOST_OPENED = 24


@dataclass
class _Known:
    """rows : of all families. timm : architectures that timm has. sizes : [features, parameters] by name."""

    rows: list[Listed]
    timm: int
    sizes: dict[str, list[int]] = field(default_factory=dict)


def available(pattern: str | None = None) -> list[Listed]:
    """Backbones whose name contains `pattern` or matches it as a wildcard; without one, all but timm's.

    Raises
    ------
    BackboneError
        If nothing matches.
    """
    known = _known()
    rows = [row for row in known.rows if _matches(row.name, pattern)]
    if not rows:
        raise BackboneError(f"No backbone matches {pattern!r}.", "Try a shorter part of the name, or timm/*.")
    names = dict.fromkeys(row.name for row in rows)
    if len(names) > MOST_OPENED:
        return rows
    if missing := names.keys() - known.sizes:
        known.sizes |= _sizes(missing)
        _store(known)
    return [_with_sizes(row, *known.sizes[row.name]) for row in rows]


def timm_count() -> int:
    """Number of architectures that timm has."""
    return _known().timm


def _matches(name: str, pattern: str | None) -> bool:
    if not pattern:
        return not name.startswith(TIMM)
    return pattern in name or fnmatch(name, pattern)


def _with_sizes(row: Listed, features: int, parameters: int) -> Listed:
    return replace(row, features=features, parameters=row.parameters or parameters)


def _sizes(names: Iterable[str]) -> dict[str, list[int]]:
    """Feature width and number of parameters of networks, which are built for it without their weights."""
    from bottleneck.backbones.registry import outline

    opened = {name: outline(name) for name in sorted(names)}
    return {
        name: [backbone.num_features, sum(p.numel() for p in backbone.module.parameters())]
        for name, backbone in opened.items()
    }


def _known() -> _Known:
    """What the installed versions offer: as stored, else from the libraries, which is then stored."""
    with suppress(OSError, *DAMAGED):  # absent, or damaged: made again
        record = json.loads(_file().read_bytes())
        sizes = {name: [int(width), int(count)] for name, (width, count) in record["sizes"].items()}
        return _Known([Listed(**row) for row in record["rows"]], int(record["timm"]), sizes)
    from bottleneck.backbones.registry import FAMILIES

    rows = [row for family in FAMILIES for row in family.listed()]
    names = [name for family in FAMILIES for name in family.names()]
    known = _Known(rows, sum(name.startswith(TIMM) for name in names))
    _store(known)
    return known


def _store(known: _Known) -> None:
    with suppress(OSError, WriteError):  # then the next list is made again
        write_whole(_file(), json.dumps(asdict(known)).encode())


def _file() -> Path:
    """The file of a list: with another version of a library the list is another one."""
    versions = [__version__, *(f"{name} {package_version(name)}" for name in ("torchvision", "timm"))]
    return user_cache() / "listings" / f"{hashlib.sha256(json.dumps(versions).encode()).hexdigest()}.json"
