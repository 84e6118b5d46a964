"""Where fine-tuning starts: a head that fits the cache, and the proof that the network says the same.

Shapes: n samples, D inputs of the head, C classes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from shlex import quote
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bottleneck.errors import ArtifactError, FingerprintError, FitError
from bottleneck.fitting.head_files import describe_head
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.config import grid_of
from bottleneck.heads.cross_validation import assign_folds
from bottleneck.heads.head_fit import HeadFit
from bottleneck.heads.logistic import sweep
from bottleneck.heads.metrics import fit_temperature
from bottleneck.heads.row_blocks import as_rows
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
from bottleneck.names import SPLITS
from bottleneck.samples import SampleTable, Target
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import NodeSpec, differences
from bottleneck.training.config import metrics_of
from bottleneck.training.loss import Measured, Objective
from bottleneck.training.split_rows import Sets

# How far logits may be from the head's before the first step, by the type that features are stored in. On the
# same features both say the same within 2e-5, in float32 as in float64 (digits, where weights reach 4,369).
# But the network computes features anew, with another library than the engine. They agree to a millionth of
# the greatest one; times such weights that is 6e-5 on 200 images and up to 4e-4 on all, and neither another
# form of the layers nor more digits in them would change it.
START_BOUND = {"float32": 1e-4, "float16": 2e-2}
# How far features may be from the cached ones, relative to the greatest: by the type of map and features, and
# by the precision of the engine that made them.
STORED = {"float32": 1e-4, "float16": 5e-3}
COMPUTED = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}
FOLDS = 5


def require_same_cache(head: HeadArtifact, cache: FeatureCache, samples: SampleTable) -> None:
    """Raise where the head was fitted on other features, samples of another form or other classes.

    samples : those of the cache, with the labels to train on.

    Raises
    ------
    FingerprintError
        Naming the fields in which the recipes differ.
    ArtifactError
        Other images per sample, covariates or classes.
    """
    ours = {"backbone": head.backbone, "preprocess": head.preprocess}
    fields = differences(cache.spec.to_json(), ours)
    fit_one = f"Fit one on this cache with `bottleneck fit-head {quote(str(cache.path))}`."
    if fields:
        raise FingerprintError(
            f"The head was fitted on another cache than {cache.path}: {', '.join(fields[:4])} differ.",
            fit_one,
            fields=tuple(fields),
        )
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
                f"{fit_one} If that was done with --labels FILE, give the same here."
                if what == "classes"
                else fit_one,
            )


def head_inputs(cache: FeatureCache, node: str, rows: np.ndarray) -> np.ndarray:
    """(n, D) float32: what the head takes of the samples `rows`."""
    return cache.sample_rows(node, rows).read(0, len(rows)).astype(np.float32)


def refitted(
    head: HeadArtifact,
    cache: FeatureCache,
    rows: np.ndarray,
    labels: np.ndarray,
    C: float | None = None,
    groups: np.ndarray | None = None,
) -> HeadArtifact:
    """A logistic head like `head`, fitted on the samples `rows` alone; without C, it is cross-validated.

    labels : (n,) codes. groups : (n,) names; those of one group are in one fold.
    """
    x = as_rows(head_inputs(cache, head.node, rows))
    target = Target(head.target, "class", labels, head.class_names)
    fold = np.full(len(rows), NO_FOLD, np.int16)
    if C is None:
        fold = assign_folds(target, min(FOLDS, len(rows)), groups)
    (fit,) = sweep(x, [TargetProblem(target, fold)], grid_of("auto" if C is None else C))
    temperature = head.temperature
    if fit.out_of_fold is not None:
        temperature = fit_temperature(labels, fit.out_of_fold, fit.link)
    found = fit.artifact(head, temperature=temperature, n_train=len(rows))
    return replace(found, settings=head.settings, cv=head.cv, metrics=head.metrics)


def starting_head(head: HeadArtifact, cache: FeatureCache, sets: Sets) -> HeadArtifact:
    """The head that training starts from: where val was carved from train, one that has not seen val.

    Otherwise val would favour the head over what is trained.
    """
    if not sets.carved:
        return head
    train = sets.rows["train"]
    return refitted(head, cache, train, sets.labels[train], head.C)


def head_logits(head: HeadArtifact, cache: FeatureCache, rows: np.ndarray) -> Tensor:
    """(n, C) logits of the head on cached features."""
    return logits_on(head, torch.from_numpy(head_inputs(cache, head.node, rows)))


def logits_on(head: HeadArtifact, inputs: Tensor) -> Tensor:
    """(n, C) logits of the head on inputs (n, D)."""
    return torch.from_numpy(np.asarray(head.decision(inputs.numpy()), np.float32))


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


def plain_head(cache: FeatureCache, target: Target, node: str) -> HeadArtifact:
    """A head that knows nothing yet, of the form that a cache's samples and a node ask for."""
    samples, K = cache.samples, len(target.class_names)
    D = cache.node(node).shape[0] * samples.image.shape[1] + len(samples.covariate_names)
    arrays = {"coef": np.zeros((K, D)), "intercept": np.zeros(K), "mean": np.zeros(D), "scale": np.ones(D)}
    fit = HeadFit("logistic", "linear", "softmax", arrays, classes=np.arange(K))
    return fit.artifact(describe_head(cache, samples, target, node))


def largest_difference(first: Tensor, second: Tensor) -> float:
    """The greatest difference between two tensors of one shape."""
    return float((first - second).abs().max())


def require_same_start(
    head: HeadArtifact, node: NodeSpec, cached: Tensor, found: Tensor, logits: Tensor
) -> tuple[float, tuple[str, ...]]:
    """How far the network's logits are from the head's, and what a reader must know of that.

    Within START_BOUND they are the same. Beyond it they may still be the same but for rounding that the head
    makes large: then the network's features are the cached ones as far as their types allow, and the
    network says of its features what the head says of them.

    Parameters
    ----------
    node : of the cached features
    cached, found : (n, D) what the head takes: as cached, and as the network computes it
    logits : (n, C) the network's

    Raises
    ------
    FitError
        The features are others, or the head's layers say something else.
    """
    reference, bound = logits_on(head, cached), START_BOUND[node.dtype]
    difference = largest_difference(logits, reference)
    if difference <= bound:
        return difference, ()
    features = largest_difference(found, cached) / float(cached.abs().max())
    allowed = max(STORED[node.dtype], COMPUTED.get(node.precision, 0.0))
    layers = largest_difference(logits, logits_on(head, found))
    if not (features <= allowed and layers <= START_BOUND["float32"]):
        raise FitError(
            f"Before the first step the network's logits differ from the head's by {difference:.3g}, at most "
            f"{bound:g} is allowed: features by {features:.1e} of the greatest, the layers by {layers:.1e}.",
            "The features are not of this network, or too coarse: extract them again with --precision fp32 "
            "--dtype float32, and fit the head on those.",
        )
    note = (
        f"At the start logits differ from the head's by {difference:.2g}, more than {bound:g}, by rounding "
        f"alone: the head has weights of up to {np.abs(head.coef).max():.0f} on nearly constant features. "
        "One with a smaller C is steadier."
    )
    return difference, (note,)


def faint_start(
    head: HeadArtifact,
    cache: FeatureCache,
    logits: Tensor,
    labels: Tensor,
    measured: Measured,
    labels_file: str | None = None,
) -> tuple[str, ...]:
    """What a reader must know of a head whose logits are too small for the loss to see what it knows.

    At a very small C the order of the classes is right and the temperature makes probabilities of it. But the
    loss has no temperature: for it such a head is hardly better than a guess, and training moves its weights
    as if they were new. Named is one whose advantage over guessing shrinks to less than half.

    logits : (n, C) of the head on val; labels : (n,); measured : on these; labels_file : where they lie.
    """
    objective = Objective(len(head.class_names))
    guess, loss = objective.chance, objective.loss(logits, labels).item()
    if measured.temperature >= 1 or guess - loss >= (guess - measured.calibrated) / 2:
        return ()
    what, asked = "a logistic head", "--head logistic"
    if head.kind == "logistic" and head.C:  # while logits are small, they grow as C does
        C = 10.0 ** math.ceil(math.log10(head.C / measured.temperature))
        what, asked = "one with a larger C", f"--C {C:g}"
    if labels_file:
        asked += f" --labels {quote(labels_file)}"
    path, target, node = (quote(text) for text in (str(cache.path), head.target, head.node))
    return (
        f"The head's logits are so small that training starts almost anew: their loss on val is {loss:.3f}, "
        f"that of guessing {guess:.3f}, and {measured.calibrated:.3f} at the temperature "
        f"{measured.temperature:.2g}. Fit {what}: "
        f"`bottleneck fit-head {path} --target {target} --node {node} {asked}`.",
    )


def _short(value: object) -> str:
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
