"""A scikit-learn transformer: images in, bottleneck features out, computed once for each content.

Shapes: n samples, M images per sample, D features.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from bottleneck.data.in_memory import ROOT, ContentFiles, as_images, content_source, described
from bottleneck.errors import BottleneckError, CacheError, ImageError, Note, counted, verb
from bottleneck.extraction.config import EngineConfig, ExtractConfig
from bottleneck.extraction.extract import run_extraction
from bottleneck.extraction.settings import resolve
from bottleneck.names import BOTTLENECK, DEFAULT_BACKBONE, EXACT
from bottleneck.remote.path import RemotePath, path_of
from bottleneck.store.reader import FeatureCache

ON_ERROR = ("fail", "nan")


class FeatureExtractor(TransformerMixin, BaseEstimator):
    """Turn images into the features of a frozen network, for `Pipeline`, `GridSearchCV` and the like.

    X is a list, an array or a column of images, (n,): paths, PIL images, or pixels as uint8 arrays (H, W) or
    (H, W, C), also one array (n, H, W, C). A table of paths, (n, M), gives samples of M images, whose
    features stand side by side. Features are float32 of shape (n, M·D).

    Features are kept in a cache file by the sha256 of each image's content. An image is computed once, under
    whatever name it comes, in whatever fold or process; a second `fit` computes nothing.

    Parameters
    ----------
    backbone, weights, image_size, crop, decoding, in_channels, depth, seed, dtype, trust_code
        As in `ExtractConfig`. `dtype` is the type in the cache.
    node : NODE or NODE@POOL, a vector.
    cache : path, optional
        Folder of the cache files, one for each combination of settings: `cache/` below the current folder by
        default. Or one .h5 file; a cache that `bottleneck extract` wrote is read and never changed.
    engine, precision, device, batch_size, workers
        As in `EngineConfig`.
    on_error : "fail" raises ImageError for an image that cannot be read, "nan" gives it a row of NaN.

    Attributes
    ----------
    n_features_out_ : int
    notes_ : list of Note
        What was decided while the features were computed; empty if all were in the cache.

    Examples
    --------
    >>> model = make_pipeline(FeatureExtractor(), LogisticHead())   # doctest: +SKIP
    >>> model.fit(paths, labels).predict(["new.jpg"])               # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        node: str = BOTTLENECK,
        *,
        cache: str | os.PathLike[str] | None = None,
        weights: str | None = ExtractConfig.weights,
        image_size: int | None = ExtractConfig.image_size,
        crop: float | str | None = ExtractConfig.crop,
        decoding: str | None = ExtractConfig.decoding,
        in_channels: int | None = ExtractConfig.in_channels,
        depth: int | None = ExtractConfig.depth,
        seed: int | None = ExtractConfig.seed,
        dtype: str | None = ExtractConfig.dtype,
        trust_code: bool = ExtractConfig.trust_code,
        engine: str = EngineConfig.engine,
        precision: str = EngineConfig.precision,
        device: str = EngineConfig.device,
        batch_size: int | None = EngineConfig.batch_size,
        workers: int | None = EngineConfig.workers,
        on_error: str = ON_ERROR[0],
    ) -> None:
        self.backbone = backbone
        self.node = node
        self.cache = cache
        self.weights = weights
        self.image_size = image_size
        self.crop = crop
        self.decoding = decoding
        self.in_channels = in_channels
        self.depth = depth
        self.seed = seed
        self.dtype = dtype
        self.trust_code = trust_code
        self.engine = engine
        self.precision = precision
        self.device = device
        self.batch_size = batch_size
        self.workers = workers
        self.on_error = on_error

    def fit(self, X: Any, y: Any = None) -> FeatureExtractor:
        """Compute the features of X that the cache lacks. y is ignored."""
        self.fit_transform(X)
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Return the features of X, float32 (n, M·D). y is ignored."""
        features = self._transform(X)
        self.n_features_out_ = features.shape[1]
        return features

    def transform(self, X: Any) -> np.ndarray:
        """Return the features of X, float32 (n, M·D), in the order of X.

        Raises
        ------
        ImageError
            Images cannot be read and `on_error` is "fail"; the message names the first ones.
        SourceError
            X does not contain images.
        FingerprintError, CacheError
            The cache was made with other settings, or is damaged.
        """
        return self._transform(X)

    def _transform(self, X: Any) -> np.ndarray:
        """Return the features of X. `transform` and `fit_transform` add what `set_output` wants."""
        if self.on_error not in ON_ERROR:
            raise BottleneckError(f"on_error is {self.on_error!r}; expected {' or '.join(ON_ERROR)}.")
        images = as_images(X)
        if not len(images):
            raise ImageError("X is empty; expected one image or more.")
        files, failures = ContentFiles(), dict[int, str]()
        keys: list[str] = []
        for number, image in enumerate(images.flat):
            try:
                keys.append(files.add(image))
            except (ImageError, OSError, ValueError) as error:
                keys.append("")
                failures[number] = getattr(error, "strerror", None) or str(error)
        self._refuse(failures, images)
        features, reasons = self._features(files, keys)
        failures |= {number: reasons[key] for number, key in enumerate(keys) if key in reasons}
        self._refuse(failures, images)
        if failures:
            self.notes_.append(_nan_note(failures, images))
        return features.reshape(len(images), -1)

    def _refuse(self, failures: dict[int, str], images: np.ndarray) -> None:
        """Raise ImageError for failures by number of the image, unless they are to become rows of NaN."""
        if failures and (self.on_error == "fail" or len(failures) == images.size):
            first = min(failures)
            raise ImageError(
                f"{len(failures)} of {counted(images.size, 'image')} cannot be used; the first is "
                f"{described(images.flat[first], first)}: {failures[first]}.",
                "Leave them out, or set on_error='nan' to get rows of NaN where some can be used.",
            )

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns, NODE_0, NODE_1 …, as an object array; needs `fit`."""
        check_is_fitted(self, "n_features_out_")
        return np.array([f"{self.node}_{i}" for i in range(self.n_features_out_)], object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags

    def _features(self, files: ContentFiles, keys: list[str]) -> tuple[np.ndarray, dict[str, str]]:
        """Return the features (n·M, D) of images by key, and why those of some keys are missing."""
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.turn"):  # other processes wait, and find the rows afterwards
            self.notes_: list[Note] = self._compute(path, files)
            with FeatureCache(path) as cache:
                rows = cache.features(self._node_of(cache))
                index_of = {bytes(digest).hex(): i for i, digest in enumerate(cache.images.digest)}
                features = np.full((len(keys), rows.shape[1]), np.nan, np.float32)
                present = np.array([key in index_of for key in keys])
                features[present] = rows.take(np.array([index_of[key] for key in keys if key in index_of]))
                reasons = {key: cache.failures.get(key, "has changed while it was read") for key in keys}
        return features, {key: reason for key, reason in reasons.items() if key and key not in index_of}

    def _compute(self, path: Path, files: ContentFiles) -> list[Note]:
        """Add to the cache what it lacks, and return the notes of that. Raises CacheError and the like."""
        config, cached = self._config(), set[str]()
        try:
            with FeatureCache(path) as cache:
                self._require_same(cache, config)
                digests = {bytes(digest).hex() for digest in cache.images.digest}
                cached = digests | set(cache.failures) if cache.source_root == ROOT else digests
                lacking = files.readers.keys() - cached
                if cache.finished and not lacking:
                    return []
                if cache.source_root != ROOT:
                    raise CacheError(
                        f"{path} was extracted from {cache.source} and lacks {len(lacking)} of the "
                        f"{counted(len(files.readers), 'image')} of X; FeatureExtractor does not change it.",
                        "Give a folder as cache.",
                    )
        except CacheError:
            if path.exists():
                raise
        return run_extraction(content_source(files, cached), path, config).notes

    def _require_same(self, cache: FeatureCache, config: ExtractConfig) -> None:
        """Raise an error if a cache was made with other settings, or has no such node."""
        settings = resolve(config, cache.path, cache.spec, cache.nodes)
        if settings.added:
            cache.node(settings.added[0])
        self._node_of(cache)

    def _node_of(self, cache: FeatureCache) -> str:
        """Return the cache's name of the node. Raises CacheError if it is a map."""
        name = next(iter(cache.nodes)) if cache.source_root == ROOT else self.node
        if cache.node(name).is_map:
            raise CacheError(f"Node {self.node!r} is a map; features need a vector.", f"Use {self.node}@avg.")
        return name

    def _config(self) -> ExtractConfig:
        """Return the settings as those of an extraction."""
        if self.node.endswith("@none"):
            raise CacheError(f"Node {self.node!r} is a map; features need a vector.", "Use a pool, as @avg.")
        return ExtractConfig(
            backbone=self.backbone,
            weights=self.weights,
            nodes=(self.node,),
            dtype=self.dtype,
            image_size=self.image_size,
            crop=self.crop,
            decoding=self.decoding,
            in_channels=self.in_channels,
            depth=self.depth,
            seed=self.seed,
            trust_code=self.trust_code,
            engine=EngineConfig(
                engine=self.engine,
                precision=self.precision,
                device=self.device,
                batch_size=self.batch_size,
                workers=self.workers,
            ),
        )

    def _path(self) -> Path:
        """Return the path of the cache file."""
        named = Path("cache" if self.cache is None else self.cache)
        if isinstance(path_of(named), RemotePath):
            raise CacheError(
                f"FeatureExtractor keeps its cache on this machine; got {path_of(named)}.",
                "Give a folder or a file of this machine as cache.",
            )
        if named.suffix == ".h5":
            return named
        names = ("weights", "image_size", "crop", "in_channels", "depth", "seed")
        settings = [getattr(self, name) for name in names]
        if self.decoding not in (None, EXACT):
            settings.append(self.decoding)
        text = json.dumps([self.backbone, self.node, *settings, self.dtype, self.precision])
        name = re.sub(r"[^\w.@-]+", "-", f"{Path(self.backbone).name}--{self.node}")
        return named / f"{name}--{hashlib.sha256(text.encode()).hexdigest()[:8]}.h5"


def _nan_note(failures: Collection[int], images: np.ndarray) -> Note:
    """Return the note on images whose features are NaN."""
    first = min(failures)
    return Note(
        "rows-of-nan",
        f"{len(failures)} of {counted(images.size, 'image')} cannot be used and "
        f"{verb(len(failures), 'has', 'have')} features of NaN; the first is "
        f"{described(images.flat[first], first)}.",
        True,
        {"images": sorted(failures)},
    )
