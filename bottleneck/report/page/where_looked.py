"""Overlays of where in an image the classifier looked, as pictures of the page (`report.explain`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ImageOps

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.errors import BottleneckError, Note
from bottleneck.extraction.cached_source import source_of
from bottleneck.extraction.config import EngineConfig
from bottleneck.models.attribution import Explainer
from bottleneck.models.classifier import open_model
from bottleneck.models.config import ExplainConfig
from bottleneck.report.explain import overlay, training_images
from bottleneck.report.page.pictures import SIDE, Pictures
from bottleneck.store.reader import FeatureCache

LEGEND = "A second picture is where it looked: yellow speaks for the predicted class, blue against it."


def overlays(
    path: Path, cache: FeatureCache, rows: np.ndarray, options: LoadOptions, pictures: Pictures
) -> tuple[dict[int, int], list[Note]]:
    """Return by sample of the cache the number of its overlay for the predicted class, and notes.

    Samples whose image cannot be read have none; where the head has no places, or the network cannot be
    loaded, there is none at all, which is noted.
    """
    found: dict[int, int] = {}
    try:
        source = source_of(cache).take(rows)
        classifier = open_model(path, options, EngineConfig())
        explainer = Explainer(classifier, ExplainConfig(output=None))
        if explainer.exact:
            explainer.compare_with(training_images(cache), cache.path.name)
        row_of = dict(zip(source.samples.key, rows.tolist(), strict=True))
        for one in explainer.explain(source):
            row = row_of[one.sample]
            if one.predicted and row not in found:
                drawn = overlay(one, source, classifier.trunk.preprocess, side=4 * SIDE)
                square = np.asarray(ImageOps.fit(drawn, (SIDE, SIDE)))
                found[row] = pictures.add(f"where it looked: {one.images[0]}", square)
        return found, list(explainer.notes)
    except (BottleneckError, OSError) as error:
        return found, [Note("mistakes-not-explained", f"Where the model looked is not shown: {error}")]
