"""A small cache to try strategies on: up to a budget of the user's samples, with features of every block.

The user's cache is only read. The trial has its labels and splits: strategies learn from train, val judges.

Shapes: S samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source
from bottleneck.data.splits import set_aside
from bottleneck.errors import Note, counted
from bottleneck.extraction.cached_source import require_images, source_of
from bottleneck.extraction.extract import extract
from bottleneck.fitting.head_files import file_name
from bottleneck.names import HEADS_FOLDER, SPLITS
from bottleneck.progress import Reporter
from bottleneck.samples import SampleTable
from bottleneck.store.layout import cache_name
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.class_task import class_target, target_notes, train_samples
from bottleneck.studies.new_images import network_of
from bottleneck.studies.study_config import AdviseConfig
from bottleneck.training.inputs import backbone_of
from bottleneck.trials.task import stage_nodes

VAL_FRACTION = 0.25  # of train, where the cache has no val
SHARES = {"train": 0.7, "val": 0.3, "test": 0.3}  # of the budget; test is only reported


@dataclass(frozen=True)
class UserCache:
    """The cache to advise on, as the recommended commands name it.

    source : as `FeatureCache.source_words`. nodes : those that it has. load : what its network needs.
    """

    path: Path
    source: str
    target: str
    nodes: tuple[str, ...]
    load: LoadOptions

    @property
    def _load_flags(self) -> str:
        weights = f" --weights {quote(self.load.weights)}" if self.load.weights else ""
        return weights + (" --trust-code" if self.load.trust_code else "")

    def fit_command(self, node: str) -> str:
        """Return the command that fits a head on `node`, after it extracts the node if the cache lacks it."""
        cache = quote(str(self.path))
        fit = f"bottleneck fit-head {cache} --target {quote(self.target)} --node {node}"
        if node in self.nodes:
            return fit
        return f"bottleneck extract {self.source} -o {cache} --node {node}{self._load_flags} && {fit}"

    def finetune_command(self, head: dict[str, Any], unfreeze: int) -> str:
        """Return the command that fits the trial's `head` on the whole cache and fine-tunes from there."""
        name = file_name(cache_name(self.path), self.target, head["node"], head["head"])
        names = f"{quote(str(self.path))} --head {quote(f'{HEADS_FOLDER}/{name}.safetensors')}"
        tune = f"bottleneck finetune {names} --unfreeze {unfreeze}{self._load_flags}"
        return f"{self.fit_command(head['node'])} && {tune}"


@dataclass(frozen=True)
class Trial:
    """The trial cache at `path` and what it was made from.

    source : the drawn samples. nodes : of the probe curve, from the first block to the bottleneck.
    codes : classes of all train samples of the user's cache. counts : samples of the trial by split.
    notes : what was decided on target and samples.
    """

    user: UserCache
    path: Path
    source: Source
    backbone: Backbone
    preprocess: Preprocess
    nodes: list[str]
    codes: np.ndarray
    counts: dict[str, int]
    notes: tuple[Note, ...] = ()


def make_trial(
    cache: Path, folder: Path, config: AdviseConfig, load: LoadOptions, reporter: Reporter
) -> Trial:
    """Draw samples of `cache`, load its network, and extract every block's features below `folder`."""
    with FeatureCache(cache) as opened:
        target = class_target(opened, config.target)
        source = trial_source(opened, target.name, config.budget, config.seed)
        backbone = backbone_of(opened, load)
        preprocess = Preprocess.from_json(opened.spec.preprocess)
        nodes = stage_nodes(backbone, preprocess)
        path = _extract(opened, source, folder / "trial.h5", nodes, load, reporter)
        codes = target.values[train_samples(opened, target)]
        chosen = target_notes(opened, target.name, config.target)
        labelled, carved = int(target.labelled.sum()), not (opened.samples.split == "val").any()
        user = UserCache(cache, opened.source_words, target.name, tuple(opened.nodes), load)
    with FeatureCache(path) as written:
        counts = {split: int((written.samples.split == split).sum()) for split in SPLITS}
    notes = (*chosen, *_draw_notes(sum(counts.values()), labelled, carved))
    return Trial(user, path, source, backbone, preprocess, nodes, codes, counts, notes)


def _draw_notes(drawn: int, labelled: int, carved: bool) -> Iterator[Note]:
    """Yield what was decided on the samples of the trial."""
    if drawn < labelled:
        text = f"Strategies are tried on {drawn:,} of {counted(labelled, 'labelled sample')}, see --budget."
        yield Note("samples-drawn", text, details={"drawn": drawn, "labelled": labelled})
    if carved:
        text = f"There was no val split: {VAL_FRACTION:.0%} of train became it, for the trial alone."
        yield Note("val-taken-from-train", text, details={"fraction": VAL_FRACTION})


def trial_source(cache: FeatureCache, target: str, budget: int, seed: int = 0) -> Source:
    """Draw up to `budget` labelled samples of train and val, and some of test, each class by its share.

    Raises
    ------
    CacheError
        Images that the cache was made from are gone.
    """
    whole = source_of(cache)
    table = whole.samples.take(whole.samples.targets[target].labelled)
    table = replace(table, targets={target: table.targets[target]})
    if not (table.split == "val").any():
        table = replace(table, split=set_aside(table, VAL_FRACTION, seed=seed))
    rows = [_draw(table, target, split, round(share * budget), seed) for split, share in SHARES.items()]
    source = replace(whole, samples=table).take(np.sort(np.concatenate(rows)))
    require_images(source, slice(None), "Advice looks at images", cache.path)
    return source


def _draw(table: SampleTable, target: str, split: str, count: int, seed: int) -> np.ndarray:
    """Return up to `count` rows of a split, drawn so that every class gives its share."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(table.split == split))
    codes = table.targets[target].values[rows]
    position = np.empty(len(rows))  # within its class, from 0 to 1
    for code in np.unique(codes):
        of_class = np.flatnonzero(codes == code)
        position[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return rows[np.argsort(position, kind="stable")[:count]]


def _extract(
    cache: FeatureCache,
    source: Source,
    path: Path,
    nodes: Sequence[str],
    load: LoadOptions,
    reporter: Reporter,
) -> Path:
    """Extract `nodes` of `source` into the cache `path`, with the network and preprocessing of `cache`."""
    extract(source, path, nodes=tuple(nodes), reporter=reporter, **network_of(cache, load))
    return path
