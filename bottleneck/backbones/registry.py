"""What backbones can be had: names, weights, published accuracy, size, feature width.

A user's own network as a backbone: `package.module:function`, imported only where that is permitted.

Backbones by name: the embedded one, torchvision's, timm's, the small CNN and a user's own.

efficientnet_lite0 · resnet50 · resnet50:IMAGENET1K_V1 · timm/NAME[.TAG] · small_cnn · package.module:f
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision.models as zoo
from torch import nn
from torch.overrides import TorchFunctionMode

from bottleneck.backbones.backbone import Backbone, state_sha256
from bottleneck.backbones.batchnorm import set_statistics
from bottleneck.backbones.channels import adapt_channels
from bottleneck.backbones.families import efficientnet_lite, small_cnn, timm_models, torchvision_models
from bottleneck.backbones.families.architecture import IMAGENET_MEAN, IMAGENET_STD, Architecture
from bottleneck.backbones.graph import on_meta
from bottleneck.backbones.recipe import (
    NO_OPTIONS,
    PUBLISHED,
    LoadOptions,
    file_sha256,
    is_weights_file,
    names_code,
    split_name,
)
from bottleneck.backbones.weights import classes_in, load_weights, read_weights
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError
from bottleneck.names import DEFAULT_BACKBONE


def user_network(name: str, weights: str | None, *, trust_code: bool) -> Architecture:
    """The network that calling `function()` gives: an `nn.Module`, or a `Backbone` for its own preprocessing.

    A bare module is taken to want 224 × 224 RGB pixels in ImageNet's normalisation.

    Raises
    ------
    BackboneError
        If `trust_code` is false (nothing is imported then), if published weights are asked for, or if the
        function cannot be found or fails.
    """
    if not trust_code:
        raise BackboneError(
            f"The backbone is code, {name}; it is not imported on a file's word.",
            "If you trust it, add --trust-code.",
        )
    if weights is not None:
        raise BackboneError(f"{name} has no weights {weights!r}; expected what the code brings, or a file.")
    made = _call(name)
    if isinstance(made, Backbone):
        return Architecture(
            name, lambda classes: made.module, made.preprocess, "module", class_names=made.class_names
        )
    preprocess = Preprocess(224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    return Architecture(name, lambda classes: made, preprocess, "module")


def _call(name: str) -> nn.Module | Backbone:
    path, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(import_module(path), function)()
    except Exception as error:
        raise BackboneError(f"{name} gave no network: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.pop(0)
    if not isinstance(made, nn.Module | Backbone):
        raise BackboneError(f"{name} returned a {type(made).__name__}, expected an nn.Module or a Backbone.")
    return made


def load_backbone(
    name: str = DEFAULT_BACKBONE,
    *,
    weights: str | None = None,
    seed: int = 0,
    in_channels: int = 3,
    depth: int | None = None,
    trust_code: bool = False,
) -> Backbone:
    """Build a network with its weights.

    Parameters
    ----------
    name : str
        See the head of this module.
    weights : str, optional
        A published id, "none" for random ones, or a .pth or .safetensors file; the published default by
        default.
    seed : int
        Of random weights.
    in_channels : {3, 1, 4}
        Channels of the images that it takes; the first layer is adapted (see `channels`).
    depth : int, optional
        Blocks of `small_cnn`, 4 by default.
    trust_code : bool
        Whether `package.module:function` may be imported and run.

    Raises
    ------
    BackboneError
        Unknown name or weights, weights that cannot be had or do not fit, code that may not be run.
    """
    bare, tag = split_name(name)
    weights = weights or tag
    weights = None if weights in PUBLISHED else weights
    file = weights if weights is not None and is_weights_file(weights) else None
    with _seeded(seed):
        published = tag if file else weights
        published = None if published == "none" else published
        architecture = _architecture(bare, published, in_channels, depth, trust_code)
        if file:
            module, class_names = _from_file(architecture, file)
            source = {"weights": "file", "file_sha256": file_sha256(file)}
        elif weights == "none" or architecture.published is None:
            module = architecture.build(None)
            class_names = architecture.class_names if weights is None else None
            source = {"weights": weights or architecture.weights, "seed": seed}
        else:
            module, class_names = _without_filling(architecture), architecture.class_names
            load_weights(module, architecture.published(), architecture.weights, architecture.name)
            source = {"weights": architecture.weights}
    preprocess = adapt_channels(module, architecture.preprocess, in_channels)
    recipe = {"name": architecture.name, **source, "weights_sha256": state_sha256(module)}
    recipe["in_channels"] = in_channels
    if isinstance(module, small_cnn.SmallCNN):
        recipe["depth"] = module.depth
    return Backbone(architecture.name, module, preprocess, recipe, class_names)


def outline(
    name: str = DEFAULT_BACKBONE, *, in_channels: int = 3, depth: int | None = None, trust_code: bool = False
) -> Backbone:
    """The architecture alone: blocks, nodes, shapes and counts, but no weights (its tensors are on `meta`).

    Parameters and errors as in `load_backbone`.
    """
    bare, tag = split_name(name)
    architecture = _architecture(bare, None if tag == "none" else tag, in_channels, depth, trust_code)
    adapted = in_channels != architecture.preprocess.channels  # which takes values, not only shapes
    module = _without_filling(architecture) if adapted else _on_meta(architecture)
    preprocess = adapt_channels(module, architecture.preprocess, in_channels)
    record = {
        "name": architecture.name,
        "weights": architecture.weights,
        "in_channels": in_channels,
    }
    return Backbone(architecture.name, on_meta(module), preprocess, record, architecture.class_names)


def load_from_recipe(
    recipe: dict,
    options: LoadOptions = NO_OPTIONS,
    *,
    statistics: Mapping[str, np.ndarray] | None = None,
) -> Backbone:
    """Rebuild the network that a cache, a head or a model names, and check that it is the same.

    Parameters
    ----------
    options : LoadOptions
        The weights file, where the recipe's weights are "file"; the permission to import code.
    statistics : mapping of str to ndarray, optional
        BatchNorm's, where the recipe says "calibrated" (see `batchnorm.statistics`).

    Raises
    ------
    BackboneError
        If it cannot be built, or its weights are others.
    """
    name, kept = recipe.get("name"), recipe.get("weights")
    if not isinstance(name, str) or not isinstance(kept, str):
        raise BackboneError(f"The recipe {recipe} names no backbone and weights.")
    if kept == "file" and options.weights is None:
        raise BackboneError(
            f"The weights of {name} came from a file (sha256 {recipe.get('file_sha256')}).",
            "Give it with --weights FILE.",
        )
    backbone = load_backbone(
        name,
        weights={"file": options.weights, "module": None}.get(kept, kept),
        seed=recipe.get("seed", 0),
        in_channels=recipe.get("in_channels", 3),
        depth=recipe.get("depth"),
        trust_code=options.trust_code,
    )
    if recipe.get("calibrated"):
        if statistics is None:
            raise BackboneError(f"The BatchNorm statistics of the random {name} are missing.")
        set_statistics(backbone.module, statistics)
        backbone.recipe |= {"calibrated": True, "weights_sha256": state_sha256(backbone.module)}
    if backbone.recipe != recipe:
        differing = [k for k in {**backbone.recipe, **recipe} if backbone.recipe.get(k) != recipe.get(k)]
        raise BackboneError(
            f"{name} was rebuilt, but it is not the recorded network: {', '.join(differing)} differ.",
            "Its weights file, the library that published it or the code behind it has changed.",
        )
    return backbone


def _architecture(
    name: str, weights: str | None, in_channels: int, depth: int | None, trust_code: bool
) -> Architecture:
    """The family's word on `name`, with its published weights `weights`."""
    if depth is not None and name != small_cnn.NAME:
        raise BackboneError(f"--depth is for {small_cnn.NAME}; {name} has the depth of its name.")
    known = [efficientnet_lite.NAME, small_cnn.NAME, *torchvision_models.names(), *timm_models.names()]
    head, _, tail = name.partition(":")
    if names_code(name) and head in known:  # a misspelt weights id; the family names its own
        return _architecture(head, tail, in_channels, depth, trust_code)
    if names_code(name):
        return user_network(name, weights, trust_code=trust_code)
    if name == small_cnn.NAME:
        return small_cnn.small_cnn(weights, in_channels, depth)
    if name == efficientnet_lite.NAME:
        return efficientnet_lite.efficientnet_lite0(weights)
    if name.startswith(timm_models.PREFIX) and name in timm_models.names():
        return timm_models.timm_model(name, weights)
    if name in torchvision_models.names():
        return torchvision_models.torchvision_model(name, weights)
    close = get_close_matches(name, known, n=4, cutoff=0.5)
    raise BackboneError(
        f"There is no backbone {name!r}" + (f"; close ones are {', '.join(close)}." if close else "."),
        "bottleneck backbones lists them all.",
    )


def _on_meta(architecture: Architecture) -> nn.Module:
    """Built without filling any tensor, where the family's code allows it."""
    try:
        with torch.device("meta"):
            return architecture.build(None)
    except (NotImplementedError, RuntimeError):
        return _without_filling(architecture)  # it reads values of tensors while it builds


def _without_filling(architecture: Architecture, classes: int | None = None) -> nn.Module:
    """Built without random numbers, which take longer than all else and would be overwritten."""
    with _SkipRandom():
        return architecture.build(classes)


class _SkipRandom(TorchFunctionMode):
    """Within this context, tensors are not filled with random numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "erfinv_"):
            return args[0] if args else kwargs["tensor"]  # a method of Tensor, or a function of torch.nn.init
        return func(*args, **(kwargs or {}))


def _from_file(architecture: Architecture, file: str) -> tuple[nn.Module, tuple[str, ...] | None]:
    """The network with the weights of a file, and the file's number of classes where only that differs."""
    state = read_weights(file)
    module, class_names = _without_filling(architecture), architecture.class_names
    classes = classes_in(module, state)
    if classes is not None:
        module, class_names = _without_filling(architecture, classes), None
    load_weights(module, state, file, architecture.name)
    return module, class_names


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random weights depend on `seed` alone, and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# Building an architecture, which feature width and timm's parameter counts need, takes up to a second.
MOST_OPENED = 24


@dataclass(frozen=True)
class Listed:
    """A network with one set of weights.

    accuracy : published top-1 on ImageNet-1k in percent, where the library says it.
    parameters, features : None where too many are listed to open each.
    """

    name: str
    weights: str
    accuracy: float | None
    parameters: int | None
    features: int | None = None


def available(pattern: str | None = None) -> list[Listed]:
    """Backbones whose name contains `pattern` or matches it as a wildcard; without one, all but timm's.

    Raises
    ------
    BackboneError
        If nothing matches.
    """
    found = [entry for entry in _all(pattern) if _matches(entry.name, pattern)]
    if not found:
        raise BackboneError(f"No backbone matches {pattern!r}.", "Try a shorter part of the name, or timm/*.")
    names = dict.fromkeys(entry.name for entry in found)
    if len(names) > MOST_OPENED:
        return found
    opened = {name: outline(name) for name in names}
    widths = {name: backbone.num_features for name, backbone in opened.items()}
    sizes = {name: sum(p.numel() for p in backbone.module.parameters()) for name, backbone in opened.items()}
    return [
        replace(entry, features=widths[entry.name], parameters=entry.parameters or sizes[entry.name])
        for entry in found
    ]


def timm_count() -> int:
    """How many architectures timm adds."""
    return len(timm_models.names())


def _all(pattern: str | None) -> Iterator[Listed]:
    # 75.1: https://github.com/tensorflow/tpu, efficientnet/lite
    yield Listed(efficientnet_lite.NAME, "embedded", 75.1, 4_652_008)
    yield Listed(small_cnn.NAME, "none", None, None)
    for name in torchvision_models.names():
        for weights in zoo.get_model_weights(name):
            metrics = weights.meta["_metrics"].get("ImageNet-1K", {})
            yield Listed(name, weights.name, metrics.get("acc@1"), weights.meta["num_params"])
    if pattern:
        for name in timm.list_models(pretrained=True, include_tags=True):
            architecture, _, tag = name.partition(".")
            yield Listed(timm_models.PREFIX + architecture, tag or "published", None, None)


def _matches(name: str, pattern: str | None) -> bool:
    return not pattern or pattern in name or fnmatch(name, pattern)
