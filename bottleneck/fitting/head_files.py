"""What `fit_heads` measures of a head and leaves on disk: artifacts, out-of-fold logits, curves.

Shapes: S samples, n of them to train on, C classes or labels.
"""

from __future__ import annotations

import csv
import hashlib
import io
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.files import whole_file, write_whole
from bottleneck.heads.artifact import HeadArtifact, apply_link
from bottleneck.heads.fit import KindResult
from bottleneck.heads.metrics import fit_temperature, measure
from bottleneck.heads.row_blocks import block_size, blocks, read_checked
from bottleneck.names import SPLITS
from bottleneck.samples import ArrayRows, RowReader, SampleTable, Target
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
MOST_ROWS = 1 << 14  # that are measured at a time
LONGEST_NAME = 150  # bytes of a file name before its suffix; file systems take 255


class HeadFiles:
    """Where the heads of one cache go."""

    def __init__(self, cache: FeatureCache, samples: SampleTable, folder: Path) -> None:
        self.cache, self.samples, self.folder = cache, samples, folder
        self.stem = cache.path.name.removesuffix(".parts").removesuffix(".h5")
        self._written: set[str] = set()

    def write(
        self, node: str, target: Target, result: KindResult, train: np.ndarray, fold: np.ndarray
    ) -> tuple[HeadArtifact, Path, Path | None]:
        """Calibrate, measure and write one head; the artifact, its path, and that of its out-of-fold logits.

        target : on the n samples `train`, of which `fold` (n,) says which fold held each out.
        """
        described = self._described(node, target, result, train)
        if result.out_of_fold is not None and result.link != "identity":
            described["temperature"] = fit_temperature(*_held_out(result, target), result.link)
            trim_memory()
        head = HeadArtifact(**described)
        head = replace(head, metrics=self._metrics(head, result, target))
        base = self._own_name(file_name(self.stem, target.name, node, result.kind))
        path = head.save(self.folder / f"{base}.safetensors", self._statistics())
        if result.out_of_fold is None:
            return head, path, None
        beside = self.folder / f"{base}--out-of-fold.npz"
        with whole_file(beside) as file:
            np.savez(
                file,
                sample=self.samples.key[train].astype(str),
                fold=fold,
                values=target.values,
                logits=result.out_of_fold,
                class_names=np.array(target.class_names, str),
            )
        return head, path, beside

    def _own_name(self, name: str) -> str:
        """`name`, numbered where a head of this run has it.

        Targets may differ in the case of a letter alone, or in what no file name can hold.
        """
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        own = next(one for one in names if one.casefold() not in self._written)
        self._written.add(own.casefold())
        return own

    def _described(self, node: str, target: Target, result: KindResult, train: np.ndarray) -> dict[str, Any]:
        cache, spec = self.cache, self.cache.nodes[node]
        names = target.class_names
        if target.kind == "class":
            names = tuple(target.class_names[code] for code in result.classes)
        return {
            "kind": result.kind,
            "form": result.form,
            "arrays": result.arrays,
            "link": result.link,
            "target": target.name,
            "target_kind": target.kind,
            "class_names": names,
            "node": node,
            "images_per_sample": self.samples.image.shape[1],
            "covariate_names": self.samples.covariate_names,
            "C": result.C,
            "settings": result.settings,
            "cv": result.scores.to_json() if result.scores and result.C else {},
            "n_train": int(target.labelled.sum()),
            "backbone": cache.spec.backbone,
            "preprocess": cache.spec.preprocess,
            "fingerprint": cache.fingerprint,
            "node_fingerprint": spec.fingerprint(cache.spec),
        }

    def _metrics(self, head: HeadArtifact, result: KindResult, target: Target) -> dict[str, Any]:
        """{"cv", "train", "val", "test"}: each that exists."""
        found = {}
        if result.out_of_fold is not None:
            found["cv"] = _measured_on_held_out(head, result, target)
            trim_memory()
        whole = self.samples.targets[target.name]
        place = np.full(len(target.class_names) + 1, -1)
        place[result.classes] = np.arange(len(result.classes))  # the last place is that of the unlabelled
        for split in SPLITS:
            here = np.flatnonzero((self.samples.split == split) & whole.labelled)
            values = whole.values[here]
            if target.kind == "class":  # a head says nothing of classes that it has never seen
                here, values = here[place[values] >= 0], place[values[place[values] >= 0]]
            if len(here):
                found[split] = measure(target.kind, values, self._predicted(head, here), head.class_names)
                trim_memory()
        return found

    def _predicted(self, head: HeadArtifact, which: np.ndarray) -> np.ndarray:
        """Probabilities (m, C) of the samples `which`."""
        return _blockwise(self.cache.sample_rows(head.node, which), head.probabilities)

    def _statistics(self) -> dict[str, np.ndarray] | None:
        """BatchNorm's, of a random network that was calibrated: the head's file must carry them."""
        if not self.cache.spec.backbone.get("calibrated"):
            return None
        from bottleneck.backbones.batchnorm import read_statistics

        return read_statistics(self.cache.path)

    def curves(
        self, records: Sequence[dict[str, Any]], shots: Sequence[dict[str, Any]]
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Tables of the probe curve (of two nodes or more) and the k-shot curve: paths, and contents."""
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


def _held_out(result: KindResult, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Answers (m,) and logits (m, C) of the samples that a fold held out."""
    held = np.isfinite(result.out_of_fold).all(axis=1)
    if held.all():  # as nearly always; a copy of millions would be felt
        return target.values, result.out_of_fold
    return target.values[held], result.out_of_fold[held]


def _measured_on_held_out(head: HeadArtifact, result: KindResult, target: Target) -> dict[str, Any]:
    values, logits = _held_out(result, target)
    outputs = _blockwise(ArrayRows(logits), lambda block: apply_link(block, head.link, head.temperature))
    return measure(target.kind, values, outputs, target.class_names)


def _blockwise(rows: RowReader, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What `work` makes of all rows, as float32, since there may be millions."""
    bounds = blocks(rows, min(block_size(rows.shape[1]), MOST_ROWS))
    return np.concatenate([work(read_checked(rows, *bound)).astype(np.float32) for bound in bounds])


def head_record(head: HeadArtifact, path: Path, beside: Path | None) -> dict[str, Any]:
    """A head as `fit-head --json` prints it."""
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
        "temperature": head.temperature,
        "n": head.n_train,
        "out_of_fold": None if beside is None else str(beside),
    }
    for name in MORE_METRICS:
        found = {split: values[name] for split, values in head.metrics.items() if name in values}
        if found:
            record[name] = found
    return record


def shot_record(target: str, node: str, shots: Sequence[int], scores: np.ndarray) -> dict[str, Any]:
    """A k-shot curve as `fit-head --json` prints it. scores : (shots, repeats)."""
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
    """`CACHE--TARGET--NODE--HEAD` in any script, without what a file system minds.

    What is too long ends in a digest of the whole instead of its last parts.
    """
    text = "--".join(unicodedata.normalize("NFC", part) for part in parts)
    kept = "".join(
        c if c.isalnum() or c in "-_.@" or unicodedata.category(c)[0] == "M" else "_" for c in text
    ).strip(".")
    if len(kept.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
        kept = f"{kept.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"
    return kept or "head"


def _probe_table(records: Sequence[dict]) -> list[tuple]:
    table = [("target", "head", "node", "C", "cv", *SPLITS)]
    for record in records:
        start = (record[name] for name in ("target", "head", "node", "C", "cv_accuracy"))
        table.append((*start, *(record["accuracy"].get(split) for split in SPLITS)))
    return table


def _probe_curve(records: Sequence[dict]) -> dict[str, Any]:
    """nodes : N names; series : N scores or None, by line; intervals : N, of lines that have all."""
    nodes = list(dict.fromkeys(record["node"] for record in records))
    series: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, tuple]] = {}
    for record in records:
        line = f"{record['target']}, {record['head']}"
        for name, value in (
            ("cross-validation", record["cv_accuracy"]),
            ("test", record["accuracy"].get("test")),
        ):
            if value is not None:
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
    }


def _shot_table(shots: Sequence[dict]) -> list[tuple]:
    table = [("target", "node", "shots", "mean", "low", "high")]
    for record in shots:
        columns = (record["shots"], record["mean"], record["low"], record["high"])
        table += [(record["target"], record["node"], *row) for row in zip(*columns, strict=True)]
    return table


def _write_table(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    write_whole(path, buffer.getvalue().encode())
    return path
