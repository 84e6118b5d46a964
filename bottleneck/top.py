"""What a trained network says of a cached map: its upper part runs on what its frozen part said once.

Shapes: n samples, M images per sample, P covariates, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.section import Section, find_cut
from bottleneck.data.preprocess import Preprocess
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.store.reader import FeatureCache

PASS = 64  # samples that pass the network at once


def head_inputs_from_map(
    backbone: Backbone, head: HeadArtifact, cache: FeatureCache, node: str, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """What the head takes of the samples `rows` (n,), in blocks of float32 (B, M·D + P).

    Parameters
    ----------
    backbone : of the model, whose part below `node` is the one that made the cache
    node : NODE@none of a map in the cache, below the head's node
    """
    start = backbone.operation(node.removesuffix("@none"))
    cut = replace(find_cut(backbone, head.node, 1), node=node, start=start)
    section = Section(backbone, cut, head.node, Preprocess.from_json(head.preprocess))
    maps, samples = cache.features(node), cache.samples.take(rows)
    for first in range(0, len(rows), PASS):
        block = slice(first, first + PASS)
        image = samples.image[block]
        with torch.inference_mode():
            features = section(torch.from_numpy(maps.take(image.ravel()))).numpy()
        inputs = [features.reshape(len(image), -1), samples.covariates[block]]
        yield np.concatenate(inputs, axis=1, dtype=np.float32)
