"""Which transfer suits the user's data, and why: four scenarios, two published rules, and the evidence.

    cache ──► size, similarity ──► scenario ──► published rules ──┐
          └─► trial cache ──► heads, fine-tuning, scores ─────────┴──► recommendation, and where they differ

The recommendation follows the evidence of cross-validation and val together (`trials.evidence`). The
rules are compared with it afterwards.

Shapes: n samples, D features.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.loader import readable_pixels
from bottleneck.errors import distinct, refuse_strict
from bottleneck.files import require_no_url
from bottleneck.names import BOTTLENECK
from bottleneck.progress import SILENT, Reporter
from bottleneck.store.layout import cache_name
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.advise.image_similarity import Similarity, similarity
from bottleneck.studies.advise.recommendation import Advice, Size
from bottleneck.studies.advise.strategies import try_strategies
from bottleneck.studies.advise.trial import Trial, make_trial
from bottleneck.studies.class_task import source_outputs
from bottleneck.studies.rank.scores import Scores, score
from bottleneck.studies.shot_curve import ShotCurve, shot_curve
from bottleneck.studies.study_config import AdviseConfig
from bottleneck.threads import thread_budget

COMPARED = 96  # images that are compared with the source's


def advise(
    cache: str | Path,
    output: str | Path | None = None,
    *,
    target: str | None = AdviseConfig.target,
    budget: int = AdviseConfig.budget,
    seed: int = AdviseConfig.seed,
    weights: str | None = LoadOptions.weights,
    trust_code: bool = LoadOptions.trust_code,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> Advice:
    """Advise on how to transfer a cache's network to the cache's labels.

    Parameters
    ----------
    cache : path
        A feature cache whose images are still where they were. It is only read.
    output : path, optional
        Folder for everything that is tried; `advice/CACHE` below the current one by default. Features from an
        earlier run are used again.
    target, budget, seed
        As in `AdviseConfig`.
    weights, trust_code
        The weights file or the permission to import that the cache's network needs.
    strict : bool
        Refuse decisions that change what is learnt or measured (`errors.refuse_strict`).

    Raises
    ------
    FitError
        There are no classes, or fewer than two.
    CacheError
        The images are gone.
    StrictError
        `strict` is given and a note changes the result.
    """
    started = time.perf_counter()
    config = AdviseConfig(target, budget, seed)
    folder = Path(output) if output is not None else Path("advice") / cache_name(Path(cache))
    require_no_url(folder)
    trial = make_trial(Path(cache), folder, config, LoadOptions(weights, trust_code), reporter)
    refuse_strict(trial.notes, strict)
    similar = _similarity(trial, seed, reporter)
    attempts, heads = try_strategies(trial, folder, reporter)
    notes = distinct([*trial.notes, *(note for attempt in attempts for note in attempt.notes)])
    refuse_strict(notes, strict)
    curve, scores = _measure(trial, seed)
    return Advice(
        cache=str(cache),
        target=trial.user.target,
        size=Size.of(trial.codes, curve),
        similarity=similar,
        attempts=attempts,
        heads=heads,
        scores=scores,
        tried=trial.counts,
        guess=_majority_accuracy(trial),
        folder=folder,
        seconds=time.perf_counter() - started,
        notes=notes,
    )


def _similarity(trial: Trial, seed: int, reporter: Reporter) -> Similarity | None:
    """Similarity to the images that the network was trained on; None if its weights are random."""
    if trial.backbone.recipe.get("weights") == "none":
        return None
    samples = trial.source.samples
    train = np.unique(samples.image[samples.split == "train"])
    drawn = np.sort(np.random.default_rng(seed).permutation(train)[:COMPARED])
    keys = [trial.source.images[i] for i in drawn]
    pixels = readable_pixels(trial.source, keys, trial.preprocess, workers=thread_budget().decode)
    return similarity(trial.backbone, pixels, trial.preprocess, reporter=reporter)


def _majority_accuracy(trial: Trial) -> float:
    """Val accuracy of always predicting the class that is most frequent in train."""
    samples = trial.source.samples
    codes = samples.targets[trial.user.target].values
    majority = np.bincount(codes[samples.split == "train"]).argmax()
    return float((codes[samples.split == "val"] == majority).mean())


def _measure(trial: Trial, seed: int) -> tuple[ShotCurve, dict[str, Scores]]:
    """Return the bottleneck's curve over images per class, and the scores of every node on train."""
    with FeatureCache(trial.path) as cache:
        codes = cache.samples.targets[trial.user.target].values
        train, val = (np.flatnonzero(cache.samples.split == split) for split in ("train", "val"))
        rows = {node: _read(cache, node, train) for node in trial.nodes}
        held_out = _read(cache, BOTTLENECK, val)
        single = cache.samples.image.shape[1] == 1
    outputs = source_outputs(trial.backbone, rows[BOTTLENECK]) if single else None
    scores = {
        node: score(x, codes[train], outputs if node == BOTTLENECK else None, seed=seed)
        for node, x in rows.items()
    }
    return shot_curve(rows[BOTTLENECK], codes[train], held_out, codes[val], seed=seed), scores


def _read(cache: FeatureCache, node: str, samples: np.ndarray) -> np.ndarray:
    """(n, D) float32 features of the samples (n,)."""
    return cache.sample_rows(node, samples).read(0, len(samples)).astype(np.float32)
