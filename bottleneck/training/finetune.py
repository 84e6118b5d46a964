"""Fine-tuning from the cache: the head first, then the blocks below it from there (LP-FT, Kumar et al. 2022).

    head ──► its layers, standardised ─┐
    cached map of the frozen trunk ────┴─► train the unfrozen blocks ──► the best epoch, or the head itself

The frozen trunk never runs in the loop: what the unfrozen blocks are fed with is constant, so it is cached.
At the start the logits are compared with the head's on its own cached features; training goes on from there.

Shapes: n samples of a split, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from bottleneck.backbones.section import Cut, find_cut
from bottleneck.errors import FitError
from bottleneck.fitted_files import file_name
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.labelling import relabelled
from bottleneck.progress import Progress, silent
from bottleneck.samples import SampleTable
from bottleneck.store.reader import FeatureCache
from bottleneck.training.checkpoint import Checkpoint
from bottleneck.training.exact import ensure_exact_map
from bottleneck.training.feeds import backbone_of, inputs_of
from bottleneck.training.loop import EpochRecord
from bottleneck.training.lr_finder import FoundRate, find_rate
from bottleneck.training.result import Result
from bottleneck.training.sets import labelled_sets
from bottleneck.training.start import require_same_cache, starting_head
from bottleneck.training.transfer import FinetuneConfig, Finetuning, finetune_config


def finetune(
    cache: str | Path,
    head: str | Path,
    output: str | Path | None = None,
    *,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda text: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    **options: Any,
) -> Result:
    """Unfreeze blocks below a head, and train them and the head from where the head stands.

    Killed and called again, it goes on where it was and comes to the same result.

    Parameters
    ----------
    cache, head : path
        A feature cache, and a head that was fitted on it.
    output : path, optional
        The model; `models/CACHE--TARGET--BLOCK.safetensors` by default.
    progress, tell, on_epoch
        Hear of long steps, of what they will cost beforehand, and of each epoch as it ends.
    options
        Fields of `FinetuneConfig`, `RunConfig` and `OptimConfig`.

    Raises
    ------
    FingerprintError, ArtifactError
        The head is of another cache.
    FitError
        More blocks than there are, no val possible, a start that is not the head's.
    CacheError
        The map is not cached, and the images are gone.
    """
    started = time.perf_counter()
    config = finetune_config(options)
    with prepared(Path(cache), head, config, output, progress, tell) as job:
        checkpoint = Checkpoint(job.path.with_suffix(".checkpoint.safetensors"), job.fingerprint())
        job.compare()
        for note in job.notes:
            tell(f"Note: {note}")
        job.train(checkpoint, progress, on_epoch)
        result = job.conclude(started)
    checkpoint.remove()
    return result


def find_learning_rate(
    cache: str | Path,
    head: str | Path,
    *,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> FoundRate:
    """The learning rate to fine-tune with, found by trying (see `lr_finder`). Arguments as of `finetune`."""
    config = finetune_config(options)
    with prepared(Path(cache), head, config, None, progress, tell) as job:
        return find_rate(job.training, progress)


@contextmanager
def prepared(
    cache: Path,
    head: str | Path,
    config: FinetuneConfig,
    output: str | Path | None,
    progress: Progress,
    tell: Callable[[str], None],
) -> Iterator[Finetuning]:
    """A run on an open cache that has the map it needs."""
    artifact, run = load_head(head), config.run
    with FeatureCache(cache) as opened:
        labels = (config.labels, (artifact.target,), config.group)
        samples, notes = relabelled(opened.samples, opened.images.key, *labels)
        require_same_cache(artifact, opened, samples)
        _require_target(artifact, samples, cache, head)
        sets = labelled_sets(samples, artifact.target, val_fraction=run.val_fraction, seed=run.seed)
        backbone = backbone_of(opened, config.weights, config.trust_code)
        start = starting_head(artifact, opened, sets)
    cut = find_cut(backbone, artifact.node, config.unfreeze)
    path = Path(output) if output else default_model(cache, artifact, cut)
    asked = {"weights": config.weights, "trust_code": config.trust_code, "progress": progress, "tell": tell}
    map_seconds = 0.0
    if cut.node:
        map_seconds = ensure_exact_map(cache, backbone, cut, start, sets, run, views=config.views, **asked)
    kind = {"views": config.views > 0, "live": config.augment == "live"}
    with (
        FeatureCache(cache) as opened,
        inputs_of(
            opened, backbone, cut.node, **kind, seed=run.seed, folder=path.parent, progress=progress
        ) as inputs,
    ):
        yield Finetuning(
            opened, backbone, cut, inputs, sets, artifact, config, start, path, map_seconds, tuple(notes)
        )


def _require_target(head: HeadArtifact, samples: SampleTable, cache: Path, path: str | Path) -> None:
    """Raise FitError where the samples do not have the head's answers: they lie in a file of their own."""
    if head.target not in samples.targets:
        known = ", ".join(map(repr, samples.targets)) or "none"
        raise FitError(
            f"The head answers target {head.target!r}; the cache has: {known}.",
            "Give the labels that it was fitted with: "
            f"`bottleneck finetune {quote(str(cache))} --head {quote(str(path))} --labels FILE`.",
        )


def default_model(cache: Path, head: HeadArtifact, cut: Cut) -> Path:
    """`models/CACHE--TARGET--LOWEST_UNFROZEN_BLOCK.safetensors` below the current folder."""
    return Path("models") / f"{file_name(cache.stem, head.target, cut.blocks[-1])}.safetensors"
