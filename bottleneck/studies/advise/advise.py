"""Which transfer suits the user's data, and why: four scenarios, three published rules, and the evidence.

    cache ──► size, similarity ──► scenario ──► what the rules say ──┐
          └─► trial cache ──► heads, fine-tuning, scores ────────────┴──► recommendation, and where it differs

The recommendation follows the evidence: what was best on val among the strategies that were tried. It is held
against the rules afterwards.

Shapes: n samples or images, D features, H × W pixels, C channels.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.loader import readable_pixels
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source
from bottleneck.errors import BottleneckError
from bottleneck.names import BOTTLENECK, SPLITS
from bottleneck.progress import SILENT, Reporter
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.advise.image_similarity import Similarity, similarity
from bottleneck.studies.advise.recommendation import Advice, Size, scenario
from bottleneck.studies.advise.shot_curve import ShotCurve, shot_curve
from bottleneck.studies.advise.strategies import Attempts, Subject
from bottleneck.studies.advise.subset import class_target, extract_trial, probe_nodes, trial_source
from bottleneck.studies.rank.scores import Scores, score, source_outputs
from bottleneck.threads import thread_budget
from bottleneck.training.inputs import backbone_of

BUDGET, LEAST_BUDGET = 2000, 40  # samples that strategies are tried on
COMPARED = 96  # images that are compared with the source's


def advise(
    cache: str | Path,
    output: str | Path | None = None,
    *,
    target: str | None = None,
    budget: int = BUDGET,
    seed: int = 0,
    weights: str | None = None,
    trust_code: bool = False,
    reporter: Reporter = SILENT,
) -> Advice:
    """Advise on how to transfer a cache's network to the cache's labels.

    Parameters
    ----------
    cache : path
        A feature cache whose images are still where they were. It is only read.
    output : path, optional
        Folder of what is tried; `advice/CACHE` below the current one by default. Features that lie there from
        an earlier run are used again.
    target : str, optional
        The first one with classes by default.
    budget : int
        Samples of train and val that strategies are tried on.
    weights, trust_code
        The weights file or the permission to import that the cache's network needs.

    Raises
    ------
    FitError
        There are no classes, or fewer than two.
    CacheError
        The images are gone.
    """
    started = time.perf_counter()
    if budget < LEAST_BUDGET:
        raise BottleneckError(f"The budget is {budget} samples; expected {LEAST_BUDGET} or more.")
    folder = Path(output) if output is not None else Path("advice") / Path(cache).stem
    trial = _prepare(Path(cache), folder, target, budget, seed, LoadOptions(weights, trust_code), reporter)
    near = trial.compare(seed, reporter)
    attempts = Attempts(trial.path, trial.source, trial.subject, trial.nodes, folder, reporter)
    attempts.run()
    curve, scores = trial.measure(seed)
    size = Size.of(trial.codes, curve)
    return Advice(
        cache=str(cache),
        target=trial.subject.target,
        scenario=scenario(size.per_class, similar=near is not None and near.similar),
        size=size,
        similarity=near,
        attempts=attempts.done,
        heads=attempts.heads,
        scores=scores,
        tried=trial.counts,
        guess=trial.guess(),
        folder=folder,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Trial:
    """What is tried on.

    codes : classes of all train samples of the user's cache. counts : samples of the trial by split.
    """

    path: Path
    source: Source
    subject: Subject
    backbone: Backbone
    preprocess: Preprocess
    nodes: list[str]
    codes: np.ndarray
    counts: dict[str, int]

    def compare(self, seed: int, reporter: Reporter) -> Similarity | None:
        """Similarity to the images that the network was trained on; None where it never was."""
        if self.backbone.recipe.get("weights") == "none":
            return None
        samples = self.source.samples
        train = np.unique(samples.image[samples.split == "train"])
        chosen = np.sort(np.random.default_rng(seed).permutation(train)[:COMPARED])
        keys = [self.source.images[i] for i in chosen]
        pixels = readable_pixels(self.source, keys, self.preprocess, workers=thread_budget().decode)
        return similarity(self.backbone, pixels, self.preprocess, reporter=reporter)

    def guess(self) -> float:
        """Val accuracy of always naming the class that is most frequent in train."""
        samples = self.source.samples
        codes = samples.targets[self.subject.target].values
        commonest = np.bincount(codes[samples.split == "train"]).argmax()
        return float((codes[samples.split == "val"] == commonest).mean())

    def measure(self, seed: int) -> tuple[ShotCurve, dict[str, Scores]]:
        """The curve over images per class, on the bottleneck, and the scores of every node on train."""
        with FeatureCache(self.path) as opened:
            codes = opened.samples.targets[self.subject.target].values
            train, val = (np.flatnonzero(opened.samples.split == split) for split in ("train", "val"))
            rows = {node: _read(opened, node, train) for node in self.nodes}
            single = opened.samples.image.shape[1] == 1
            outputs = source_outputs(self.backbone, rows[BOTTLENECK]) if single else None
            scores = {
                node: score(x, codes[train], outputs if node == BOTTLENECK else None, seed=seed)
                for node, x in rows.items()
            }
            held = _read(opened, BOTTLENECK, val)
            return shot_curve(rows[BOTTLENECK], codes[train], held, codes[val], seed=seed), scores


def _read(cache: FeatureCache, node: str, samples: np.ndarray) -> np.ndarray:
    """(n, D) float32 of the samples (n,)."""
    return cache.sample_rows(node, samples).read(0, len(samples)).astype(np.float32)


def _prepare(
    cache: Path,
    folder: Path,
    target: str | None,
    budget: int,
    seed: int,
    options: LoadOptions,
    reporter: Reporter,
) -> _Trial:
    """Draw the samples, load the network, extract every block's features."""
    with FeatureCache(cache) as opened:
        target = class_target(opened, target)
        source = trial_source(opened, target, budget, seed)
        backbone = backbone_of(opened, options)
        preprocess = Preprocess.from_json(opened.spec.preprocess)
        nodes = probe_nodes(backbone, preprocess)
        path = extract_trial(opened, source, folder / "trial.h5", nodes, options=options, reporter=reporter)
        values = opened.samples.targets[target]
        codes = values.values[values.labelled & (opened.samples.split == "train")]
        subject = Subject(cache, opened.source_root, target, tuple(opened.nodes), options)
    with FeatureCache(path) as written:
        counts = {split: int((written.samples.split == split).sum()) for split in SPLITS}
    return _Trial(path, source, subject, backbone, preprocess, nodes, codes, counts)
