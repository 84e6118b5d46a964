"""Score samples with a head or model: on cached features, on a cached map, or on images.

Shapes: n samples, M images per sample, P covariates, D features, K classes, L labels; V views of an image:
itself, and with `flip` its mirror image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from shlex import quote

import numpy as np
import torch

from bottleneck.backbones.section import Section, find_cut
from bottleneck.data.preprocess import MIRROR, Preprocess
from bottleneck.data.source import Source
from bottleneck.errors import FingerprintError, Note
from bottleneck.extraction.cached_source import require_images, source_of
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.models.classifier import Classifier, mean_scores
from bottleneck.names import nodes_in
from bottleneck.progress import Reporter
from bottleneck.samples import RowReader
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import differences

BLOCK = 4096  # samples whose features are in memory at once
PASS = 64  # samples that pass the fine-tuned layers at once


@dataclass(frozen=True)
class Scored:
    """Scores of the selected samples that could be computed.

    index : (n,) which of the selected samples they are.
    images : n keys of their first images.
    scores : probabilities (n, K) or (n, L), or values (n,) of a regression.
    failed : reason by image key.
    digests : (I, 32) uint8, sha256 of their images.
    notes : what was decided.
    """

    index: np.ndarray
    images: Sequence[str]
    scores: np.ndarray
    failed: dict[str, str]
    digests: np.ndarray
    notes: list[Note] = field(default_factory=list)


def score_images(
    classifier: Classifier, source: Source, rows: np.ndarray, flip: bool, reporter: Reporter
) -> Scored:
    """Score the samples `rows` by running the whole network on their images."""
    chosen = source.take(rows)
    outputs = classifier.outputs(chosen, flip, reporter)
    images = [chosen.images[image] for image in chosen.samples.image[outputs.rows, 0]]
    return Scored(outputs.rows, images, outputs.scores, outputs.failed, outputs.digests)


def score_cache(
    classifier: Classifier, cache: FeatureCache, rows: np.ndarray, flip: bool, reporter: Reporter
) -> Scored:
    """Score the samples `rows` of a cache from its features, from a map, or else from the images."""
    head = classifier.head
    fields = differences(cache.spec.to_json(), {"backbone": head.backbone, "preprocess": head.preprocess})
    if head.node_fingerprint:
        _require_fitted_on(head, cache, fields)
        if flip and not _has_mirrors(cache, head.node):
            why = "A flip needs the images, since the cache has no mirrored views"
            scored = _score_images_of(classifier, cache, rows, flip, why, reporter)
            message = f"{cache.path} has no mirrored views, so its images were run through the network. "
            message += "`bottleneck extract --flip` stores them."
            return replace(scored, notes=[Note("flip-computed", message)])
        blocks = _cached_inputs(cache, head.node, rows, flip)
    else:  # The network was trained: no cache has its features, but one may have the map that training took.
        node = head.settings.get("finetuned", {}).get("input")
        if fields or node not in cache.nodes or (flip and not _has_mirrors(cache, node)):
            why = "A trained network is measured on images"
            return _score_images_of(classifier, cache, rows, flip, why, reporter)
        blocks = _inputs_from_map(classifier, cache, node, rows, flip)
    scores = []
    with reporter.step("Evaluating", total=len(rows), unit="samples") as advance:
        for block in blocks:
            scores.append(mean_scores(head, block))
            advance(len(block))
    image = cache.samples.image[rows]
    digests = cache.images.digest[np.unique(image)]
    return Scored(np.arange(len(rows)), cache.images.key[image[:, 0]], np.concatenate(scores), {}, digests)


def _score_images_of(
    classifier: Classifier, cache: FeatureCache, rows: np.ndarray, flip: bool, why: str, reporter: Reporter
) -> Scored:
    """Score the samples `rows` of a cache on its images. why : they are needed, for an error's message."""
    source = source_of(cache)
    require_images(source, rows, why, cache.path)
    return score_images(classifier, source, rows, flip, reporter)


def _has_mirrors(cache: FeatureCache, name: str) -> bool:
    """Return whether the cache has the mirrored views of all nodes in `name`."""
    return all(cache.node(node).views == MIRROR.to_json() for node in nodes_in(name))


def _require_fitted_on(head: HeadArtifact, cache: FeatureCache, fields: list[str]) -> None:
    """Raise FingerprintError if the head was fitted on other features than the cache has."""
    if cache.vector_fingerprint(head.node) != head.node_fingerprint:
        fields = fields or ["dtype or precision"]
        raise FingerprintError(
            f"The head was fitted on other features than {cache.path} holds; {', '.join(fields)} differ.",
            f"Fit a head on this cache: bottleneck fit-head {quote(str(cache.path))}",
            fields=tuple(fields),
        )


def _cached_inputs(cache: FeatureCache, node: str, rows: np.ndarray, flip: bool) -> Iterator[np.ndarray]:
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
