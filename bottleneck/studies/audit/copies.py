"""Images that are the same or nearly, and what is on both sides of a split.

Shapes: n images or samples, I images of a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bottleneck.errors import Note, counted
from bottleneck.progress import Reporter
from bottleneck.store.reader import FeatureCache
from bottleneck.store.tables import as_bytes
from bottleneck.studies.audit.images import (
    NEIGHBOURS,
    Neighbourhood,
    centred,
    joined,
    near_pairs,
    neighbourhood,
)
from bottleneck.studies.audit.judged import Judged
from bottleneck.studies.study_config import AuditConfig
from bottleneck.threads import trim_memory
from bottleneck.trials.heads import measured, outputs_of
from bottleneck.trials.task import Task

Issue = dict[str, Any]  # {flag, …, items: [{…, score, flag}]} of one kind


@dataclass(frozen=True)
class Compared:
    """The images of a cache, each content once, and their nearest others.

    distinct : (n,) first image of each content. content : (I,) of each image, as an index of `distinct`.
    near, near_train : neighbours of the n among all of them, and among those in train; a copy of the same
        content is none.
    """

    distinct: np.ndarray
    content: np.ndarray
    near: Neighbourhood
    near_train: Neighbourhood


def compared(cache: FeatureCache, node: str, split_of: dict[str, set[str]], reporter: Reporter) -> Compared:
    """Compare all images of a cache; each pair once, for copies and for outliers."""
    digests = np.array([digest.hex() for digest in as_bytes(cache.images.digest)])
    _, first, content = np.unique(digests, return_index=True, return_inverse=True)
    order = np.argsort(first)
    distinct, content = first[order], np.argsort(order)[content]
    inside = np.array(["train" in split_of.get(key, ()) for key in cache.images.key], bool)
    train = np.zeros(len(distinct), bool)
    train[content[inside]] = True
    features = centred(cache.features(cache.vectors(node)[0].name), distinct)
    near_train, others = (neighbourhood(features, np.flatnonzero(each), reporter) for each in (train, ~train))
    near = joined(near_train, others)
    del features, others
    trim_memory()
    return Compared(distinct, content, near, near_train)


def node_notes(cache: FeatureCache, node: str) -> list[Note]:
    """Return a note where `compared` takes one of several nodes."""
    names = [each.name for each in cache.vectors(node)]
    if len(names) == 1:
        return []
    text = f"Copies and outliers are sought by the features of {names[0]} alone, the first of the nodes."
    return [Note("first-node-alone", text, details={"node": names[0], "nodes": names})]


def find_copies(cache: FeatureCache, images: Compared, config: AuditConfig) -> list[dict[str, Any]]:
    """Return pairs of images that have the same bytes, or nearly the same features."""
    keys, distinct, near = cache.images.key, images.distinct, images.near
    items = [
        _copy([keys[first], keys[row]], True, 1.0)
        for row, first in enumerate(distinct[images.content])
        if first != row
    ]
    if len(distinct) > NEIGHBOURS:
        for a, b in near_pairs(near, config.cosine, config.ratio):
            distance = near.distance[a][near.index[a] == b]
            distance = distance if len(distance) else near.distance[b][near.index[b] == a]
            items.append(_copy([keys[distinct[a]], keys[distinct[b]]], False, float(1 - distance[0])))
    return items


def _copy(images: list[str], exact: bool, cosine: float) -> dict[str, Any]:
    return {"images": images, "exact": exact, "cosine": cosine, "score": cosine, "flag": True}


def splits_of_images(cache: FeatureCache) -> dict[str, set[str]]:
    """Return the splits in which each image is, by key."""
    splits: dict[str, set[str]] = {}
    keys, samples = cache.images.key, cache.samples
    for images, split in zip(samples.image, samples.split, strict=True):
        for image in images:
            splits.setdefault(keys[image], set()).add(split)
    return splits


def duplicates_of(cache: FeatureCache, copies: list[dict[str, Any]]) -> Issue:
    """Return the copies as an issue; the score of all is pairs per image."""
    return {"flag": len(copies), "score": len(copies) / len(cache.images), "items": copies}


def with_labels(copies: list[dict[str, Any]], task: Task) -> list[dict[str, Any]]:
    """Return the copies; where the labels of the two images differ, with these as `labels`.

    Samples of several images have a label together, and none of theirs is compared.
    """
    images, keys = task.samples.image, task.cache.images.key
    if images.shape[1] > 1:
        return copies
    row_of = {keys[image]: row for row, image in enumerate(images[:, 0])}
    found = []
    for copy in copies:
        rows = [row_of[image] for image in copy["images"] if image in row_of]
        labels = [task.target.answer(row) for row in rows]
        differ = len(labels) == 2 and None not in labels and labels[0] != labels[1]
        found.append(copy | {"labels": labels} if differ else copy)
    return found


def labels_note(copies: list[dict[str, Any]]) -> list[Note]:
    """Return a note where copies have other labels: one of the two is wrong, or both classes are meant."""
    differing = [copy for copy in copies if "labels" in copy]
    if not differing:
        return []
    first = differing[0]
    pair = " and ".join(
        f"{key} ({label})" for key, label in zip(first["images"], first["labels"], strict=True)
    )
    pairs = counted(len(differing), "pair of copies has", "pairs of copies have")
    text = f"{pairs} two labels, such as {pair}: look which is right, or leave one out with --without."
    return [Note("copies-labelled-twice", text, details={"pairs": len(differing)})]


def leaking_copies(copies: list[dict[str, Any]], split_of: dict[str, set[str]]) -> list[dict[str, Any]]:
    """Return the copies of which the images are in more than one split."""
    found = []
    for copy in copies:
        splits = set().union(*(split_of.get(image, set()) for image in copy["images"]))
        if len(splits) > 1:
            found.append(copy | {"splits": sorted(splits)})
    return found


def leaks_of(judged: Judged, copies: list[dict[str, Any]], split_of: dict[str, set[str]]) -> Issue:
    """Return `leaking_copies` and groups that are in two splits, and the accuracy on test without them."""
    task, items = judged.task, list(copies)
    leaked = {image for item in items for image in item["images"]}
    groups: set[str] = set()
    if task.samples.group is not None:
        splits_of_group: dict[str, set[str]] = {}
        for group, split in zip(task.samples.group, task.samples.split, strict=True):
            splits_of_group.setdefault(str(group), set()).add(split)
        groups = {group for group, splits in splits_of_group.items() if len(splits) > 1}
        items += [
            {"group": group, "splits": sorted(splits_of_group[group]), "score": 1.0, "flag": True}
            for group in sorted(groups)
        ]
    result: Issue = {"flag": len(items), "score": len(leaked) / max(1, len(split_of)), "items": items}
    if "test" in task.rows:
        rows = task.rows["test"]
        keys = task.cache.images.key[task.samples.image[rows]]
        out = np.array([any(key in leaked for key in each) for each in keys], bool)
        if groups and task.samples.group is not None:
            out |= np.isin(task.samples.group[rows].astype(str), sorted(groups))
        outputs = outputs_of(task, judged.head, rows)
        for name, chosen in (("test_accuracy", np.full(len(rows), True)), ("test_accuracy_without", ~out)):
            if chosen.any():
                link, temperature = judged.head.link, judged.head.temperature
                figures = measured(task, rows[chosen], outputs[chosen], link, temperature)
                result[name] = figures["accuracy"]
                result[f"{name}_ci95"] = figures["accuracy_ci95"]
        result["test_samples_leaked"] = int(out.sum())
    return result
