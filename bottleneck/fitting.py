"""Heads from a cache: which samples, which labels, which heads, what is measured, what is written.

Shapes: S samples, n of them to train on, D features, C classes.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bottleneck.errors import FitError
from bottleneck.heads.artifact import HeadArtifact, apply_link
from bottleneck.heads.metrics import measure
from bottleneck.heads.select import select
from bottleneck.progress import Progress, silent
from bottleneck.samples import SPLITS
from bottleneck.store.reader import FeatureCache


@dataclass(frozen=True)
class FitResult:
    """heads : one dict per head, as `fit-head --json` prints them; files : what else was written, by name."""

    heads: list[dict[str, Any]]
    seconds: float
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {"heads": self.heads, "seconds": self.seconds, "files": self.files}


def fit_heads(
    cache: str | os.PathLike,
    *,
    targets: Sequence[str] | None = None,
    nodes: Sequence[str] | None = None,
    C: str | float = "auto",
    cv: int = 5,
    class_weight: str | None = None,
    output: str | os.PathLike = "heads",
    seed: int = 0,
    progress: Progress = silent,
) -> FitResult:
    """Fit a head per target and node on the train split of a cache; write each as an artifact."""
    started = time.perf_counter()
    heads = []
    with FeatureCache(cache) as opened:
        table = opened.samples
        wanted = list(targets or table.targets)
        names = list(nodes or [name for name, node in opened.nodes.items() if not node.is_map])
        if not wanted:
            raise FitError(
                f"{cache} holds no labels.", "Extract from a folder of classes or name --label-column."
            )
        with progress("Fitting heads", total=len(names) * len(wanted), unit="heads") as advance:
            for node in names:
                rows = opened.sample_rows(node)
                x = rows.read(0, len(table))
                for name in wanted:
                    heads.append(
                        _fit_one(opened, table, name, node, x, C, cv, class_weight, Path(output), seed)
                    )
                    advance(1)
    return FitResult(heads, time.perf_counter() - started)


def _fit_one(opened, table, name, node, x, C, cv, class_weight, output, seed) -> dict[str, Any]:
    if name not in table.targets:
        raise FitError(f"There is no target {name!r}; the cache has {', '.join(table.targets)}.")
    target = table.targets[name]
    train = (table.split == "train") & target.labelled
    groups = None if table.group is None else table.group[train]
    found = select(
        x[train],
        target.values[train],
        len(target.class_names),
        C=C,
        cv=cv,
        groups=groups,
        class_weight=class_weight,
        seed=seed,
    )
    spec = opened.nodes[node]
    arrays = {"coef": found.coef, "intercept": found.intercept, "mean": found.mean, "scale": found.scale}
    described = {
        "kind": "logistic",
        "form": "linear",
        "arrays": arrays,
        "target": name,
        "target_kind": target.kind,
        "class_names": target.class_names,
        "node": node,
        "images_per_sample": table.image.shape[1],
        "covariate_names": table.covariate_names,
        "temperature": found.temperature,
        "C": found.C,
        "cv": found.cv,
        "n_train": int(train.sum()),
        "backbone": opened.spec.backbone,
        "preprocess": opened.spec.preprocess,
        "fingerprint": opened.fingerprint,
        "node_fingerprint": spec.fingerprint(opened.spec),
    }
    head = HeadArtifact(**described)
    metrics = {}
    for split in SPLITS:
        held = (table.split == split) & target.labelled
        if held.any():
            metrics[split] = measure(
                target.kind, target.values[held], head.probabilities(x[held]), target.class_names
            )
    out_of_fold = apply_link(found.out_of_fold, "softmax", found.temperature)
    metrics["cv"] = measure(target.kind, target.values[train], out_of_fold, target.class_names)
    head = HeadArtifact(**described, metrics=metrics)
    path = head.save(output / f"{_file_name(opened.path.stem, name, node, 'logistic')}.safetensors")
    splits = {split: values for split, values in metrics.items() if split != "cv"}
    return {
        "path": str(path),
        "target": name,
        "node": node,
        "head": "logistic",
        "C": found.C,
        "cv_accuracy": metrics["cv"]["accuracy"],
        "accuracy": {split: values["accuracy"] for split, values in splits.items()},
        "accuracy_ci95": {split: list(values["accuracy_ci95"]) for split, values in splits.items()},
        "n": head.n_train,
    }


def _file_name(*parts: str) -> str:
    """`CACHE--TARGET--NODE--HEAD`, in any script, without what a file system minds."""
    text = "--".join(parts)
    return "".join(
        c if c.isalnum() or c in "-_.@" or unicodedata.category(c)[0] == "M" else "_" for c in text
    )
