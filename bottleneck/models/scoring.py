"""Choose the samples that a head is measured on, and score them: on cached features, on a map, or on images.

The labels of the samples are translated to the head's classes.

Shapes: S samples of the source, n measured samples, M images per sample, P covariates, D features, K classes,
L labels; V views of an image: itself, and with `flip` its mirror image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from shlex import quote

import numpy as np

from bottleneck.data.preprocess import MIRROR, Preprocess
from bottleneck.data.source import Source
from bottleneck.data.table_file import to_number
from bottleneck.errors import ArtifactError, BottleneckError, FingerprintError, Note, counted
from bottleneck.extraction.cached_source import require_images, source_of
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.models.classifier import Classifier, Outputs, mean_scores
from bottleneck.models.trust import Trust
from bottleneck.names import nodes_in
from bottleneck.progress import Reporter
from bottleneck.samples import UNLABELLED, RowReader, SampleTable, Target
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import differences

DEFAULT_SPLITS = ("test", "val", "train")  # the first with labelled samples is measured
BLOCK = 4096  # samples whose features are in memory at once
PASS = 64  # samples that pass the fine-tuned layers at once


@dataclass(frozen=True)
class Selection:
    """Samples of a split that the head can be measured on.

    rows : (n,) indices of the source's samples.
    answers : (n,) codes, (n, L) labels or (n,) numbers, in the head's order of classes.
    unknown : number of samples of each class that the head does not know.
    """

    split: str
    rows: np.ndarray
    answers: np.ndarray
    unknown: dict[str, int]


def select(head: HeadArtifact, samples: SampleTable, split: str | None) -> Selection:
    """Return the labelled samples of the named split, or of the first default split that has any.

    Raises ArtifactError if the head knows no class of that split, BottleneckError if no sample is labelled.
    """
    target = _target_of(head, samples)
    for name in [split] if split else DEFAULT_SPLITS:
        rows = np.flatnonzero(target.labelled & (samples.split == name))
        if len(rows):
            answers, known, unknown = _in_codes_of(head, target.take(rows))
            if not known.any():
                raise _unknown_classes(head, unknown, where_of(samples, name, split))
            return Selection(name, rows[known], answers[known], unknown)
    if split is None:
        raise BottleneckError(
            f"None of the {counted(len(samples), 'sample')} has a label of target {head.target!r} to "
            "measure on.",
            "Give the labels with --labels FILE, or name their column with --label-column.",
        )
    counts = ", ".join(f"{count:,} {name}" for name, count in Counter(samples.split).items())
    raise BottleneckError(
        f"No labelled sample is in the {split} split; the source has {counts}.",
        "Name another --split, or leave --split out.",
    )


def where_of(samples: SampleTable, name: str, asked: str | None) -> str:
    """Return where the measured samples are, for a sentence: a split, or a source that has none.

    name : of the split. asked : the split that the user named.
    """
    has_splits = asked is not None or bool((samples.split != "train").any())
    return f"the {name} split" if has_splits else "the source"


def _unknown_classes(head: HeadArtifact, unknown: dict[str, int], where: str) -> ArtifactError:
    """Return the error that the head knows none of the classes in `where`: other names, or numbers."""
    noun, K = "labels" if head.target_kind == "multilabel" else "classes", len(head.class_names)
    knows = f"It knows {K}: {', '.join(head.class_names[:8])}{' …' if K > 8 else '.'}"
    numbers = [name for name in unknown if to_number(name) is not None]
    if len(numbers) == len(unknown) and not any(to_number(name) is not None for name in head.class_names):
        shown = ", ".join(numbers[:3]) + (" …" if len(numbers) > 3 else "")
        return ArtifactError(
            f"The head predicts {noun}; target {head.target!r} of {where} has numbers: {shown}. {knows}",
            f"Name the column of the {noun} with --label-column.",
        )
    return ArtifactError(
        f"The head knows none of the {noun} of {where}: {listed(unknown)}.",
        f"{knows} If names are written in another way, give a table of labels with --labels.",
    )


def with_target_of(
    head: HeadArtifact, samples: SampleTable, named: tuple[str, ...], from_file: bool
) -> tuple[SampleTable, list[Note]]:
    """Return the samples with the head's target, and a note where it is the only one, by another name.

    That is so for the one column that the user named, and for a folder whose classes the head knows.

    named : label columns that the user named. from_file : the labels are those of a table.
    """
    if head.target in samples.targets or len(samples.targets) != 1 or from_file:
        return samples, []
    (target,) = samples.targets.values()
    by_user = named == (target.name,)
    known = target.kind == head.target_kind == "class" and set(target.class_names) <= set(head.class_names)
    if not by_user and not (known and not samples.columns):
        return samples, []
    message = f"{target.name!r} of the source is measured as {head.target!r}, which the head predicts."
    note = Note("target-by-other-name", message, not by_user, {"target": target.name, "used_as": head.target})
    return replace(samples, targets={head.target: replace(target, name=head.target)}), [note]


def _target_of(head: HeadArtifact, samples: SampleTable) -> Target:
    """Return the target that the head predicts; ArtifactError if it is missing or of another kind."""
    samples.require_finished()
    target = samples.targets.get(head.target)
    if target is None:
        known = ", ".join(samples.targets) or "none"
        raise ArtifactError(
            f"The head predicts target {head.target!r}; the source has: {known}.",
            "Give the labels with --labels FILE, or name their column with --label-column.",
        )
    if head.target_kind == "regression" and target.kind == "class":
        target = target.as_numbers()
    if target.kind != head.target_kind:
        raise ArtifactError(
            f"The head predicts a {head.target_kind} target; {target.name!r} is a {target.kind} one here.",
            "Give --label-separator if a cell holds several labels."
            if head.target_kind == "multilabel"
            else "",
        )
    return target


def _in_codes_of(head: HeadArtifact, target: Target) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Translate the answers of labelled samples to the head's class codes.

    Returns
    -------
    answers : (n,) codes, (n, L) labels or (n,) numbers
    known : (n,) bool, True where the head knows the sample's class, or any class of the target
    unknown : number of samples of each class that the head does not know
    """
    n = len(target.values)
    if target.kind == "regression":
        return target.values, np.ones(n, bool), {}
    code_of = {name: code for code, name in enumerate(head.class_names)}
    codes = np.array([code_of.get(name, UNLABELLED) for name in target.class_names], np.int64)
    if target.kind == "class":
        answers = codes[target.values]
        known, counts = answers != UNLABELLED, np.bincount(target.values, minlength=len(codes))
    else:
        shared = codes != UNLABELLED
        answers = np.zeros((n, len(head.class_names)), np.uint8)
        answers[:, codes[shared]] = target.values[:, shared]
        known, counts = np.full(n, shared.any()), (target.values == 1).sum(axis=0)
    classes = zip(target.class_names, codes, counts.tolist(), strict=True)
    return answers, known, {name: count for name, code, count in classes if code == UNLABELLED and count}


def listed(counts: dict[str, int]) -> str:
    """Name the most frequent classes with their counts."""
    names = sorted(counts, key=lambda name: counts[name], reverse=True)
    return ", ".join(f"{name!r} ({counts[name]})" for name in names[:5]) + (" …" if len(names) > 5 else "")


def score(
    classifier: Classifier,
    opened: FeatureCache | Source,
    rows: np.ndarray,
    flip: bool,
    reporter: Reporter,
    trust: Trust | None = None,
) -> Outputs:
    """Score the samples `rows` (n,) of images, or of a cache from its features, a map, or else the images.

    The outputs' rows are indices of `rows`.
    """
    head = classifier.head
    if isinstance(opened, Source):
        return classifier.outputs(opened.take(rows), flip, trust, reporter)
    blocks = _cached_blocks(classifier, opened, rows, flip)
    if isinstance(blocks, str):
        source = source_of(opened)
        require_images(source, rows, blocks, opened.path)
        outputs = score(classifier, source, rows, flip, reporter, trust)
        if not head.node_fingerprint:
            return outputs
        message = f"{opened.path} has no mirrored views, so its images were run through the network. "
        message += "`bottleneck extract --flip` stores them."
        return replace(outputs, notes=[Note("flip-computed", message)])
    scores: list[np.ndarray] = []
    novelty: list[np.ndarray] = []
    with reporter.step("Evaluating", total=len(rows), unit="samples") as advance:
        for block in blocks:
            scores.append(mean_scores(head, block))
            if trust is not None and (values := trust.novelty(block)) is not None:
                novelty.append(values)
            advance(len(block))
    digests = opened.images.digest[np.unique(opened.samples.image[rows])]
    new = np.concatenate(novelty) if novelty else None
    # A head without a fingerprint has a trained network, which computes in float32 from the map on.
    precisions = opened.precisions_of(head.node) if head.node_fingerprint else {head.node: "fp32"}
    return Outputs(np.arange(len(rows)), np.concatenate(scores), {}, digests, new, precisions)


def _cached_blocks(
    classifier: Classifier, cache: FeatureCache, rows: np.ndarray, flip: bool
) -> Iterator[np.ndarray] | str:
    """Return the head's inputs from cached features or a cached map; or why they need the images."""
    head = classifier.head
    if head.node_fingerprint:
        require_fitted_on(head, cache)
        if flip and not has_mirrors(cache, head.node):
            return "A flip needs the images, since the cache has no mirrored views"
        return cached_inputs(cache, head.node, rows, flip)
    # The network was trained: no cache has its features, but one may have the map that training took.
    node = head.settings.get("finetuned", {}).get("input")
    if recipe_differences(head, cache) or node not in cache.nodes or (flip and not has_mirrors(cache, node)):
        return "A trained network is measured on images"
    return _inputs_from_map(classifier, cache, node, rows, flip)


def has_mirrors(cache: FeatureCache, name: str) -> bool:
    """Return whether the cache has the mirrored views of all nodes in `name`."""
    return all(cache.node(node).views == MIRROR.to_json() for node in nodes_in(name))


def recipe_differences(head: HeadArtifact, cache: FeatureCache) -> list[str]:
    """Return the names of the fields in which the recipes of a head and of a cache differ."""
    return differences(cache.spec.to_json(), {"backbone": head.backbone, "preprocess": head.preprocess})


def require_fitted_on(head: HeadArtifact, cache: FeatureCache) -> None:
    """Raise FingerprintError if the head was fitted on other features than the cache has."""
    if cache.vector_fingerprint(head.node) != head.node_fingerprint:
        fields = recipe_differences(head, cache) or ["dtype or precision"]
        raise FingerprintError(
            f"The head was fitted on other features than {cache.path} holds; {', '.join(fields)} differ.",
            f"Fit a head on this cache: bottleneck fit-head {quote(str(cache.path))}",
            fields=tuple(fields),
        )


def cached_inputs(cache: FeatureCache, node: str, rows: np.ndarray, flip: bool) -> Iterator[np.ndarray]:
    """Yield the head's inputs of the samples `rows` from cached features, (B, V, M·D + P)."""
    plain = cache.sample_rows(node, rows)
    mirrored = cache.sample_rows(node, rows, views=True) if flip else None
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        block = plain.read(start, stop)[:, None]
        yield block if mirrored is None else np.concatenate([block, mirrored.read(start, stop)], axis=1)


def _inputs_from_map(
    classifier: Classifier, cache: FeatureCache, node: str, rows: np.ndarray, flip: bool
) -> Iterator[np.ndarray]:
    """Run the layers above a cached map; yield the head's inputs of samples, (B, V, M·D + P) float32.

    node : NODE@none of the map, below the head's node. The layers below it are those that made the cache.
    """
    import torch

    from bottleneck.backbones.section import Section, find_cut

    backbone, head = classifier.trunk.backbone, classifier.head
    start = backbone.operation(node.removesuffix("@none"))
    cut = replace(find_cut(backbone, head.node, 1), node=node, start=start)
    section = Section(backbone, cut, head.node, Preprocess.from_json(head.preprocess))
    maps: list[RowReader] = [cache.features(node), *([cache.views(node)] if flip else [])]
    samples = cache.samples.take(rows)
    for first in range(0, len(rows), PASS):
        block = slice(first, first + PASS)
        image = samples.image[block]
        views = []
        for reader in maps:
            values = reader.take(image.ravel()).reshape(-1, *maps[0].shape[1:])
            with torch.inference_mode():
                features = section(torch.from_numpy(values)).numpy()
            inputs = [features.reshape(len(image), -1), samples.covariates[block]]
            views.append(np.concatenate(inputs, axis=1, dtype=np.float32))
        yield np.stack(views, axis=1)
