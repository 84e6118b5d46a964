"""How transferable are the features of a network's layers, on the user's own images? (Yosinski et al. 2014)

    images ──► halves A, B ──► base networks ──► for n = 1 … L−1: BnB, BnB+, AnB, AnB+, random ──► effects

A study lives in a folder. Every run is kept there as it ends; a study that was stopped goes on with the next
run, and asking for more seeds adds theirs.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from bottleneck.errors import BottleneckError
from bottleneck.files import write_whole
from bottleneck.progress import SILENT, Reporter
from bottleneck.store.spec import canonical_json, require_equal
from bottleneck.studies.transfer_study import reference
from bottleneck.studies.transfer_study.effects import (
    Curves,
    Effect,
    complaints,
    find_effects,
    may_follow,
    require_sound,
    sound,
)
from bottleneck.studies.transfer_study.images import StudyImages, read_images
from bottleneck.studies.transfer_study.networks import build_network
from bottleneck.studies.transfer_study.runs import Runner, RunResult
from bottleneck.studies.transfer_study.study_config import Run, StudyConfig, class_halves, plan_runs

Halves = tuple[Sequence[str], Sequence[str]]
CONFIG_FIELDS = frozenset(field.name for field in fields(StudyConfig))


@dataclass(frozen=True)
class TransferStudy:
    """A finished study.

    layers : names of the network's L layers. results : every run that was trained, left out or not.
    trained : runs of this call. failed : images that were left out.
    """

    config: StudyConfig
    layers: tuple[str, ...]
    class_names: tuple[str, ...]
    results: list[RunResult]
    folder: Path
    trained: int
    failed: int
    seconds: float

    @property
    def curves(self) -> Curves:
        """Accuracies by kind and n, of the runs that count."""
        return Curves(sound(self.results))

    @property
    def effects(self) -> list[Effect]:
        """What was looked for."""
        return find_effects(self.curves)

    @property
    def text(self) -> list[str]:
        """One sentence for every effect that was looked for, and for every run that went wrong."""
        return [*(effect.verdict for effect in self.effects), *complaints(self.results)]

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck transfer-study --json`, less the figure."""
        effects = [
            {"key": effect.key, **effect.estimate.to_json(), "n": effect.where, "verdict": effect.verdict}
            for effect in self.effects
        ]
        return {
            **self.curves.to_json(),
            "effects": effects,
            "complaints": complaints(self.results),
            "layers": self.layers,
            "config": asdict(self.config),
            "classes": len(self.class_names),
            "runs": len(self.results),
            "trained": self.trained,
            "failed": self.failed,
            "csv": str(self.folder / "runs.csv"),
            "reference": {"base": reference.BASE, "curves": reference.CURVES},
            "seconds": self.seconds,
        }


def transfer_study(
    source: str | Path,
    output: str | Path | None = None,
    *,
    halves: Halves | None = None,
    reporter: Reporter = SILENT,
    **options: Any,
) -> TransferStudy:
    """Run, or go on with, the study of the images of `source`.

    Parameters
    ----------
    source : path or URL
        Images with classes, as `read_source` takes them.
    output : path, optional
        The study's folder; `studies/SOURCE` below the current one by default.
    halves : two lists of class names, optional
        A and B, for every seed. Drawn by default, anew for each seed.
    options
        Fields of `StudyConfig`, and keyword arguments of `read_source`.

    Raises
    ------
    SourceError
        Fewer than four classes, or a class with too few images.
    BackboneError
        The network has too few layers.
    FitError
        In no seed have the base networks learnt anything.
    FingerprintError
        The folder holds a study of other images or settings.
    """
    started = time.perf_counter()
    config = StudyConfig(**{name: options.pop(name) for name in CONFIG_FIELDS & options.keys()})
    folder = Path(output) if output is not None else default_folder(source)
    network = build_network(
        config.network, 2, size=config.image_size, channels=config.in_channels, width=config.width
    )
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        images = read_images(source, network.preprocess, folder, reporter=reporter, **options)
        runner = Runner(config, images, _halves(config, images, halves), folder)
        _require_same_study(runner, halves)
        results, trained = _train(runner, plan_runs(config, len(network.layers)), reporter)
        _write_csv(folder / "runs.csv", results)
    require_sound(results, folder)
    return TransferStudy(
        config=config,
        layers=tuple(network.layers),
        class_names=images.class_names,
        results=results,
        folder=folder,
        trained=trained,
        failed=images.failed,
        seconds=time.perf_counter() - started,
    )


def _halves(config: StudyConfig, images: StudyImages, given: Halves | None) -> list[dict[str, np.ndarray]]:
    """Class codes of A and B for each seed; all classes have images enough."""
    drawn = [
        dict(zip("AB", class_halves(images.class_names, seed, given), strict=True))
        for seed in range(config.seeds)
    ]
    images.require_enough(drawn[0])  # the other seeds have the same classes
    return drawn


def _train(runner: Runner, runs: Sequence[Run], reporter: Reporter) -> tuple[list[RunResult], int]:
    """Results of `runs` in their order, and how many were trained now; of a base that failed, no copies.

    All base networks come first: one that does not learn is known before anything is built on it.
    """
    results = {run: found for run in runs if (found := runner.result(run)) is not None}
    before = len(results)
    with reporter.step("Training", total=len(runs), unit="runs") as advance:
        advance(before)
        for copies in (False, True):
            wave = [run for run in runs if (run.n > 0) == copies and run not in results]
            usable = sound(list(results.values()))
            for run, result in runner.train_all([run for run in wave if may_follow(run, usable)]):
                results[run] = result
                advance(1)
    return [results[run] for run in runs if run in results], len(results) - before


def default_folder(source: str | Path) -> Path:
    """`studies/SOURCE` below the current folder."""
    return Path("studies") / (Path(str(source).rstrip("/")).stem or "images")


def _alone(folder: Path):
    """Hold the study's lock, or say that another process does."""
    try:
        return FileLock(folder / "study.lock").acquire(timeout=0)
    except Timeout:
        raise BottleneckError(
            f"Another process is at work on the study in {folder}.",
            "Wait for it, or name another folder with -o.",
        ) from None


def _require_same_study(runner: Runner, halves: Halves | None) -> None:
    """Compare with the study that the folder holds; write down ours where it holds none."""
    folder = runner.folder
    recipe = {
        "images": runner.images.digest,
        "halves": halves and [sorted(half) for half in halves],
        **runner.config.recipe(),
    }
    path = folder / "study.json"
    if path.exists():
        try:
            there = json.loads(path.read_text())
        except ValueError:
            raise BottleneckError(f"{path} is damaged.", "Name another folder with -o.") from None
        require_equal(there, recipe, f"The study in {folder}", "Name another folder with -o.")
        return
    write_whole(path, canonical_json(recipe).encode())


def _write_csv(path: Path, results: Sequence[RunResult]) -> None:
    columns = [field.name for field in fields(RunResult) if field.name != "correct"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
