"""Images beside those of a cache, as rows that compare with the cache's: a folder is extracted as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.config import ReadConfig
from bottleneck.data.preprocess import MIRROR, Preprocess
from bottleneck.data.read_source import read_source
from bottleneck.data.remembered import as_before
from bottleneck.errors import CacheError, FingerprintError, Note, SourceError
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.names import is_cache
from bottleneck.progress import Reporter
from bottleneck.store.reader import FeatureCache

INPUTS = ("image", "sample", "covariate")  # roles of a manifest's columns that new images have
UNASKED = (
    "files-ignored",
    "no-label-column",
    "split-column-unused",
)  # notes on what new images need not have


@dataclass(frozen=True)
class NewImages:
    """An open cache whose rows of one node were computed as those of another cache.

    startup_seconds, extract_seconds : for a folder: of loading the network, and of computing its features.
    engines : for a folder: those that computed, each {"engine", "precision", "nodes"}.
    """

    cache: FeatureCache
    notes: tuple[Note, ...] = ()
    startup_seconds: float = 0.0
    extract_seconds: float = 0.0
    engines: Sequence[dict[str, Any]] = ()

    @property
    def failed(self) -> list[dict[str, str]]:
        """[{image, error}] of the images that have no row."""
        return [{"image": key, "error": why} for key, why in self.cache.failures.items()]


def network_of(cache: FeatureCache, load: LoadOptions) -> dict[str, Any]:
    """Return the fields of `ExtractConfig` that give the network and the preprocessing of a cache."""
    recipe, preprocess = cache.spec.backbone, Preprocess.from_json(cache.spec.preprocess)
    recorded = recipe.get("weights")
    return {
        "backbone": recipe["name"],
        "weights": load.weights if recorded == "file" else recorded,
        "seed": recipe.get("seed"),
        "in_channels": recipe.get("in_channels"),
        "depth": recipe.get("depth"),
        "image_size": preprocess.size,
        "crop": "squash" if preprocess.squash else preprocess.size / preprocess.resize,
        "decoding": preprocess.decoding,
        "trust_code": load.trust_code,
    }


@contextmanager
def new_images(
    cache: FeatureCache,
    new: str | os.PathLike[str],
    node: str,
    load: LoadOptions,
    engine: EngineConfig,
    reading: ReadConfig,
    reporter: Reporter,
) -> Iterator[NewImages]:
    """Open a cache, or extract any other source that `extract` takes, with the network of `cache`.

    The features of a source are kept in `cache/SOURCE--BACKBONE.h5` below the current folder, where another
    call finds them: all vector nodes of `cache` in the precision of `node`, so that `cache merge` takes both.
    Where that file is there, from another call or from `extract`, its labels and splits stay as they are.

    reading : the columns of a manifest that the user names; others are those of `cache`.

    Raises
    ------
    FingerprintError
        The features at `node` were not computed as those of `cache` were.
    CacheError
        It has no rows, or is `cache` itself.
    SourceError, BackboneError, EngineError
    """
    if is_cache(new):
        if reading.names_columns:
            raise SourceError(f"Columns are named, but {new} is a cache.", "Leave the column flags out.")
        found = NewImages(FeatureCache(new))
    else:
        found = _extracted(cache, node, new, load, engine, reading, reporter)
    with found.cache:
        if found.cache.path.resolve() == cache.path.resolve():
            raise CacheError(f"{new} is {cache.path} itself; expected other images.")
        _require_alike(cache, found.cache, node, is_cache(new))
        found.cache.require_rows()
        yield found


def _extracted(
    cache: FeatureCache,
    node: str,
    new: str | os.PathLike[str],
    load: LoadOptions,
    engine: EngineConfig,
    reading: ReadConfig,
    reporter: Reporter,
) -> NewImages:
    # Networks take seconds to import, and a cache needs none.
    from bottleneck.extraction.existing import open_existing
    from bottleneck.extraction.extract import run_prepared
    from bottleneck.extraction.prepare import prepare
    from bottleneck.extraction.settings import ADOPTS, default_cache

    # Those that are computed as `node` is: others would not compare.
    precision = cache.vectors(node)[0].precision
    nodes = [each for each in map(cache.node, cache.vector_names) if each.precision == precision]
    if engine.precision not in (*ADOPTS, precision):
        raise FingerprintError(
            f"The features of {cache.path} at {node} are in {precision}; those in {engine.precision} would "
            "not compare with them.",
            "Leave --precision out.",
            ("precision",),
        )
    inputs = {role: names for role, names in cache.samples.columns.items() if role in INPUTS}
    source = read_source(new, replace(reading, remembered=inputs))
    config = ExtractConfig(
        nodes=tuple(node.name for node in nodes),
        dtype=nodes[0].dtype,
        flip=any(node.views == MIRROR.to_json() for node in nodes),
        engine=engine,
        **network_of(cache, load),
    )
    path = default_cache(source, config)
    if path.resolve() == cache.path.resolve():
        raise CacheError(
            f"{cache.path} was made from {new}; its features would be written over it.",
            "Name a folder of other images, or give that folder another name.",
        )
    if (own := open_existing(path)) is not None:
        with own:
            if own.source == source.location:
                source = read_source(new, as_before(own.samples, reading))
    try:
        done = run_prepared(prepare(config, source, path, like=cache), reporter)
    except FingerprintError as error:
        raise FingerprintError(error.message, _rename(path), error.fields) from error
    notes = tuple(note for note in done.notes if note.code not in UNASKED)
    return NewImages(FeatureCache(path), notes, done.startup_seconds, done.seconds, done.engines)


def _rename(path: Path) -> str:
    return f"Rename {path}, whose features are of other settings."


def _require_alike(cache: FeatureCache, new: FeatureCache, node: str, is_given: bool) -> None:
    """Raise FingerprintError, which names the first difference, unless the rows of `node` compare.

    is_given : the user named the cache `new`, which else was found where the features of images are kept.
    """
    if cache.vector_fingerprint(node) == new.vector_fingerprint(node):
        return
    ours, theirs = cache.spec.to_json(), new.spec.to_json()
    differing = tuple(name for name in ours if ours[name] != theirs[name])
    if differing:
        what = " and ".join({"preprocess": "preprocessing"}.get(name, name) for name in differing)
    else:
        pairs = zip(cache.vectors(node), new.vectors(node), strict=True)
        first, second = next(
            (a, b) for a, b in pairs if a.fingerprint(cache.spec) != b.fingerprint(cache.spec)
        )
        fields = ("dtype", "precision", "layout", "calibration", "pool")
        differing = tuple(name for name in fields if getattr(first, name) != getattr(second, name))
        what = " and ".join(f"{name} of node {first.name!r}" for name in differing)
    raise FingerprintError(
        f"{new.path} has features of another {what} than {cache.path}; they do not compare.",
        "Give the folder of images instead of its cache: its features are then computed alike."
        if is_given
        else _rename(new.path),
        differing,
    )
