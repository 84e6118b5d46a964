"""What candidates are fitted to: one target on the samples of an open cache, by split, with their folds.

Beside it: the nodes that are probed (the end of every stage of a network, pooled, and its bottleneck), and
the records of finished trials, so that a run that was killed, or is run again, does not repeat them. A record
is a .safetensors file: arrays, and values as JSON in its metadata. It is written in one rename and is valid
for one fingerprint of its inputs.

Shapes: S samples, n of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bottleneck.errors import BackboneError, FitError, Note, counted
from bottleneck.files import write_whole
from bottleneck.fitting.training_set import folds_of, require_labels, training_samples, with_training_classes
from bottleneck.heads.solver.problem import TargetProblem
from bottleneck.names import BOTTLENECK, SPLITS
from bottleneck.samples import SampleTable, Target
from bottleneck.store.reader import FeatureCache

if TYPE_CHECKING:
    from bottleneck.backbones.backbone import Backbone
    from bottleneck.data.preprocess import Preprocess

GRID_POOL = "avg2"  # maps are averaged over a grid of 2 × 2


@dataclass(frozen=True)
class Task:
    """One target on the samples of a cache.

    samples : (S,) of the cache; the target has the classes that train has.
    rows : {split: (n,)} the labelled samples, of each split that has any.
    fold : (n,) of train, the fold that holds each sample out.
    seed : of the folds.
    """

    cache: FeatureCache
    samples: SampleTable
    target: Target
    rows: dict[str, np.ndarray]
    fold: np.ndarray
    cv: int
    seed: int
    notes: tuple[Note, ...] = ()

    @property
    def judged(self) -> np.ndarray:
        """Rows of the samples that choose, (n,): train, then val."""
        return np.concatenate([self.rows["train"], self.rows.get("val", np.zeros(0, np.int64))])

    @property
    def metric(self) -> str:
        """Name of the score: "accuracy", or "r2" of a regression."""
        return "r2" if self.target.kind == "regression" else "accuracy"

    def problem(self) -> TargetProblem:
        """Return the target on train with its folds."""
        return TargetProblem(self.target.take(self.rows["train"]), self.fold)

    def refit_problem(self) -> tuple[np.ndarray, TargetProblem, list[Note]]:
        """Return train and val together: rows (n,), the target on them with folds, notes on these."""
        rows, notes = np.sort(self.judged), list[Note]()
        target = self.target.take(rows)
        fold = folds_of(target, self.samples, rows, self.cv, self.seed, notes)
        return rows, TargetProblem(target, fold), notes

    @cached_property
    def digest(self) -> str:
        """A digest of the images, answers, splits, groups and covariates that candidates are fitted to."""
        samples, digest = self.samples, hashlib.sha256()
        digest.update(np.ascontiguousarray(self.cache.images.digest[samples.image]).tobytes())
        digest.update(np.ascontiguousarray(self.target.values).tobytes())
        digest.update(np.ascontiguousarray(samples.covariates).tobytes())
        digest.update(np.ascontiguousarray(self.fold).tobytes())
        for split, rows in self.rows.items():
            digest.update(split.encode() + np.ascontiguousarray(rows).tobytes())
        names = (self.target.name, self.target.kind, *self.target.class_names, *samples.covariate_names)
        groups = () if samples.group is None else samples.group
        for text in (*names, *samples.key, *groups):
            digest.update(str(text).encode(errors="surrogatepass") + b"\0")
        return digest.hexdigest()


def require_learnable(samples: SampleTable, target: str | None, where: str) -> None:
    """Raise FitError unless train can be learnt from. where : names the samples, for the message."""
    if not samples.targets:
        raise FitError(
            f"{where} has no labels.",
            "Put the images into one folder a class, or name a manifest's columns with --label-column.",
        )
    names = (target or next(iter(samples.targets)),)
    training_samples(with_training_classes(samples, names)[0], names, Path(where))


def task_of(cache: FeatureCache, target: str | None, *, cv: int, seed: int) -> Task:
    """Return the target `target` of the cache, or its first one, as a task.

    Raises
    ------
    CacheError
        The cache has no rows.
    FitError
        There is no such target, or train cannot be learnt from: one class, one value, too few samples.
    """
    cache.require_rows()
    samples, notes = cache.samples, cache.samples.part_notes()
    require_labels(samples, cache.path)
    name = target or next(iter(samples.targets))
    if target is None and len(samples.targets) > 1:
        others = ", ".join(map(repr, list(samples.targets)[1:6]))
        message = f"There are {counted(len(samples.targets), 'target')}: {name!r} is learnt, not {others}."
        notes.append(Note("target-chosen", message, True, {"target": name}))
    samples, unseen = with_training_classes(samples, (name,))
    train, (on_train,) = training_samples(samples, (name,), cache.path)
    fold = folds_of(on_train, samples, train, cv, seed, notes)
    whole = samples.targets[name]
    rows = {split: np.flatnonzero((samples.split == split) & whole.labelled) for split in SPLITS}
    rows = {split: indices for split, indices in rows.items() if len(indices)}
    if (fold < 0).all() and "val" not in rows:
        raise FitError(
            f"Nothing can choose: target {name!r} has neither a val split nor enough samples for folds.",
            "Bring more samples or groups, or set some aside: --val-fraction 0.2.",
        )
    samples = replace(samples, targets={name: whole})
    return Task(cache, samples, whole, rows, fold, cv, seed, (*notes, *unseen))


def stage_nodes(backbone: Backbone, preprocess: Preprocess | None = None) -> list[str]:
    """Return the end of every stage in the network's order, maps as 2 × 2 averages, and the bottleneck last.

    Where layers outside a stage's module follow it (the last convolution of EfficientNet), the module's own
    output is a node of its own before them.
    """
    ends: dict[object, str] = {}
    for block in backbone.blocks[:-1]:
        for name in (block.name, block.node):
            try:
                ends.setdefault(backbone.operation(name), backbone.resolve(name))
            except BackboneError:  # the stage has a name of ours, which no tensor has
                continue
    names = [_pooled(backbone, node, preprocess) for node in ends.values() if node != BOTTLENECK]
    return [*dict.fromkeys(names), BOTTLENECK]


def is_bottleneck_map(backbone: Backbone, node: str) -> bool:
    """Return True for the bottleneck, and for pooled forms of the map that it is made from."""
    name = node.partition("@")[0]
    return name == BOTTLENECK or backbone.operation(name) in (
        backbone.anatomy.map,
        backbone.anatomy.bottleneck,
    )


def _pooled(backbone: Backbone, node: str, preprocess: Preprocess | None) -> str:
    try:
        backbone.node_shape(f"{node}@{GRID_POOL}", preprocess)
    except BackboneError:  # not a map
        return node
    return f"{node}@{GRID_POOL}"


class Records:
    """The finished trials in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str, fingerprint: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Return values and arrays of a trial; None if none with this fingerprint is there and whole."""
        try:
            with safe_open(self._path(name), framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != fingerprint:
                    return None
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return dict(json.loads(metadata["values"])), arrays
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None

    def write(
        self, name: str, fingerprint: str, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Write a trial in one rename, in place of an older one of that name."""
        metadata = {"fingerprint": fingerprint, "values": json.dumps(values, ensure_ascii=False)}
        whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        write_whole(self._path(name), save(whole, metadata=metadata))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
