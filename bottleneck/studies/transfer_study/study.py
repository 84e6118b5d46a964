"""How transferable are the features of a network's layers, on the user's own images? (Yosinski et al. 2014)

    images ──► halves A, B ──► base networks ──► for n = 1 … L−1: BnB, BnB+, AnB, AnB+, random ──► effects

`protocol` explains the kinds of runs. A study has a folder, where every run is stored as it ends. One that
was stopped continues with the next run; one that is given more seeds trains only theirs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from bottleneck.data.config import ReadConfig
from bottleneck.data.source import source_name
from bottleneck.data.table_file import csv_lines
from bottleneck.errors import BottleneckError, Note, refuse_strict, reused_note
from bottleneck.files import URL, require_no_url, write_whole
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from
from bottleneck.store.spec import canonical_json, require_equal
from bottleneck.studies.study_config import StudyConfig
from bottleneck.studies.transfer_study.effects import (
    Curves,
    Effect,
    can_train,
    complaints,
    find_effects,
    require_valid,
    valid_runs,
)
from bottleneck.studies.transfer_study.networks import build_network
from bottleneck.studies.transfer_study.protocol import (
    PUBLISHED,
    PUBLISHED_BASE,
    Halves,
    Run,
    class_halves,
    plan_runs,
    read_images,
)
from bottleneck.studies.transfer_study.runs import Runner, RunResult


@dataclass(frozen=True)
class TransferStudy:
    """A finished study.

    layers : names of the network's L layers. results : all runs, with those that do not count.
    trained : number of runs trained by this call. failed : number of images that could not be read.
    notes : what was decided on images, labels and batches.
    """

    config: StudyConfig
    layers: tuple[str, ...]
    class_names: tuple[str, ...]
    results: list[RunResult]
    folder: Path
    trained: int
    failed: int
    seconds: float
    notes: tuple[Note, ...] = ()

    @property
    def curves(self) -> Curves:
        """Accuracies by kind and n, of the runs that count."""
        return Curves(valid_runs(self.results))

    @property
    def effects(self) -> list[Effect]:
        """The paper's findings, tested on these runs."""
        return find_effects(self.curves)

    @property
    def text(self) -> list[str]:
        """One sentence for every tested effect, and for every run that went wrong."""
        return [*(effect.verdict for effect in self.effects), *complaints(self.results)]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bottleneck transfer-study --json` without the figure."""
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
            "reference": {"base": PUBLISHED_BASE, "curves": PUBLISHED},
            "seconds": self.seconds,
            "notes": [note.to_json() for note in self.notes],
        }


def transfer_study(
    source: str | Path,
    output: str | Path | None = None,
    *,
    halves: Halves | None = None,
    seeds: int = StudyConfig.seeds,
    network: str = StudyConfig.network,
    width: int = StudyConfig.width,
    image_size: int = StudyConfig.image_size,
    in_channels: int = StudyConfig.in_channels,
    epochs: int = StudyConfig.epochs,
    batch_size: int = StudyConfig.batch_size,
    lr: float = StudyConfig.lr,
    weight_decay: float = StudyConfig.weight_decay,
    shares: Sequence[float] = StudyConfig.shares,
    image_columns: Sequence[str] = ReadConfig.image_columns,
    label_columns: Sequence[str] = ReadConfig.label_columns,
    split_column: str | None = ReadConfig.split_column,
    group_column: str | None = ReadConfig.group_column,
    sample_column: str | None = ReadConfig.sample_column,
    covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
    classes: Sequence[str] = ReadConfig.classes,
    regression: Sequence[str] = ReadConfig.regression,
    label_separator: str | None = ReadConfig.label_separator,
    val_fraction: float = ReadConfig.val_fraction,
    test_fraction: float = ReadConfig.test_fraction,
    seed: int = ReadConfig.seed,
    limit: int | None = ReadConfig.limit,
    cache_images: str | None = ReadConfig.cache_images,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> TransferStudy:
    """Run or continue the study of the images of `source`.

    Parameters
    ----------
    source : path or URL
        Images with classes, as `extract` takes them.
    output : path, optional
        The study's folder; `studies/SOURCE` below the current one by default.
    halves : two lists of class names, optional
        A and B, for every seed. By default they are drawn anew for each seed.
    seeds : int
        Number of repetitions.
    network : str
        "alexnet8", of which `width` is the number of channels of the first layer, or a backbone.
    image_size, in_channels : int
        Of the network's input.
    epochs, batch_size, lr, weight_decay
        Of every training.
    shares : numbers between 0 and 1
        Of A's images, to see how the gain depends on the size of A.
    image_columns … limit
        As in `extract` (`data.config.ReadConfig`); `seed` decides which samples are set aside.
    strict : bool
        Refuse decisions that change what is learnt or measured (`errors.refuse_strict`).

    Raises
    ------
    SourceError
        Fewer than four classes, or a class with too few images.
    BackboneError
        The network has too few layers.
    FitError
        The base networks learnt nothing in any seed.
    FingerprintError
        The folder holds a study of other images or settings.
    StrictError
        `strict` is given and a note changes the result.
    """
    config = config_from(StudyConfig, locals())
    reading = config_from(ReadConfig, locals())
    folder = Path(output) if output is not None else default_folder(source)
    return _run(source, folder, config, reading, halves, strict, reporter)


def _run(
    source: str | Path,
    folder: Path,
    config: StudyConfig,
    reading: ReadConfig,
    halves: Halves | None,
    strict: bool,
    reporter: Reporter,
) -> TransferStudy:
    require_no_url(folder)
    started = time.perf_counter()
    network = build_network(
        config.network, 2, size=config.image_size, channels=config.in_channels, width=config.width
    )
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        images = read_images(source, network.preprocess, folder, reading, reporter=reporter)
        classes = [class_halves(images.class_names, seed, halves) for seed in range(config.seeds)]
        images.require_enough(classes[0])  # the other seeds have the same classes
        runner = Runner(config, images, classes, folder)
        _require_same_study(runner, halves)
        planned = plan_runs(config, len(network.layers))
        notes = runner.notes(planned)
        refuse_strict(notes, strict, reporter.tell)
        results, trained = _train(runner, planned, reporter)
        _write_csv(folder / "runs.csv", results)
    require_valid(results, folder)
    if reused := len(results) - trained:
        notes.append(reused_note(reused, len(results), folder))
    return TransferStudy(
        config=config,
        layers=tuple(network.layers),
        class_names=images.class_names,
        results=results,
        folder=folder,
        trained=trained,
        failed=images.failed,
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def default_folder(source: str | Path) -> Path:
    """Return `studies/SOURCE` below the current folder."""
    location = str(source) if URL.match(str(source)) else os.path.abspath(source)
    return Path("studies") / source_name(location)


def _train(runner: Runner, runs: Sequence[Run], reporter: Reporter) -> tuple[list[RunResult], int]:
    """Return the results of `runs` in their order, and how many were trained now.

    All base networks come first. Copies of a base that learnt nothing are not trained.
    """
    results = {run: result for run in runs if (result := runner.result(run)) is not None}
    before = len(results)
    with reporter.step("Training", total=len(runs), unit="runs") as advance:
        advance(before)
        for copies in (False, True):
            valid = valid_runs(list(results.values()))
            missing = [run for run in runs if (run.n > 0) == copies and run not in results]
            for run, result in runner.train_all([run for run in missing if can_train(run, valid)]):
                results[run] = result
                advance(1)
    return [results[run] for run in runs if run in results], len(results) - before


def _lock(folder: Path) -> AcquireReturnProxy:
    """Lock the study. Raises BottleneckError if another process holds the lock."""
    try:
        return FileLock(folder / "study.lock").acquire(timeout=0)
    except Timeout:
        raise BottleneckError(
            f"Another process is at work on the study in {folder}.",
            "Wait for it, or name another folder with -o.",
        ) from None


def _require_same_study(runner: Runner, halves: Halves | None) -> None:
    """Compare with the study that the folder holds; a new folder gets this study's description."""
    recipe = {
        "images": runner.images.digest,
        "halves": halves and [sorted(half) for half in halves],
        **runner.config.recipe(),
    }
    path = runner.folder / "study.json"
    if path.exists():
        try:
            existing = dict(json.loads(path.read_bytes()))
        except (TypeError, ValueError):
            raise BottleneckError(f"{path} is damaged.", "Name another folder with -o.") from None
        require_equal(existing, recipe, f"The study in {runner.folder}", "Name another folder with -o.")
        return
    write_whole(path, canonical_json(recipe).encode())


def _write_csv(path: Path, results: Sequence[RunResult]) -> None:
    columns = [field.name for field in fields(RunResult) if field.name != "correct"]
    values = ([getattr(result, column) for column in columns] for result in results)
    write_whole(path, "".join(csv_lines([columns, *values])).encode())
