"""Summarise what was understood of a source or a cache: splits, classes, targets, columns, failures.

Shapes: S samples, K classes or labels of a target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bottleneck.data.source import Source
from bottleneck.names import SPLITS
from bottleneck.samples import SampleTable, Target


def source_sheet(source: Source, samples: SampleTable, failures: Mapping[str, str]) -> dict[str, Any]:
    """Return the data sheet of `samples`, with the columns and ignored files of their source."""
    return data_sheet(samples, failures, source.columns, source.ignored_by_suffix)


def data_sheet(
    samples: SampleTable,
    failures: Mapping[str, str],
    columns: Mapping[str, Sequence[str]] | None = None,
    ignored: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the JSON object `data` of `extract`, of its dry run and of `cache info`.

    splits : number of samples by split.
    targets : by name: kind, classes, labelled and unlabelled samples, and the range of a regression.
    classes : by target and class: number of samples by split; of a multi-label target those with the label.
    columns : columns of a manifest by role. ignored : number of files by suffix.
    failures : number of images without a row by reason.
    """
    return {
        "splits": _by_split(samples.split),
        "targets": {name: _described(target) for name, target in samples.targets.items()},
        "classes": {
            name: dict(zip(target.class_names, _by_class(target, samples.split), strict=True))
            for name, target in samples.targets.items()
            if target.kind != "regression"
        },
        "columns": {role: list(names) for role, names in (columns or {}).items()},
        "ignored": dict(ignored or {}),
        "failures": dict(Counter(failures.values()).most_common()),
    }


def _by_split(split: np.ndarray) -> dict[str, int]:
    counts = Counter(split.tolist())
    return {name: counts[name] for name in SPLITS}


def _described(target: Target) -> dict[str, Any]:
    """Return kind, number of classes and of labelled samples; of a regression its range."""
    labelled = int(target.labelled.sum())
    described: dict[str, Any] = {
        "kind": target.kind,
        "classes": len(target.class_names),
        "labelled": labelled,
        "unlabelled": len(target.values) - labelled,
    }
    if target.kind == "regression" and labelled:
        described["range"] = [float(np.nanmin(target.values)), float(np.nanmax(target.values))]
    return described


def _by_class(target: Target, split: np.ndarray) -> list[dict[str, int]]:
    """Return for each of the K classes or labels its number of samples by split."""
    K = len(target.class_names)
    counts = {}
    for name in SPLITS:
        values = target.values[(split == name) & target.labelled]
        if target.kind == "class":
            counts[name] = np.bincount(values, minlength=K)
        else:
            counts[name] = values.sum(axis=0, dtype=np.int64)
    return [{name: int(counts[name][k]) for name in SPLITS} for k in range(K)]
