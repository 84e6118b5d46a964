"""Measure how far features of JPEGs decoded at part of their size agree with those of exact decoding.

Shapes: B images of (H, W, C) uint8.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bottleneck.data.loader import load_images
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source, spread
from bottleneck.engines.reference import mean_cosine
from bottleneck.errors import EngineError, Note, counted
from bottleneck.extraction.pipeline import Trunk
from bottleneck.threads import ThreadBudget, thread_budget

IMAGES = 48  # of the source, on which both decodings are compared
LEAST_COSINE = 0.995  # mean, at every node; that of bf16

Pair = tuple[np.ndarray, np.ndarray]
Agreements = dict[str, dict[str, float | int | None]]


def both_decodings(source: Source, preprocess: Preprocess, budget: ThreadBudget) -> list[Pair]:
    """Return pixels (H, W, C) of up to `IMAGES` readable images by both decodings, the scaled one first."""
    keys = spread(source.examples or source.images, IMAGES)
    scaled, exact = (
        {image.key: image.pixels for image in load_images(source, keys, recipe, workers=budget.decode)}
        for recipe in (preprocess, preprocess.exact)
    )
    both = ((scaled[key], exact[key]) for key in keys)
    return [(a, b) for a, b in both if a is not None and b is not None]


def unscaled_note(preprocess: Preprocess, images: int) -> Note:
    """Return the note that scaling changes nothing in `images` that were looked at."""
    text = (
        f"--decoding scaled changes nothing in the {counted(images, 'image')} looked at: none is a JPEG "
        f"whose shorter side has {4 * preprocess.resize} pixels or more. What it changes in such ones was "
        "not measured."
    )
    return Note("decoding-not-scaled", text, details={"of": images})


def measure_decoding(trunk: Trunk, names: Sequence[str], source: Source) -> tuple[Agreements, Note]:
    """Return the agreement of both decodings by node, for `NodeSpec.decoding_agreement`, and a note on it.

    The same engine computes the features of both. What counts are the images whose pixels differ: others are
    too small to be scaled, or no JPEGs.

    Raises
    ------
    EngineError
        At a node, features have a lower mean cosine than `LEAST_COSINE`, and the user does not force it.
    """
    pairs = both_decodings(source, trunk.preprocess, thread_budget(trunk.config.workers, trunk.config.device))
    differ = [(a, b) for a, b in pairs if not np.array_equal(a, b)]
    counts = {"images": len(differ), "of": len(pairs)}
    agreements: Agreements = {name: {"cosine": None, **counts} for name in names}
    if not differ:
        return agreements, unscaled_note(trunk.preprocess, len(pairs))
    engine = trunk.engine(names, np.stack([a for a, _ in pairs]))
    rows = [engine(np.stack(pixels)) for pixels in zip(*differ, strict=True)]
    for name, ours, theirs in zip(sorted(names), *rows, strict=True):
        agreements[name]["cosine"] = round(mean_cosine(ours, theirs), 4)
    cosines = {name: found["cosine"] for name, found in agreements.items()}
    told = ", ".join(f"{cosine:.4f} at {name}" for name, cosine in cosines.items())
    text = (
        f"Large JPEGs are decoded at part of their size: {len(differ)} of {len(pairs)} images that were "
        f"looked at. Mean cosine of their features with those of exact decoding: {told}."
    )
    below = any(cosine is not None and cosine < LEAST_COSINE for cosine in cosines.values())
    if below and not trunk.config.force:
        raise EngineError(
            f"--decoding scaled is refused: of {len(differ)} images, the mean cosine with features of exact "
            f"decoding is {told}; at least {LEAST_COSINE} is needed.",
            "Leave --decoding at exact, or use the features all the same with --force.",
        )
    return agreements, Note("decoding-scaled", text, below, {"cosine": cosines, **counts})
