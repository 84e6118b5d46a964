"""Where fine-tuning starts: a head that fits the cache, and the proof that the network says the same.

Shapes: n samples, D inputs of the head, C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bottleneck.errors import ArtifactError, FingerprintError, FitError
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.calibration import fit_temperature
from bottleneck.heads.folds import assign_folds
from bottleneck.heads.questions import Question
from bottleneck.heads.rows import as_rows
from bottleneck.heads.select import grid_of
from bottleneck.heads.sweep import sweep
from bottleneck.heads.tasks import NO_FOLD
from bottleneck.samples import SPLITS, Target
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import differences
from bottleneck.training.run import metrics_of
from bottleneck.training.sets import Sets

# How far logits may be from the head's before the first step, by the type that features are stored in.
START_BOUND = {"float32": 1e-4, "float16": 2e-2}
FOLDS = 5


def require_same_cache(head: HeadArtifact, cache: FeatureCache) -> None:
    """Raise where the head was fitted on other features, samples of another form or other classes.

    Raises
    ------
    FingerprintError
        Naming the fields in which the recipes differ.
    ArtifactError
        Other images per sample, covariates or classes.
    """
    ours = {"backbone": head.backbone, "preprocess": head.preprocess}
    fields = differences(cache.spec.to_json(), ours)
    if fields:
        raise FingerprintError(
            f"The head was fitted on another cache than {cache.path}: {', '.join(fields[:4])} differ.",
            f"Fit one on this cache with `bottleneck fit-head {cache.path}`.",
            fields=tuple(fields),
        )
    samples = cache.samples
    forms = {
        "images per sample": (head.images_per_sample, samples.image.shape[1]),
        "covariates": (tuple(head.covariate_names), tuple(samples.covariate_names)),
    }
    if head.target in samples.targets:
        forms["classes"] = (tuple(head.class_names), tuple(samples.targets[head.target].class_names))
    for what, (expected, found) in forms.items():
        if expected != found:
            raise ArtifactError(
                f"The head has {what} {_short(expected)}, the cache {cache.path} has {_short(found)}.",
                f"Fit one on this cache with `bottleneck fit-head {cache.path}`.",
            )


def head_inputs(cache: FeatureCache, node: str, rows: np.ndarray) -> np.ndarray:
    """(n, D) float32: what the head takes of the samples `rows`."""
    found = cache.sample_rows(node, rows)
    return found.read(0, len(rows))


def refitted(
    head: HeadArtifact, cache: FeatureCache, rows: np.ndarray, labels: np.ndarray, C: float | None = None
) -> HeadArtifact:
    """A logistic head like `head`, fitted on the samples `rows` alone; without C, it is cross-validated.

    labels : (n,) codes.
    """
    x = as_rows(head_inputs(cache, head.node, rows))
    target = Target(head.target, "class", labels, head.class_names)
    fold = np.full(len(rows), NO_FOLD, np.int16)
    if C is None:
        groups = cache.samples.group
        fold = assign_folds(target, min(FOLDS, len(rows)), None if groups is None else groups[rows])
    found = sweep(x, [Question(target, fold)], grid_of("auto" if C is None else C))[0]
    temperature = head.temperature
    if found.out_of_fold is not None:
        temperature = fit_temperature(labels, found.out_of_fold, found.link)
    standard = {"mean": found.standard.mean, "scale": found.standard.scale}
    arrays = {"coef": found.coef, "intercept": found.intercept, **standard}
    return replace(
        head,
        kind="logistic",
        form="linear",
        link=found.link,
        arrays={name: np.asarray(array, np.float32) for name, array in arrays.items()},
        C=float(found.C),
        temperature=temperature,
        n_train=len(rows),
    )


def head_logits(head: HeadArtifact, cache: FeatureCache, rows: np.ndarray) -> Tensor:
    """(n, C) logits of the head on cached features."""
    return torch.from_numpy(np.asarray(head.decision(head_inputs(cache, head.node, rows)), np.float32))


def head_metrics(
    head: HeadArtifact, cache: FeatureCache, sets: Sets, splits: tuple[str, ...] = SPLITS
) -> dict[str, dict[str, Any]]:
    """What `heads.metrics` measures of a head on cached features, on those of `splits` that exist."""
    found = {}
    for split in splits:
        if split in sets.rows:
            rows = sets.rows[split]
            logits = head_logits(head, cache, rows)
            found[split] = metrics_of(
                logits, torch.from_numpy(sets.labels[rows]), head.class_names, head.temperature
            )
    return found


def plain_head(cache: FeatureCache, target: str, node: str) -> HeadArtifact:
    """A head that knows nothing yet, of the form that a cache's samples and a node ask for."""
    samples, class_names = cache.samples, cache.samples.targets[target].class_names
    D = cache.node(node).shape[0] * samples.image.shape[1] + len(samples.covariate_names)
    shapes = {"coef": (len(class_names), D), "intercept": (len(class_names),)}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return HeadArtifact(
        kind="logistic",
        form="linear",
        arrays={**arrays, "mean": np.zeros(D, np.float32), "scale": np.ones(D, np.float32)},
        target=target,
        class_names=class_names,
        node=node,
        images_per_sample=samples.image.shape[1],
        covariate_names=samples.covariate_names,
        backbone=cache.spec.backbone,
        preprocess=cache.spec.preprocess,
        fingerprint=cache.fingerprint,
        node_fingerprint=cache.node(node).fingerprint(cache.spec),
    )


def require_same_start(network: Tensor, head: Tensor, dtype: str) -> float:
    """The greatest difference between the network's and the head's logits (n, C).

    Raises
    ------
    FitError
        It exceeds the bound for features stored as `dtype`, which grows with large logits.
    """
    difference = float((network - head).abs().max())
    bound = START_BOUND[dtype] * max(1.0, float(head.abs().max()) / 10)
    if not difference <= bound:
        raise FitError(
            f"Before the first step the network's logits differ from the head's by {difference:.3g}; "
            f"expected at most {bound:.3g}.",
            "The cached map is not of the network that made the head's features: extract both again.",
        )
    return difference


def _short(value: object) -> str:
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
