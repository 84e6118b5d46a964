"""The preparation of a fine-tuning run: head, labels, backbone, feature map, and the job that trains.

    plan_finetuning    read the head and the cache; choose samples and blocks
    open_job           extract the feature map unless it is cached, build the job, compare it with the head

Between the two the cache is closed, since extracting a map writes it. The map is extracted once, into a file
beside the cache.

Shapes: I images, C channels, H × W positions, V views.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from shlex import quote

import numpy as np

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.recipe import NO_OPTIONS, LoadOptions
from bottleneck.backbones.section import Cut, Section, find_cut
from bottleneck.data.config import LabelConfig
from bottleneck.data.loader import load_images
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import CacheError, FitError, Note, counted, verb
from bottleneck.extraction.cached_source import require_images, source_of
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.extract import run_prepared
from bottleneck.extraction.prepare import Extraction, prepare
from bottleneck.files import readable
from bottleneck.fitting.labels import relabelled
from bottleneck.fitting.training_set import with_training_classes
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.progress import SILENT, Reporter, duration
from bottleneck.samples import SampleTable
from bottleneck.store.cachefile import CacheFile
from bottleneck.store.layout import companion_path
from bottleneck.store.lock import CacheLock
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import NodeSpec
from bottleneck.store.staging import staged
from bottleneck.training.config import FinetuneConfig
from bottleneck.training.initial_head import StartComparison, compare_start, require_same_cache, starting_head
from bottleneck.training.inputs import backbone_of, inputs_of, unread_note
from bottleneck.training.job import Inputs, TrainingJob, training_device
from bottleneck.training.labelled_splits import LabelledSplits, labelled_splits
from bottleneck.training.network import TransferNetwork, network_of, renew
from bottleneck.training.optim import LayerGroup

REPLACED = ".replaced"  # ends the name of a map while the one that is to replace it is being made
TRIED = 16  # images on which the speed is measured


@dataclass(frozen=True)
class FinetunePlan:
    """What is decided before the feature map is read.

    cache : path; identity : of its content (`FeatureCache.identity`)
    head : as it came; start : the head that training starts from (see `starting_head`)
    notes : what was decided on labels, samples and options
    map_seconds : that the extraction of the feature map has taken so far
    """

    cache: Path
    identity: str
    head: HeadArtifact
    start: HeadArtifact
    splits: LabelledSplits
    backbone: Backbone
    cut: Cut
    notes: tuple[Note, ...] = ()
    map_seconds: float = 0.0


@dataclass(frozen=True)
class FinetuneRun:
    """A job on an open cache, ready to train.

    plan : without the samples whose images could not be read.
    start : the comparison of the network as it began with the head. map_seconds : of extracting the map.
    notes : what was decided on the map and on the batches.
    """

    plan: FinetunePlan
    cache: FeatureCache
    job: TrainingJob[TransferNetwork]
    start: StartComparison
    map_seconds: float
    notes: tuple[Note, ...] = ()


def plan_finetuning(cache: Path, head_path: Path, config: FinetuneConfig) -> FinetunePlan:
    """Read the head, the labels and the backbone, and choose the samples and the blocks that are trained."""
    head = load_head(head_path)
    with FeatureCache(cache) as opened:
        classes = (head.target,) if head.target_kind == "class" else ()
        kind = LabelConfig(classes=classes, label_separator=config.label_separator)
        keys, targets = opened.images.key, (head.target,)
        samples, notes = relabelled(opened.samples, keys, config.labels, targets, config.group, kind)
        samples, unseen = with_training_classes(samples, targets)
        require_same_cache(head, opened, samples)
        _require_target(head, samples, cache, head_path)
        splits = labelled_splits(samples, head.target, val_fraction=config.val_fraction, seed=config.seed)
        backbone = backbone_of(opened, config.load)
        start = starting_head(head, opened, splits)
        identity = opened.identity
    cut = find_cut(backbone, head.node, config.unfreeze)
    fitted = start.notes if start is not head else ()
    decided = (*head.notes, *fitted, *notes, *unseen, *splits.notes, *_plan_notes(head, start, cut, config))
    return FinetunePlan(cache, identity, head, start, splits, backbone, cut, decided)


def _plan_notes(head: HeadArtifact, start: HeadArtifact, cut: Cut, config: FinetuneConfig) -> Iterator[Note]:
    """Yield a note on a head that is fitted again, and on options that are not used."""
    if start is not head:
        text = (
            f"The {head.kind} head saw the samples that became val, so training starts from a logistic head "
            "that is fitted without them. Extract with --val-fraction to have a val split."
        )
        yield Note("start-fitted-again", text, True)
    if config.views and cut.node is None:
        text = (
            f"--views {config.views} is not used: everything is unfrozen, and the network is fed with pixels."
        )
        yield Note("views-not-used", text, True, {"views": config.views})
    if config.unfreeze_every and len(cut.blocks) == 1:
        text = "--unfreeze-every is not used: one block is unfrozen, and it is trained from the first step."
        yield Note("unfreeze-every-not-used", text, False)


def with_map(plan: FinetunePlan, head_path: Path, config: FinetuneConfig, reporter: Reporter) -> FinetunePlan:
    """Extract the feature map of a plan, and plan again without the images that could not be read for it.

    Raises CacheError as `ensure_map` does.
    """
    if plan.cut.node is None:
        return plan
    seconds = ensure_map(
        plan.cache, plan.cut.node, views=config.views, options=config.load, reporter=reporter
    )
    with FeatureCache(plan.cache) as cache:
        unchanged = cache.identity == plan.identity
    fresh = plan if unchanged else plan_finetuning(plan.cache, head_path, config)
    notes = lost_notes(len(plan.splits.table), len(fresh.splits.table))
    return replace(fresh, notes=(*fresh.notes, *notes), map_seconds=seconds)


def lost_notes(before: int, after: int) -> list[Note]:
    """Return a note where a cache lost samples while a feature map was extracted."""
    if after >= before:
        return []
    text = (
        f"{before - after:,} of {counted(before, 'sample')} {verb(before - after)} left "
        "out: their images could not be read when the "
        "feature map was extracted. `bottleneck cache info` counts the failures."
    )
    return [Note("images-unread", text, True, {"samples": before - after})]


@contextmanager
def open_job(
    plan: FinetunePlan, config: FinetuneConfig, folder: Path, reporter: Reporter
) -> Iterator[FinetuneRun]:
    """Yield the job on the open cache, with the feature map that it needs, compared with the head.

    Some features are nearly constant on train, and a head gives them large weights. The rounding of a map to
    float16 may then move the logits by more than training may start with; such a map is replaced by one in
    float32. Not so where the features were computed in bf16 or int8: their own rounding is the larger one.

    folder : where decoded pixels are stored meanwhile.

    Raises
    ------
    CacheError
        The map has to be extracted, and images are gone or the disk is full; or the cache was changed
        meanwhile.
    """
    node, map_seconds = plan.cut.node, plan.map_seconds
    notes: tuple[Note, ...] = ()
    for dtype in (None, "float32"):
        if node is not None:
            map_seconds += ensure_map(
                plan.cache, node, views=config.views, dtype=dtype, options=config.load, reporter=reporter
            )
        with FeatureCache(plan.cache) as cache:
            require_unchanged(cache, plan.identity)
            with inputs_of(cache, plan.backbone, node, config, folder, reporter) as inputs:
                plan = with_readable(plan, inputs, cache)
                job = build_job(plan, cache, inputs, config)
                start = compare_start(job, plan.start, cache, plan.splits.rows["val"])
                exact = node is None or cache.node(node).dtype == "float32"
                if exact or start.difference <= start.bound or not start.node.computed_exactly:
                    precisions = () if node is None else _precision_notes(cache.node(node), start.node)
                    yield FinetuneRun(plan, cache, job, start, map_seconds, (*notes, *precisions))
                    return
        text = (
            f"Rounded to float16, the map {node} moves the head's logits by {start.difference:.2g}, and "
            f"{start.bound:g} is allowed: it is extracted in float32 instead."
        )
        notes = (Note("map-in-float32", text, details={"node": node}),)
        reporter.tell(text)


def _precision_notes(of_map: NodeSpec, of_features: NodeSpec) -> tuple[Note, ...]:
    """A note where the map is computed in another precision than the features."""
    if of_map.precision == of_features.precision:
        return ()
    text = (
        f"The map {of_map.name} is computed in {of_map.precision}, the head's features in "
        f"{of_features.precision}: in that, the map would be out of its bound."
    )
    return (Note("map-precision", text, details={"node": of_map.name, "precision": of_map.precision}),)


def with_readable(plan: FinetunePlan, inputs: Inputs, cache: FeatureCache) -> FinetunePlan:
    """Return the plan without the samples whose images have no rows, and with a note on them."""
    splits = plan.splits.without(inputs.unread)
    if splits.counts() == plan.splits.counts():
        return plan
    failures = {cache.images.key[index]: reason for index, reason in inputs.unread.items()}
    return replace(plan, splits=splits, notes=(*plan.notes, unread_note(failures)))


def build_job(
    plan: FinetunePlan, cache: FeatureCache, inputs: Inputs, config: FinetuneConfig
) -> TrainingJob[TransferNetwork]:
    """The unfrozen blocks with the layers of the head, or with random ones, ready to train."""
    preprocess = Preprocess.from_json(cache.spec.preprocess)
    section = Section(plan.backbone, plan.cut, plan.start.node, preprocess, config.batchnorm == "train")
    network = network_of(section, plan.start)
    if config.init == "random":
        renew(network.classifier, config.seed)
    layers = [LayerGroup("head", 0, tuple(network.classifier.named_parameters()))]
    for depth, (block, parameters) in enumerate(
        zip(plan.cut.blocks, plan.cut.parameters, strict=True), start=1
    ):
        layers.append(LayerGroup(block, depth, parameters))
    return TrainingJob(
        network,
        layers,
        inputs,
        plan.splits.samples(),
        len(plan.start.class_names),
        config,
        device=training_device(config),
    )


def require_unchanged(cache: FeatureCache, identity: str) -> None:
    """Raise CacheError where the cache is not the one that has this `FeatureCache.identity`."""
    if cache.identity != identity:
        raise CacheError(
            f"The images of {cache.path} changed while the run was being prepared.",
            "Run the same command again once nothing else writes the cache.",
        )


def _require_target(head: HeadArtifact, samples: SampleTable, cache: Path, path: Path) -> None:
    """Raise FitError where the samples have no labels of the head's target: they are in another file."""
    if head.target not in samples.targets:
        known = ", ".join(map(repr, samples.targets)) or "none"
        raise FitError(
            f"The head answers target {head.target!r}; the cache has: {known}.",
            "Give the labels that it was fitted with: "
            f"`bottleneck finetune {quote(str(cache))} --head {quote(str(path))} --labels FILE`.",
        )


@dataclass(frozen=True)
class MapWork:
    """What is to be extracted: bytes on disk and an estimate of the seconds, for `images` images."""

    node: str
    images: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"Extracting {self.node} of {counted(self.images, 'image')} once: {readable(self.bytes)} on "
            "disk, "
            f"about {duration(self.seconds)}."
        )


def ensure_map(
    cache: Path,
    node: str,
    *,
    views: int = 0,
    dtype: str | None = None,
    options: LoadOptions = NO_OPTIONS,
    reporter: Reporter = SILENT,
) -> float:
    """Extract the rows of the map `node`, with `views` views, that the cache lacks; return its seconds.

    dtype : type of storage; a map in another type is replaced. None takes the map as it is, and for a new map
        the type of the cache's first node.
    reporter : is told the cost before the extraction starts.

    Raises
    ------
    CacheError
        The images that the cache was made from are gone, the disk is full, or another run is at work.
    """
    _recover(cache)
    with FeatureCache(cache) as opened:
        existing = opened.nodes.get(node)
        has_views = existing is not None and views in (0, (existing.views or {}).get("count"))
        as_wanted = existing is not None and has_views and dtype in (None, existing.dtype)
        if as_wanted and opened.has_all_rows(node):
            return 0.0
        source = source_of(opened)
        dtype = dtype or next(iter(opened.nodes.values())).dtype
    require_images(source, slice(None), "A new node is needed", cache)
    config = ExtractConfig(nodes=(node,), views=views, dtype=dtype, **asdict(options))
    replaced = existing if existing is not None and existing.dtype != dtype else None
    with staged(cache, reporter.tell) as place:
        _recover(place.path)
        with nullcontext() if replaced is None else _set_aside(companion_path(place.path, replaced)):
            extraction = prepare(config, source, place.path)
            reporter.tell(str(_work(extraction, node)))
            started = time.perf_counter()
            run_prepared(extraction, reporter, place=place)
        for note in place.told([]):
            reporter.tell(f"Note: {note}")
        return time.perf_counter() - started


@contextmanager
def _set_aside(path: Path) -> Iterator[None]:
    """Rename a map's file while its replacement is made; rename it back where there is no replacement."""
    aside = path.with_name(path.name + REPLACED)
    path.replace(aside)
    try:
        yield
    except BaseException:
        if not path.exists():
            aside.replace(path)
        raise
    aside.unlink(missing_ok=True)


def _recover(cache: Path) -> None:
    """After a kill: rename a map that was set aside back, or delete it where its replacement is complete.

    Raises CacheError where another run is at work that may need it.
    """
    beside = cache.parent.iterdir() if cache.parent.is_dir() else ()
    left = [
        path for path in beside if path.name.startswith(f"{cache.stem}--") and path.name.endswith(REPLACED)
    ]
    if not left:
        return
    with CacheLock(cache):
        for aside in left:
            path = aside.with_name(aside.name.removesuffix(REPLACED))
            if path.exists():
                aside.unlink(missing_ok=True)
            elif aside.exists() and _is_map_of(cache, aside, path):
                aside.replace(path)


def _is_map_of(cache: Path, aside: Path, path: Path) -> bool:
    """Whether the file `aside` is the map of this cache at `path`, not of a cache whose name begins alike."""
    with closing(CacheFile(aside)) as file:
        node = file.nodes.get(file.map_name or "")
        return node is not None and companion_path(cache, node) == path


def _work(extraction: Extraction, node: str) -> MapWork:
    """Bytes from the node's shape; seconds from the speed on a few images, engine building left out."""
    spec = next(spec for spec in extraction.nodes if spec.name == node)
    keys = extraction.source.images
    views = 0 if spec.views is None else spec.views["count"]
    trunk = extraction.trunk
    loaded = load_images(extraction.source, keys[:TRIED], trunk.preprocess, workers=1)
    pixels = [image.pixels for image in islice(loaded, TRIED) if image.pixels is not None]
    if not pixels:
        return MapWork(node, len(keys), 0, 0.0)
    batch = np.stack(pixels)
    run = trunk.engine([node], batch)
    run(batch)
    started = time.perf_counter()
    run(batch)
    seconds = (time.perf_counter() - started) / len(batch) * len(keys) * (1 + views)
    return MapWork(node, len(keys), spec.bytes_of(len(keys)), seconds)
