"""Calibrate, measure and write the heads of one cache: artifacts, out-of-fold logits, tables of curves.

Shapes: S samples, n training samples, K classes or labels.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.data.table_file import csv_lines
from bottleneck.errors import Note
from bottleneck.files import whole_file, write_whole
from bottleneck.fitting.calibrated import conformal_of, novelty_on
from bottleneck.heads.artifact import HeadArtifact, HeadDescription, apply_link
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.kept_aside import kept_aside
from bottleneck.heads.metrics import fit_temperature, measure, one_answer_notes
from bottleneck.heads.novelty import Novelty
from bottleneck.heads.row_blocks import block_size, blocks, read_checked
from bottleneck.heads.solver.problem import TargetProblem
from bottleneck.heads.trained_on import seen_before
from bottleneck.names import SIDE_BY_SIDE, SPLITS
from bottleneck.samples import ArrayRows, RowReader, SampleTable, Target
from bottleneck.store.layout import cache_name
from bottleneck.store.reader import FeatureCache
from bottleneck.threads import trim_memory

MORE_METRICS = (
    "balanced_accuracy",
    "log_loss",
    "macro_f1",
    "roc_auc",
    "ece",
    "exact_match",
    "r2",
    "mae",
    "rmse",
)
CV_SCORES = ("C", "score", "mean", "loss", "added")  # of all values of C
MOST_ROWS = 1 << 14  # that are measured at a time
ALIKE = "Its features may be alike in all samples, or its classes very unequal."
SMALL_C = "C may be too small (give larger values with --C), or its features alike in all samples."
LONGEST_NAME = 150  # bytes of a file name before its suffix; file systems take 255


def describe_head(
    cache: FeatureCache,
    samples: SampleTable,
    target: Target,
    node: str,
    rows: np.ndarray | None = None,
    without: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> HeadDescription:
    """Return the description of a head for `target` of `samples` on one node of a cache.

    rows : samples that the head is fitted on, if they are known. without : what was left out by a list.
    seed : of the folds.
    """
    return HeadDescription(
        target=target.name,
        target_kind=target.kind,
        class_names=target.class_names,
        node=SIDE_BY_SIDE.join(part.name for part in cache.vectors(node)),
        images_per_sample=samples.image.shape[1],
        covariate_names=samples.covariate_names,
        backbone=cache.spec.backbone,
        preprocess=cache.spec.preprocess,
        fingerprint=cache.fingerprint,
        node_fingerprint=cache.vector_fingerprint(node),
        columns=dict(samples.columns),
        trained_on={} if rows is None else seen_before({}, cache.images.digest, samples, rows),
        without=dict(without or {}),
        computed=_computed(cache, node),
        seed=seed,
    )


def _computed(cache: FeatureCache, name: str) -> dict[str, dict[str, Any]]:
    """Return `HeadDescription.computed` of a head on the nodes `name` of a cache."""
    parts = [part for part in cache.vectors(name) if not part.computed_exactly]
    int8 = [part.calibration for part in parts if part.precision == "int8"]
    with_them = [other for other in cache.nodes.values() if other not in parts and other.calibration in int8]
    return {
        part.name: {"precision": part.precision, "calibration": part.calibration}
        for part in [*parts, *with_them]
    }


class HeadFiles:
    """Write the heads of one cache into one folder.

    samples : the targets have the classes of the train split. unseen : for each target that lost classes by
        that, the number of samples of each. without : what was left out by a list. seed : of the folds.
    notes : on the heads that were written.
    """

    def __init__(
        self,
        cache: FeatureCache,
        samples: SampleTable,
        folder: Path,
        unseen: Mapping[str, Mapping[str, int]],
        without: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        self.cache, self.samples, self.folder, self.unseen = cache, samples, folder, unseen
        self.stem = cache_name(cache.path)
        self._without, self._seed = without, seed
        self._written: set[str] = set()
        self._novelty: tuple[str, np.ndarray, Novelty | None] = ("", np.zeros(0, np.int64), None)
        self.notes: list[Note] = []

    def write(self, node: str, problem: TargetProblem, fit: HeadFit, train: np.ndarray) -> dict[str, Any]:
        """Calibrate, measure and write one head, and return it as `fit-head --json` prints it.

        problem : on the n samples `train`.
        """
        target = problem.target
        held, logits = fit.held_out()
        answers, temperature = target.values[held], 1.0
        if fit.link != "identity":
            temperature = fit_temperature(answers, logits, fit.link)
            trim_memory()
        fitted_on = train[target.labelled]
        description = describe_head(
            self.cache, self.samples, target, node, fitted_on, self._without, self._seed
        )
        head = fit.artifact(description, temperature=temperature, n_train=len(fitted_on))
        head = replace(head, novelty=self._novelty_of(node, fitted_on))
        metrics = {}
        if len(held):
            head = replace(head, conformal=conformal_of(target.kind, fit.link, temperature, answers, logits))
            outputs = blockwise(ArrayRows(logits), lambda part: apply_link(part, fit.link, temperature))
            metrics["cv"] = measure(target.kind, answers, outputs, target.class_names)
            trim_memory()
        head = replace(head, metrics=metrics | self._metrics(head))
        which = f"The {fit.kind} head of target {target.name!r} on {node}"
        why = SMALL_C if fit.C is not None else ALIKE
        details = {"target": target.name, "node": node, "head": fit.kind}
        self.notes += one_answer_notes(which, "train", head.metrics["train"], why, **details)
        base = self._unique(file_name(self.stem, target.name, node, fit.kind))
        self.notes += kept_aside(self.folder / f"{base}.safetensors", head)
        path = head.save(self.folder / f"{base}.safetensors", self._statistics())
        if fit.out_of_fold is None:
            return self._record(head, path, None)
        beside = self.folder / f"{base}--out-of-fold.npz"
        with whole_file(beside) as file:
            np.savez(
                file,
                sample=self.samples.key[train].astype(str),
                fold=problem.fold,
                values=target.values,
                logits=fit.out_of_fold,
                class_names=np.array(target.class_names, str),
            )
        return self._record(head, path, beside)

    def _novelty_of(self, node: str, rows: np.ndarray) -> Novelty | None:
        """Return the novelty measured from the samples `rows` (n,); on the last rows again, the last one."""
        last, fitted_on, novelty = self._novelty
        if last != node or not np.array_equal(fitted_on, rows):
            novelty = novelty_on(self.cache, self.samples, node, rows)
            self._novelty = (node, rows, novelty)
        return novelty

    def _record(self, head: HeadArtifact, path: Path, beside: Path | None) -> dict[str, Any]:
        record = head_record(head, path, beside)
        unseen = self.unseen.get(head.target)
        return record | ({"unseen": dict(unseen)} if unseen else {})

    def _unique(self, name: str) -> str:
        """Return `name`, with a number if another head of this call has it.

        Names of targets may differ only in case, or in characters that file names cannot contain.
        """
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        unique = next(name for name in names if name.casefold() not in self._written)
        self._written.add(unique.casefold())
        return unique

    def _metrics(self, head: HeadArtifact) -> dict[str, Any]:
        """Return the metrics of each split that has labelled samples."""
        metrics = {}
        target = self.samples.targets[head.target]
        for split in SPLITS:
            rows = np.flatnonzero((self.samples.split == split) & target.labelled)
            if len(rows):
                predicted = self._predicted(head, rows)
                metrics[split] = measure(target.kind, target.values[rows], predicted, head.class_names)
                trim_memory()
        return metrics

    def _predicted(self, head: HeadArtifact, rows: np.ndarray) -> np.ndarray:
        """Return probabilities (m, K) of the samples `rows` (m,)."""
        return blockwise(self.cache.sample_rows(head.node, rows), head.probabilities)

    def _statistics(self) -> dict[str, np.ndarray] | None:
        """Return the BatchNorm statistics of a calibrated random network; the file must contain them."""
        if not self.cache.spec.backbone.get("calibrated"):
            return None
        from bottleneck.backbones.batchnorm import read_statistics

        return read_statistics(self.cache.path)

    def curves(
        self, records: Sequence[dict[str, Any]], shots: Sequence[dict[str, Any]]
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Write tables of the probe curve (of several nodes) and the k-shot curve; return paths, contents."""
        files: dict[str, str] = {}
        curves: dict[str, Any] = {}
        base = self.folder / file_name(self.stem)
        if len({record["node"] for record in records}) > 1:
            path = Path(f"{base}--probe-curve.csv")
            files["probe_curve_table"] = str(_write_table(path, _probe_table(records)))
            curves["probe"] = _probe_curve(records)
        if shots:
            path = Path(f"{base}--shot-curve.csv")
            files["shot_curve_table"] = str(_write_table(path, _shot_table(shots)))
            curves["shots"] = list(shots)
        return files, curves


def blockwise(rows: RowReader, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `work` to all rows block by block; the result is float32, since there may be millions of rows."""
    bounds = blocks(rows, min(block_size(rows.shape[1]), MOST_ROWS))
    return np.concatenate([work(read_checked(rows, *bound)).astype(np.float32) for bound in bounds])


def head_record(head: HeadArtifact, path: Path, beside: Path | None) -> dict[str, Any]:
    """Return a head as `fit-head --json` prints it. beside : path of its out-of-fold logits."""
    splits = {name: values for name, values in head.metrics.items() if name in SPLITS}
    held = head.metrics.get("cv", {})
    record = {
        "path": str(path),
        "target": head.target,
        "target_kind": head.target_kind,
        "node": head.node,
        "head": head.kind,
        "C": head.C,
        "cv_accuracy": held.get("accuracy"),
        "cv_accuracy_ci95": held.get("accuracy_ci95"),
        "accuracy": {name: values.get("accuracy") for name, values in splits.items() if "accuracy" in values},
        "accuracy_ci95": {
            name: list(values["accuracy_ci95"]) for name, values in splits.items() if "accuracy" in values
        },
        "scales": head.settings.get("scales"),
        "temperature": head.temperature,
        "n": head.n_train,
        "cv_scores": {name: head.cv[name] for name in CV_SCORES if name in head.cv},
        "out_of_fold": None if beside is None else str(beside),
    }
    for name in MORE_METRICS:
        by_split = {split: values[name] for split, values in head.metrics.items() if name in values}
        if by_split:
            record[name] = by_split
    return record


def shot_record(target: str, node: str, shots: Sequence[int], scores: np.ndarray) -> dict[str, Any]:
    """Return a k-shot curve as `fit-head --json` prints it. scores : (shots, repeats)."""
    low, high = np.quantile(scores, (0.025, 0.975), axis=1)
    return {
        "target": target,
        "node": node,
        "shots": list(shots),
        "mean": scores.mean(axis=1).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "accuracy": scores.tolist(),
    }


def file_name(*parts: str) -> str:
    """Return `CACHE--TARGET--NODE--HEAD` in any script, without characters that file systems refuse.

    A name that is too long is cut and ends in a digest of the whole.
    """
    text = "--".join(unicodedata.normalize("NFC", part) for part in parts)
    name = "".join(
        c if c.isalnum() or c in "-_.@" or unicodedata.category(c)[0] == "M" else "_" for c in text
    ).strip(".")
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
        name = f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"
    return name or "head"


def score_of(record: dict[str, Any], split: str) -> float | None:
    """Return the accuracy of a head on a split or in "cv", or R² of a regression; None if not measured."""
    if "r2" in record:
        return record["r2"].get(split)
    return record["cv_accuracy"] if split == "cv" else record["accuracy"].get(split)


def _probe_table(records: Sequence[dict[str, Any]]) -> list[tuple]:
    table = [("target", "head", "node", "C", "cv", *SPLITS)]
    for record in records:
        start = (record[name] for name in ("target", "head", "node", "C"))
        table.append((*start, *(score_of(record, split) for split in ("cv", *SPLITS))))
    return table


def _probe_curve(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return nodes (N names), series (N scores or None, by line), intervals (N, of lines that have all).

    `measure` is the name of the scores.
    """
    nodes = list(dict.fromkeys(record["node"] for record in records))
    series: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, tuple]] = {}
    for record in records:
        line = f"{record['target']}, {record['head']}"
        for name, split in (("cross-validation", "cv"), ("test", "test")):
            if (value := score_of(record, split)) is not None:
                series.setdefault(f"{line}, {name}", {})[record["node"]] = value
        if "test" in record["accuracy_ci95"]:
            intervals.setdefault(f"{line}, test", {})[record["node"]] = record["accuracy_ci95"]["test"]
    return {
        "nodes": nodes,
        "series": {line: [scores.get(node) for node in nodes] for line, scores in series.items()},
        "intervals": {
            line: [bounds[node] for node in nodes]
            for line, bounds in intervals.items()
            if len(bounds) == len(nodes)
        },
        "measure": " or ".join(
            sorted({"R²" if "r2" in record else "accuracy" for record in records}, reverse=True)
        ),
    }


def _shot_table(shots: Sequence[dict[str, Any]]) -> list[tuple]:
    table = [("target", "node", "shots", "mean", "low", "high")]
    for record in shots:
        columns = (record["shots"], record["mean"], record["low"], record["high"])
        table += [(record["target"], record["node"], *row) for row in zip(*columns, strict=True)]
    return table


def _write_table(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    write_whole(path, "".join(csv_lines(rows)).encode())
    return path
