"""Images that are dark, light, blank, blurred, tiny or oblong, by what was measured when they were decoded.

Kinds and their scores, 0 to 1, the lower the odder; the names are cleanvision's, and so are all scores but
those of blurry and odd_size:

    dark              the 99th percentile of the brightness, over 255
    light             1 − the 5th percentile of the brightness, over 255
    low_information   entropy of the brightness in bits, over 10
    blurry            variance of the brightness's second differences over its variance, at most 1
    odd_aspect_ratio  shorter side over longer side
    odd_size          √(width · height) over its median, or the median over it

Shapes: I images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bottleneck.errors import Note, verb
from bottleneck.names import MEASURES
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.audit.copies import Issue


def odd_images(
    cache: FeatureCache, split_of: Mapping[str, set[str]], thresholds: Mapping[str, float]
) -> tuple[Issue, list[Note]]:
    """Return the images by their oddest kind, the oddest first, and a note on those that were not measured.

    thresholds : for each kind the score below which an image is odd.
    """
    measures = cache.images.measures
    known = np.zeros(len(cache.images), bool) if measures is None else np.isfinite(measures).all(axis=1)
    notes = _unmeasured(cache, int((~known).sum()))
    if measures is None or not known.any():
        return {"flag": 0, "score": None, "measured": 0, "kinds": {}, "items": []}, notes
    rows, scores = np.flatnonzero(known), odd_scores(measures[known])
    odd = {kind: scores[kind] < limit for kind, limit in thresholds.items()}
    margin = np.stack([scores[kind] / max(limit, 1e-9) for kind, limit in thresholds.items()])
    items: list[dict[str, Any]] = []
    for i in np.argsort(margin.min(axis=0), kind="stable"):
        key = cache.images.key[rows[i]]
        kinds = sorted((kind for kind in thresholds if odd[kind][i]), key=lambda kind: scores[kind][i])
        items.append(
            {
                "image": key,
                "split": "+".join(sorted(split_of.get(key, ()))),
                "kinds": kinds,
                "score": float(margin[:, i].min()),
                "scores": {kind: float(scores[kind][i]) for kind in thresholds},
                "flag": bool(kinds),
            }
        )
    issue = {
        "flag": sum(item["flag"] for item in items),
        "score": float(np.mean([item["flag"] for item in items])),
        "measured": len(rows),
        "kinds": {kind: int(flags.sum()) for kind, flags in odd.items()},
        "items": items,
    }
    return issue, notes


def odd_scores(measures: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores (I,) of each kind for measures (I, 7), all known."""
    width, height, low, high, entropy, contrast, sharpness = measures.astype(np.float64).T
    assert len(MEASURES) == measures.shape[1]
    size = np.sqrt(width * height)
    relative = size / np.median(size)
    return {
        "dark": high / 255,
        "light": 1 - low / 255,
        "low_information": entropy / 10,
        "blurry": np.where(contrast > 0, np.minimum(sharpness, 1), 0),
        "odd_aspect_ratio": np.minimum(width, height) / np.maximum(width, height),
        "odd_size": np.minimum(relative, 1 / relative),
    }


def _unmeasured(cache: FeatureCache, count: int) -> list[Note]:
    if not count:
        return []
    which = "The" if count == len(cache.images) else f"{count:,} of {len(cache.images):,}"
    text = (
        f"{which} images of {cache.path} {verb(count, 'was', 'were')} computed before pixels were "
        f"measured: whether they are dark, blurred … is not known. Run: {cache.extract_command('--measure')}"
    )
    return [Note("images-not-measured", text, details={"images": count})]
