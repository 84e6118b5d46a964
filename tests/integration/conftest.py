"""Whole commands on small generated photographs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bottleneck.cli.main import main
from tests.helpers.photographs import write_photographs


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., SimpleNamespace]:
    """Run a command line in this process: `code`, `out`, `err`, and `json` where stdout is one object."""

    def call(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["bottleneck", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        parsed = json.loads(out) if "--json" in arguments and stop.value.code == 0 else None
        return SimpleNamespace(code=stop.value.code, out=out, err=err, json=parsed)

    return call


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Three classes of ten images, one class with a name beyond Latin."""
    return write_photographs(tmp_path / "photos")


@pytest.fixture(scope="session")
def fitted(tmp_path_factory) -> SimpleNamespace:
    """A source with a validation split, its cache and a head."""
    from bottleneck import extract, fit_heads

    folder = tmp_path_factory.mktemp("fitted")
    source = write_photographs(folder / "photos")
    cache = folder / "photos.h5"
    extract(source, cache, val_fraction=0.3)
    head = fit_heads(cache, output=folder / "heads").heads[0]["path"]
    return SimpleNamespace(source=source, cache=cache, head=head)
