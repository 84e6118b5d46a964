"""What the paths of a report name: caches, heads, models, and results of studies, with the files beside them.

.h5, .h5.parts          a cache
.safetensors            a head or a model; beside it the history of its training, what `train` tried
.json                   the result of a command with --json: audit, advise, compare, fit-head, train, extract
.png                    a picture that another command drew
a folder                of `compare` (runs.json), of `transfer-study` (study.json), or all heads in it
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.errors import ArtifactError, BottleneckError, Note, first_line
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.names import HEADS_FOLDER, is_cache
from bottleneck.records import Check, are_objects, is_number, is_object, is_text, require_fields
from bottleneck.store.layout import PARTS, cache_name, companion_path, statistics_path
from bottleneck.store.reader import FeatureCache

HEADS = ".safetensors"
MOST_JSON, MOST_TABLE = 256 << 20, 16 << 20  # bytes
DAMAGED = (OSError, ValueError, KeyError, TypeError, csv.Error)  # what reading a table may raise
SHOTS = "--shot-curve.csv"


def _any(value: Any) -> bool:
    return True


def _are_leaks(value: Any) -> bool:
    """Return whether the pairs of an audit have what is shown of them."""
    items: Any = value.get("items", []) if is_object(value) else None
    return are_objects(items) and all(
        isinstance(item.get("images", []), list)
        and all(map(is_text, item.get("images", [])))
        and isinstance(item.get("splits", []), list)
        and (bool(item.get("exact")) or is_number(item.get("cosine")))
        for item in items
    )


# Keys that tell which command printed a JSON object, and the types of their values.
RESULTS: dict[str, dict[str, Check]] = {
    "audit": {"label_issues": _any, "duplicates": _any, "leaks": _are_leaks},
    "advise": {"scenario": _any, "recommendation": _any},
    "compare": {
        "runs": _any,
        "rows": lambda rows: are_objects(rows) and all(is_object(row.get("accuracy", {})) for row in rows),
        "chosen": lambda value: value is None or is_object(value),
    },
    "train": {"candidates": are_objects, "chosen": _any, "rule": _any},
    "finetune": {"epochs": are_objects, "best_epoch": _any, "kept": _any},
    "transfer-study": {"curves": _any, "effects": _any, "layers": _any},
    "fit-head": {"heads": _any},
    "extract": {
        "cache": _any,
        "data": lambda data: is_object(data) and is_object(data.get("ignored") or {}),
        "computed": _any,
    },
}


@dataclass(frozen=True)
class Fitted:
    """A head or model file. history : of its training. candidates : what `train` tried."""

    path: Path
    head: HeadArtifact
    history: dict[str, Any] = field(default_factory=dict)
    candidates: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_network(self) -> bool:
        """Whether it contains a trained network, or what `train` chose."""
        return bool(self.candidates) or "finetuned" in self.head.settings or not self.head.node_fingerprint

    def score(self) -> float:
        """Return the score that chose it: of cross-validation, else of val."""
        for name in ("cv", "val"):
            metrics = self.head.metrics.get(name, {})
            value = metrics.get("accuracy", metrics.get("r2"))
            if is_number(value):
                return float(value)
        return -np.inf


@dataclass
class Inputs:
    """Everything that the paths name. results : by command, the JSON objects. shots : k-shot curves."""

    caches: list[FeatureCache] = field(default_factory=list)
    fitted: list[Fitted] = field(default_factory=list)
    results: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    shots: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    given: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Close the caches."""
        for cache in self.caches:
            cache.close()

    def result(self, command: str) -> dict[str, Any] | None:
        """Return the last result of a command."""
        return self.results[command][-1] if self.results.get(command) else None


def read_inputs(paths: Sequence[str | os.PathLike[str]]) -> Inputs:
    """Open what the paths name. Raises BottleneckError for a path that is none of it, or is damaged."""
    inputs, seen = Inputs(given=[os.fspath(path) for path in paths]), set[Path]()
    try:
        for path in _main_first([Path(path) for path in paths]):
            _add(inputs, path, seen)
    except BaseException:
        inputs.close()
        raise
    return inputs


def _main_first(paths: Sequence[Path]) -> list[Path]:
    """Return paths in their order, those of files that may belong to a cache after it.

    Sorted names, as a shell gives them, have NAME--NODE.h5 before NAME.h5.
    """
    mains = [str(path.with_name(f"{cache_name(path)}--")) for path in paths if is_cache(path)]
    return sorted(paths, key=lambda path: any(str(path).startswith(main) for main in mains))


def _add(inputs: Inputs, path: Path, seen: set[Path]) -> None:
    where = path.resolve()
    if where in seen:
        return
    seen.add(where)
    suffix = path.suffix.lower()
    if is_cache(path):
        inputs.caches.append(cache := FeatureCache(path))
        maps = [companion_path(_main(path), node) for node in cache.nodes.values() if node.is_map]
        # They belong to the cache.
        seen.update(each.resolve() for each in (*maps, statistics_path(_main(path))))
    elif not path.exists():
        raise BottleneckError(f"There is no file or folder {path}.", "Name a cache, a head or a model.")
    elif path.is_dir():
        _add_folder(inputs, path, seen)
    elif suffix == HEADS:
        _add_head(inputs, path)
        if curve := _curve_beside(path):
            _add(inputs, curve, seen)
    elif suffix == ".json":
        _add_result(inputs, path)
    elif path.name.endswith(SHOTS):
        inputs.shots += read_shots(path)
    elif suffix == ".png":
        inputs.pictures.append(path)
    else:
        raise BottleneckError(
            f"{path} is nothing that a report shows.",
            "Name caches (.h5), heads and models (.safetensors), results (.json), pictures (.png), folders.",
        )


def _add_folder(inputs: Inputs, folder: Path, seen: set[Path]) -> None:
    """Add a comparison, a study, or the heads and caches in the folder."""
    if (folder / "study.json").is_file():
        inputs.results.setdefault("transfer-study", []).append(_study(folder))
        return
    if (folder / "runs.json").is_file():
        inputs.results.setdefault("compare", []).append(_comparison(folder))
        return
    inside = _main_first([path for path in sorted(folder.iterdir()) if _is_shown(path)])
    if not inside:
        raise BottleneckError(
            f"{folder} contains no head, model, cache, comparison or study.",
            f"Heads are in {HEADS_FOLDER}/ by default.",
        )
    for path in inside:
        _add(inputs, path, seen)


def _main(cache: Path) -> Path:
    """Return the path of a cache's main file, which may be that of its parts folder."""
    return cache.with_name(cache.name.removesuffix(PARTS))


def _is_shown(path: Path) -> bool:
    """Return whether a path within a folder is a head, a model or a cache; of a cache with a file, that."""
    unfinished = _main(path) != path
    return path.suffix.lower() == HEADS or (is_cache(path) and not (unfinished and _main(path).exists()))


def _add_head(inputs: Inputs, path: Path) -> None:
    history = _optional(inputs, path.with_suffix(".history.json"), _is_history)
    candidates = _optional(inputs, path.with_suffix(".candidates.json"), are_objects)
    inputs.fitted.append(Fitted(path, load_head(path), history or {}, candidates or []))


def _curve_beside(head: Path) -> Path | None:
    """Return CACHE--shot-curve.csv beside CACHE--TARGET--NODE--HEAD.safetensors, where there is one.

    The name of a cache may have a "--".
    """
    curves = [
        each
        for each in head.parent.glob(f"*{SHOTS}")
        if head.stem.startswith(f"{each.name.removesuffix(SHOTS)}--") and each.is_file()
    ]
    return max(curves, key=lambda each: len(each.name), default=None)


def _is_history(value: Any) -> bool:
    return (
        is_object(value) and are_objects(value.get("epochs", [])) and is_object(value.get("settings") or {})
    )


def _optional(inputs: Inputs, path: Path, accepts: Check) -> Any:
    """Return the JSON of a file beside a head; None where there is none, or with a note a damaged one."""
    if not path.is_file():
        return None
    try:
        value = read_json(path)
        problem = "" if accepts(value) else "it has another form than this command reads."
    except BottleneckError as error:
        problem = error.message
    if not problem:
        return value
    text = f"{path.name} beside the model is damaged, so that what it has is not shown: {problem}"
    inputs.notes.append(Note("file-beside-damaged", text, details={"path": str(path)}))
    return None


def read_json(path: Path) -> Any:
    """Return the value of a JSON file. Raises ArtifactError where it is none, or too large."""
    try:
        if path.stat().st_size > MOST_JSON:
            raise ArtifactError(f"{path} has more than {MOST_JSON >> 20} MiB.")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is no JSON file: {first_line(error)}.") from None


def _add_result(inputs: Inputs, path: Path) -> None:
    value = read_json(path)
    keys = value.keys() if isinstance(value, dict) else set()
    command = next((name for name, needed in RESULTS.items() if needed.keys() <= keys), None)
    if command is None:
        raise BottleneckError(
            f"{path} is not the result of a command that a report shows.",
            f"It shows the --json of {', '.join(RESULTS)}.",
        )
    require_fields(value, RESULTS[command], f"{path}, a result of {command},", others=True)
    inputs.results.setdefault(command, []).append(value)


def read_shots(path: Path) -> list[dict[str, Any]]:
    """Return the k-shot curves of a table that `fit-head --shots` wrote."""
    try:
        curves = []
        for (target, node), points in groupby(_rows_of(path), key=lambda row: (row["target"], row["node"])):
            columns = {name: [] for name in ("shots", "mean", "low", "high")}  # type: dict[str, list[float]]
            for point in points:
                for name, values in columns.items():
                    values.append(float(point[name]))
            curves.append({"target": target, "node": node, "path": str(path), **columns})
        return curves
    except DAMAGED as error:
        raise ArtifactError(f"{path} is no table of a k-shot curve: {first_line(error)}.") from None


def _rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV file. Raises one of `DAMAGED` where it is none, or too large."""
    if path.stat().st_size > MOST_TABLE:
        raise ValueError(f"it has more than {MOST_TABLE >> 20} MiB")
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _comparison(folder: Path) -> dict[str, Any]:
    """Return the rows of the runs that a comparison has done so far."""
    from bottleneck.studies.compare.compare import choose_row, summarise
    from bottleneck.studies.compare.stored_runs import RUNS, stored_runs

    runs = stored_runs(folder)
    try:
        shown = "test" if all("test" in run.accuracy for run in runs) else "val"
        rows = summarise(runs, shown, max(run.n for run in runs))
        judged = all("val" in row.evidence for row in rows)  # else it is of an earlier version
        chosen = choose_row(rows)[0].to_json() if judged else None
        return {"rows": [row.to_json() for row in rows], "chosen": chosen, "measured_on": shown}
    except DAMAGED as error:
        raise ArtifactError(f"{folder / RUNS} is damaged: {first_line(error)}.") from None


def _study(folder: Path) -> dict[str, Any]:
    """Return accuracy by kind and number of layers of a study's runs."""
    found: dict[str, dict[int, list[float]]] = {}
    try:
        for row in _rows_of(folder / "runs.csv"):
            if float(row.get("share") or 1) == 1:
                accuracies = found.setdefault(row["kind"], {}).setdefault(int(row["n"]), [])
                accuracies.append(float(row["accuracy"]))
    except DAMAGED as error:
        raise ArtifactError(f"{folder} has no readable runs.csv: {first_line(error)}.") from None
    curves = {kind: [_point(n, each) for n, each in sorted(by_n.items())] for kind, by_n in found.items()}
    return {"curves": curves, "folder": str(folder), "picture": str(folder / "figure.png")}


def _point(n: int, accuracies: Iterable[float]) -> dict[str, Any]:
    values = list(accuracies)
    return {"n": n, "mean": float(np.mean(values)), "values": values}


def study_curves(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the curves of a study's result that are lists of points with n and mean."""
    curves = result.get("curves")
    kinds = curves.items() if isinstance(curves, dict) else ()
    return {
        str(kind): [point for point in points if is_number(point.get("n")) and is_number(point.get("mean"))]
        for kind, points in kinds
        if are_objects(points)
    }
