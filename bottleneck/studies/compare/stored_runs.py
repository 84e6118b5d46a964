"""The trials of a comparison, and their results in a folder: `runs.json` and, of each run, its evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bottleneck.errors import ArtifactError, first_line
from bottleneck.files import write_whole
from bottleneck.fitting.head_files import file_name
from bottleneck.names import SPLITS
from bottleneck.trials.evidence import Evidence
from bottleneck.trials.task import Records

RUNS = "runs.json"


@dataclass(frozen=True)
class Trial:
    """A run to do. unfreeze : blocks, or "scratch", where `depth` is that of the small CNN."""

    unfreeze: int | str
    init: str
    shots: int | str
    seed: int
    depth: int | None = None


@dataclass(frozen=True)
class CompareRun:
    """A run that is done. accuracy : by split, of its best epoch on val; n : samples trained on.

    stopped : "done", "early" or "diverged"; empty for a head.
    unread : what was left out because images could not be read; empty without such images.
    blocks : that are trained, 0 of a head.
    evidence : how val and test were judged, sample by sample.
    """

    unfreeze: int | str
    init: str
    shots: int | str
    seed: int
    depth: int | None
    accuracy: dict[str, float]
    n: int
    epochs: int
    seconds: float
    stopped: str = ""
    unread: str = ""
    blocks: int = 0
    evidence: Mapping[str, Evidence] = field(default_factory=dict, compare=False, repr=False)

    @property
    def trial(self) -> Trial:
        """What was done."""
        return Trial(**{item.name: getattr(self, item.name) for item in fields(Trial)})

    def to_json(self) -> dict[str, Any]:
        """Return everything but the evidence."""
        return {name: value for name, value in vars(self).items() if name != "evidence"}


def store_run(folder: Path, settings: str, run: CompareRun, runs: Iterable[CompareRun]) -> None:
    """Store how a run judged the samples, and the list of all `runs`. settings : their fingerprint."""
    arrays = {
        f"{split} {name}": values
        for split, each in run.evidence.items()
        for name, values in (("index", each.keys.astype(int)), ("score", each.score), ("loss", each.loss))
    }
    _records(folder).write(_record_name(run.trial), settings, {}, arrays)
    values = {"fingerprint": settings, "runs": [each.to_json() for each in runs]}
    write_whole(folder / RUNS, json.dumps(values, ensure_ascii=False, indent=1).encode())


def stored_runs(folder: Path, settings: str | None = None) -> list[CompareRun]:
    """Return the runs that are stored in a folder, with the evidence of those that have any.

    settings : fingerprint of the settings; runs under others are left out. None takes those that are there.
    """
    try:
        stored = json.loads((folder / RUNS).read_bytes())
        if settings not in (None, stored["fingerprint"]):
            return []
        runs = [CompareRun(**values) for values in stored["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if settings is not None:
            return []
        raise ArtifactError(f"{folder / RUNS} is damaged: {first_line(error)}.") from None
    return [replace(run, evidence=_evidence(folder, run.trial, stored["fingerprint"])) for run in runs]


def _evidence(folder: Path, trial: Trial, settings: str) -> dict[str, Evidence]:
    """Return how a stored run judged the samples, by split; none of a run of an earlier version."""
    found = _records(folder).read(_record_name(trial), settings)
    arrays = {} if found is None else found[1]
    return {
        split: Evidence(index.astype(str), arrays[f"{split} score"], arrays[f"{split} loss"])
        for split in SPLITS
        if (index := arrays.get(f"{split} index")) is not None
    }


def _records(folder: Path) -> Records:
    return Records(folder / "evidence")


def _record_name(trial: Trial) -> str:
    return file_name(*map(str, asdict(trial).values()))
