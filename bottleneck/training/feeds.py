"""What a section of a backbone is fed with: cached maps, their views, live views, or pixels.

Shapes: I images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.calibrate import read_statistics
from bottleneck.backbones.registry import load_from_recipe
from bottleneck.data.preprocess import Preprocess
from bottleneck.origin import source_of
from bottleneck.progress import Progress, silent
from bottleneck.store.reader import FeatureCache
from bottleneck.training.pixels import LiveRows, decoded, require_read
from bottleneck.training.rows import DrawnViews
from bottleneck.training.run import Inputs
from bottleneck.trunk import EngineConfig, Trunk


def backbone_of(cache: FeatureCache, weights: str | None = None, trust_code: bool = False) -> Backbone:
    """The network that a cache was made with.

    weights : its weights file, where it came from one. Raises BackboneError where it cannot be had.
    """
    statistics = statistics_of(cache)
    return load_from_recipe(
        cache.spec.backbone, weights=weights, statistics=statistics or None, trust_code=trust_code
    )


def statistics_of(cache: FeatureCache) -> dict[str, np.ndarray]:
    """BatchNorm's statistics by name where the network's weights are random; else none."""
    return read_statistics(cache.path) if cache.spec.backbone.get("calibrated") else {}


@contextmanager
def inputs_of(
    cache: FeatureCache,
    backbone: Backbone,
    node: str | None,
    *,
    views: bool = False,
    live: bool = False,
    seed: int = 0,
    folder: Path,
    progress: Progress = silent,
) -> Iterator[Inputs]:
    """Rows by image for training and for measuring, until leaving.

    Parameters
    ----------
    node : NODE@none of a map that the cache has, or None for pixels
    views : train on one of the cached views, drawn in each epoch
    live : train on a view that is made anew in each epoch
    folder : where pixels may lie meanwhile
    """
    preprocess = Preprocess.from_json(cache.spec.preprocess)
    if node is None:
        keys = list(cache.images.key)
        with decoded(source_of(cache), keys, preprocess, folder, progress) as pixels:
            require_read(pixels.failures, keys)
            train = _live(cache, backbone, None, pixels.shape, preprocess, seed) if live else pixels
            yield Inputs(train, pixels)
        return
    plain = cache.features(node)
    if live:
        yield Inputs(_live(cache, backbone, node, plain.shape, preprocess, seed), plain)
    elif views:
        yield Inputs(DrawnViews(cache.views(node), seed), plain)
    else:
        yield Inputs(plain, plain)


def _live(
    cache: FeatureCache,
    backbone: Backbone,
    node: str | None,
    shape: tuple[int, ...],
    preprocess: Preprocess,
    seed: int,
) -> LiveRows:
    """New views in every epoch, through the fast engine up to `node`."""
    trunk = None
    if node is not None:
        frozen = Trunk(lambda: backbone, preprocess, EngineConfig())

        def trunk(pixels):
            return frozen.engine([node], pixels)(pixels)[0]

    return LiveRows(source_of(cache), list(cache.images.key), preprocess, shape, seed=seed, trunk=trunk)
