"""The curves that heads draw: accuracy over the nodes of a network, and over images per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.fitting import FitResult
from bottleneck.report.curves import probe_curve, shot_curve


def head_curves(result: FitResult) -> dict[str, str]:
    """Draw each curve of `result` beside its table; paths by name."""
    drawn: dict[str, str] = {}
    for name, draw in (("probe_curve", _probe), ("shot_curve", _shots)):
        table = result.files.get(f"{name}_table")
        if table is not None:
            path = Path(table).with_suffix(".png")
            stem = path.stem.removesuffix("--" + name.replace("_", "-"))
            drawn[name] = str(draw(result.curves, path, stem))
    return drawn


def _probe(curves: dict[str, Any], path: Path, stem: str) -> Path:
    probe = curves["probe"]
    return probe_curve(
        probe["nodes"], probe["series"], path, probe["intervals"], title=f"{stem}: one head per node"
    )


def _shots(curves: dict[str, Any], path: Path, stem: str) -> Path:
    shots = curves["shots"]
    lines = {f"{record['target']}, {record['node']}": np.array(record["accuracy"]) for record in shots}
    return shot_curve(shots[0]["shots"], lines, path, title=f"{stem}: accuracy on samples not drawn")
