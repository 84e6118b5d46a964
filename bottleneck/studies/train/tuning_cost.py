"""What fine-tuning would cost, before anything is computed: the plan's figure. Nothing is written.

A step of the block below the bottleneck is timed on zeros; the samples and epochs that it is repeated for are
known. The map that it is trained from costs as much as the extraction of the other nodes.

Shapes: D features, K classes, M images and P covariates of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
from torch import nn

from bottleneck.backbones.section import Section, find_cut
from bottleneck.data.source import Source
from bottleneck.extraction.prepare import prepare
from bottleneck.names import BOTTLENECK, DTYPES
from bottleneck.studies.train.budget import target_of
from bottleneck.studies.train.request import Request
from bottleneck.training.config import FinetuneConfig
from bottleneck.training.job import pace_of, training_device
from bottleneck.training.network import TransferNetwork
from bottleneck.trials.finetuning import seconds_at_most


@dataclass(frozen=True)
class TuningCost:
    """One block tuned below a head: the seconds that it takes at most, and the bytes of its map."""

    seconds: float
    bytes: int


def tuning_cost(request: Request, source: Source, backbone: str, per_image: float) -> TuningCost | str:
    """Return what tuning one block of `backbone` on the samples of `source` takes, or why none is tuned.

    per_image : seconds that extraction takes for one image.
    """
    samples, target = source.samples, target_of(source, request.config.target)
    n = {split: int(((samples.split == split) & target.labelled).sum()) for split in ("train", "val", "test")}
    reason = request.not_tuned(target, n["train"])
    if reason is not None:
        return reason
    config = replace(request.extraction_by(backbone), nodes=tuple(request.nodes[backbone]))
    trunk = prepare(config, request.source, request.paths[backbone]).trunk
    network, preprocess = trunk.backbone, trunk.preprocess
    cut = find_cut(network, BOTTLENECK, 1)
    row: tuple[int, ...] = (preprocess.size, preprocess.size, preprocess.channels)
    dtype = np.dtype(np.uint8)
    if cut.node is not None:
        row, dtype = network.node_shape(cut.node, preprocess)[0], np.dtype(config.dtype or DTYPES[0])
    M, P = samples.image.shape[1], len(samples.covariate_names)
    D = M * network.node_shape(BOTTLENECK, preprocess)[0][0] + P
    section = Section(network, cut, BOTTLENECK, preprocess)
    classifier = nn.Sequential(nn.Linear(D, len(target.class_names)))
    tuned = TransferNetwork(section, classifier, np.zeros(D), np.ones(D))
    device, training = training_device(FinetuneConfig()), FinetuneConfig()
    pace = pace_of(tuned.to(device), (M, *row), dtype, P, training.batch_size, device)
    seconds = seconds_at_most(pace, n["train"], n["val"], n["test"], request.config.cv)
    if cut.node is None:
        return TuningCost(seconds, 0)
    images = len(source.images)
    return TuningCost(seconds + per_image * images, images * prod(row) * dtype.itemsize)
