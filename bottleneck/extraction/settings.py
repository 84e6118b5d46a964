"""What one extraction is asked to do, and how that stands to the cache that is there.

Flags left out adopt what the cache has; a flag that differs is refused, all differing fields named at once.

Shapes: B images of a batch, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save

from bottleneck.backbones.model_file import holds_network
from bottleneck.backbones.recipe import LoadOptions, request_differences
from bottleneck.data.augment import ViewRecipe
from bottleneck.data.loader import readable_pixels
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source
from bottleneck.engines.device import resolve_device
from bottleneck.errors import BackboneError, CacheError
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.pipeline import BATCH_SIZE, Trunk
from bottleneck.files import write_whole
from bottleneck.heads.artifact import load_head
from bottleneck.names import BOTTLENECK, DEFAULT_BACKBONE
from bottleneck.store.layout import parts_folder
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import CacheSpec, NodeSpec, require_equal

if TYPE_CHECKING:
    from bottleneck.backbones.backbone import Backbone

CALIBRATION_IMAGES = 128
HINT_OTHER_CACHE = "Leave the flag out to use the cache's own setting, or write another cache with -o."


class Request:
    """What is asked for, held against what the cache at `path` has.

    Attributes
    ----------
    spec : CacheSpec, nodes : list of NodeSpec
        For the writer.
    trunk : Trunk
        Loads the backbone only when something has to be computed.

    Raises
    ------
    FingerprintError
        A flag differs from what the cache was made with.
    BackboneError, EngineError, SourceError
    """

    def __init__(self, config: ExtractConfig, source: Source, path: Path) -> None:
        self.config, self.preprocess = _opened(config)
        self.source, self.path = source, path
        existing = _open_existing(path)
        if existing is None:
            self._begin()
        else:
            with existing:
                self._adopt(existing)

    def _begin(self) -> None:
        """A new cache: the recipe comes from the flags."""
        config = self.config
        self.trunk = Trunk(self._load_requested, None, config.engine)
        backbone = self.trunk.backbone
        own = self.preprocess or backbone.preprocess
        self.trunk.preprocess_override = own.override(config.image_size, config.crop)
        if backbone.recipe["weights"] == "none":
            self._calibrate(backbone)
        self.spec = CacheSpec(backbone=backbone.recipe, preprocess=self.trunk.preprocess.to_json())
        views = ViewRecipe(config.views, seed=config.seed or 0).to_json() if config.views else None
        names = config.node_names or (BOTTLENECK,)
        self.nodes = self._new_nodes(names, config.engine.precision, views)

    def _adopt(self, cache: FeatureCache) -> None:
        """An existing cache: flags left out take its values, a flag that differs is refused."""
        config = self.config
        self.spec = cache.spec
        preprocess = Preprocess.from_json(cache.spec.preprocess)
        cached = dict(cache.nodes)
        self._refuse_differences(preprocess, cached)
        precision = next(node.precision for node in cached.values())
        self.trunk = Trunk(self._load_recorded, preprocess, replace(config.engine, precision=precision))
        self.trunk.calibrations = {name: node.calibration for name, node in cached.items()}
        names = config.node_names or tuple(cached)
        added = tuple(name for name in names if name not in cached)
        views = self._views_beside(cached)
        self.nodes = [
            replace(cached[name], views=cached[name].views or views) for name in names if name in cached
        ]
        self.nodes += self._new_nodes(added, precision, views) if added else []

    def _refuse_differences(self, preprocess: Preprocess, cached: dict[str, NodeSpec]) -> None:
        """Raise FingerprintError where a flag that was given differs from what the cache was made with.

        A node that is new may be stored in another type than those that are there.
        """
        config, recipe = self.config, self.spec.backbone
        stored = [cached[name].dtype for name in config.node_names or cached if name in cached]
        asked = {"dtype": config.dtype if stored else None, "precision": config.engine.precision}
        asked = {field: value for field, value in asked.items() if value not in (None, "auto")}
        there = {"dtype": next(iter(stored), None), "precision": next(iter(cached.values())).precision}
        there = {field: there[field] for field in asked}
        wanted = {
            "name": config.backbone,
            "weights": config.weights,
            "seed": config.seed,
            "in_channels": config.in_channels,
            "depth": config.depth,
        }
        for dotted in request_differences(recipe, **wanted):
            name = dotted.removeprefix("backbone.")
            asked[dotted], there[dotted] = wanted[name], recipe.get(name)
        require_equal(
            {"preprocess": preprocess.to_json(), **there},
            {"preprocess": preprocess.override(config.image_size, config.crop).to_json(), **asked},
            f"The cache {self.path}",
            HINT_OTHER_CACHE,
        )

    def _views_beside(self, cached: dict[str, NodeSpec]) -> dict | None:
        """The recipe of the views asked for; FingerprintError where nodes of the cache have other views.

        All nodes have the same views of an image, so that they are made once and belong together.
        """
        config = self.config
        if not config.views:
            return None
        there = next((node.views for node in cached.values() if node.views), None)
        if there is None:
            return ViewRecipe(config.views, seed=config.seed or 0).to_json()
        asked = {"count": config.views} | ({} if config.seed is None else {"seed": config.seed})
        require_equal({"views": there}, {"views": there | asked}, f"The cache {self.path}", HINT_OTHER_CACHE)
        return there

    def _load_requested(self) -> Backbone:
        from bottleneck.backbones.registry import load_backbone

        config = self.config
        return load_backbone(
            config.backbone or DEFAULT_BACKBONE,
            weights=config.weights,
            seed=config.seed or 0,
            in_channels=config.in_channels or 3,
            depth=config.depth,
            trust_code=config.trust_code,
        )

    def _load_recorded(self) -> Backbone:
        from bottleneck.backbones.registry import load_from_recipe

        recipe, statistics = self.spec.backbone, None
        if recipe.get("calibrated"):
            from bottleneck.backbones.batchnorm import read_statistics

            statistics = read_statistics(self.path)
        options = LoadOptions(self.config.weights, self.config.trust_code)
        return load_from_recipe(recipe, options, statistics=statistics)

    def _calibrate(self, backbone: Backbone) -> None:
        """Set a random network's BatchNorm statistics from the user's images; keep them beside the cache."""
        from bottleneck.backbones.batchnorm import calibrate_batchnorm, statistics, statistics_file

        calibrate_batchnorm(backbone, self._example(BATCH_SIZE), self.trunk.preprocess)
        path = statistics_file(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save(statistics(backbone)))

    def _new_nodes(self, names: Sequence[str], precision: str, views: dict | None) -> list[NodeSpec]:
        """Descriptions of nodes that the cache lacks. An int8 network is calibrated here, before any row."""
        config, backbone = self.config, self.trunk.backbone
        calibration = None
        if precision not in ("fp32", "auto") or resolve_device(config.engine.device) != "cpu":
            engine = self.trunk.engine(names, self._example(CALIBRATION_IMAGES))
            precision, calibration = engine.precision, engine.calibration
        specs = []
        for name in names:
            shape, layout = backbone.node_shape(name, self.trunk.preprocess)
            node, _, pool = name.partition("@")
            specs.append(
                NodeSpec(
                    node=backbone.resolve(node),
                    pool=pool or backbone.default_pool(node),
                    shape=shape,
                    dtype=config.dtype or "float16",
                    precision="fp32" if precision == "auto" else precision,
                    layout=layout,
                    views=views,
                    calibration=calibration,
                )
            )
        return specs

    def _example(self, count: int) -> np.ndarray:
        """Pixels (B, H, W, C) of up to `count` readable images, spread evenly over the source."""
        keys = self.source.images
        spread = [keys[i] for i in np.unique(np.linspace(0, len(keys) - 1, count).astype(int))]
        return readable_pixels(self.source, spread, self.trunk.preprocess, workers=1)


def _opened(config: ExtractConfig) -> tuple[ExtractConfig, Preprocess | None]:
    """A model file given as backbone stands for its architecture, its tensors and its preprocessing.

    Where it holds no network, training having kept the head, the published weights that it names are meant.
    """
    if config.backbone is None or not config.backbone.endswith(".safetensors"):
        return config, None
    head = load_head(config.backbone)
    recipe, weights = head.backbone, config.backbone
    if not holds_network(config.backbone):
        weights = recipe["weights"]
        if weights in ("none", "file", "module"):
            raise BackboneError(
                f"{config.backbone} holds a head and no network; that of {recipe['name']} is not published.",
                f"Name it: --backbone {recipe['name']} --weights {'none' if weights == 'none' else 'FILE'}.",
            )
    own = {name: recipe.get(name) for name in ("in_channels", "depth")}
    config = replace(config, backbone=recipe["name"], weights=weights, **own)
    return config, Preprocess.from_json(head.preprocess)


def _open_existing(path: Path) -> FeatureCache | None:
    """The cache to go on with: a finished file, or the parts of an interrupted run if any was committed."""
    if path.exists():
        return FeatureCache(path)
    if not parts_folder(path).exists():
        return None
    try:
        return FeatureCache(path)
    except CacheError:  # nothing was committed yet; what cannot be recovered the writer will say
        return None
