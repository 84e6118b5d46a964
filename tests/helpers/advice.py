"""Advice as if strategies had been tried."""

import numpy as np

from bottleneck.studies.advise.image_similarity import Reading, Similarity
from bottleneck.studies.advise.recommendation import EARLY, HEAD, Advice, Attempt, Size
from bottleneck.studies.rank.scores import Scores
from bottleneck.studies.shot_curve import ShotCurve, ShotPoint
from bottleneck.trials.evidence import Evidence


def attempt(strategy, val, what="something", n=2000):
    """An attempt that is right on a share of `n` samples, which are others for each attempt."""
    right = np.random.default_rng(len(strategy)).permutation(n) < round(val * n)
    evidence = Evidence(np.arange(n).astype(str).astype(object), right.astype(float), np.zeros(n))
    interval = {"val": (val - 0.02, val + 0.02)}
    return Attempt(strategy, what, {"val": val}, interval, 1.0, "bottleneck …", evidence)


def advice(similarity, tmp_path, guess=0.25):
    reading = {"n": 9, "entropy": 0.5, "classes": 4.0}
    names = ("photographs", "inverted photographs", "grey photographs", "texture of photographs")
    known = {name: Reading((0.05,), **reading) for name in names}
    known |= {name: Reading((0.5,), **reading) for name in ("photographs of 32 pixels", "digits", "noise")}
    points = tuple(ShotPoint(k, 1 - 0.4 / k, (0.9, 0.95)) for k in (1, 2, 5, 10))
    head = {"C": 0.1, "cv_accuracy": 0.9, "accuracy": {"train": 1.0, "val": 0.93}}
    return Advice(
        cache="개미.h5",
        target="label",
        size=Size.of(np.arange(40) % 4, ShotCurve(points, 0.5, 0.02)),
        similarity=Similarity(Reading((0.4,), **reading), known, 0.2, "BatchNorm statistics")
        if similarity
        else None,
        attempts=[
            attempt(HEAD, 0.97, "linear head on bottleneck"),
            attempt(EARLY, 0.93, "linear head on blocks.4"),
        ],
        heads=[{"node": node, **head} for node in ("blocks.4", "bottleneck")],
        scores=dict.fromkeys(("blocks.4", "bottleneck"), Scores(0.1, 2.0, 0.9, None, 40)),
        tried={"train": 40, "val": 2000, "test": 0},
        guess=guess,
        folder=tmp_path,
        seconds=1.0,
    )
