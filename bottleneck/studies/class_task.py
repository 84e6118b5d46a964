"""A cache as a classification task: its target with classes, and the source classifier's outputs.

Shapes: n samples, D features, Z classes of the source classifier.
"""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

import numpy as np

from bottleneck.errors import BackboneError, FitError, Note, counted
from bottleneck.heads.row_blocks import as_rows, blocks
from bottleneck.names import BOTTLENECK
from bottleneck.samples import RowReader, Target
from bottleneck.store.reader import FeatureCache

if TYPE_CHECKING:
    from bottleneck.backbones.backbone import Backbone

BATCH = 4096


def class_target(cache: FeatureCache, name: str | None) -> Target:
    """Return the target `name` of `cache`, or its first one with classes.

    Raises
    ------
    FitError
        There is none, or fewer than two classes have train samples.
    """
    cache.samples.require_finished(str(cache.path))
    targets = cache.samples.targets
    kinds = {key: target.kind for key, target in targets.items()}
    if name is None:
        name = next((key for key, kind in kinds.items() if kind == "class"), None)
    if name is None or kinds.get(name) != "class":
        known = ", ".join(f"{key} ({kind})" for key, kind in kinds.items())
        wanted = f"target {name!r} with classes" if name else "target with classes"
        hint = "Name one that has classes by --target."
        if "class" not in kinds.values():
            again = f"bottleneck extract SOURCE -o {quote(str(cache.path))}"
            hint = f"Put the images into one folder a class: {again}"
        raise FitError(f"{cache.path} has no {wanted}; its targets are: {known or 'none'}.", hint)
    classes = np.unique(targets[name].values[train_samples(cache, targets[name])])
    if len(classes) < 2:
        raise FitError(
            f"Target {name!r} has {counted(len(classes), 'class', 'classes')} in train; expected 2 or more."
        )
    return targets[name]


def sole_target(cache: FeatureCache, name: str | None) -> str | None:
    """Return the target `name`, or the only one of `cache`; None where it has none.

    Raises
    ------
    FitError
        There is no such target, or there are several and none is named.
    """
    known = list(cache.samples.targets)
    if name is None and len(known) > 1:
        raise FitError(
            f"{cache.path} has {counted(len(known), 'target')}: {', '.join(known)}.",
            "Name one of them with --target.",
        )
    if name is not None and name not in known:
        raise FitError(f"{cache.path} has no target {name!r}; it has: {', '.join(known) or 'none'}.")
    return name if name is not None else next(iter(known), None)


def target_notes(cache: FeatureCache, chosen: str, requested: str | None) -> list[Note]:
    """Return a note where `chosen` was taken as the first of several targets with classes."""
    names = [name for name, target in cache.samples.targets.items() if target.kind == "class"]
    if requested is not None or len(names) < 2:
        return []
    text = (
        f"{chosen!r} is taken, the first of {counted(len(names), 'target')} with classes. --target names "
        "another one."
    )
    return [Note("target-chosen", text, True, {"target": chosen, "targets": names})]


def train_samples(cache: FeatureCache, target: Target) -> np.ndarray:
    """Return the (n,) rows of the train samples that have a label."""
    return np.flatnonzero(target.labelled & (cache.samples.split == "train"))


def source_outputs(backbone: Backbone, rows: np.ndarray | RowReader) -> np.ndarray | None:
    """Return (n, Z) float32 probabilities of the source classifier for bottleneck features (n, D).

    None where there is no trained classifier, or where the cached bottleneck is not exactly its input (a map
    that is flattened rather than pooled to a fixed grid).
    """
    if backbone.recipe.get("weights") == "none" or backbone.anatomy.native is not None:
        return None
    try:
        _, classifier = backbone.split(BOTTLENECK)
    except BackboneError:
        return None
    import torch

    reader = as_rows(rows)
    with torch.inference_mode():
        logits = (
            classifier(torch.from_numpy(reader.read(start, stop).astype(np.float32)))
            for start, stop in blocks(reader, BATCH)
        )
        return np.concatenate([torch.softmax(part, dim=1).numpy() for part in logits])
