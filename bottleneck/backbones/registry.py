"""Backbones by name: the embedded one, torchvision's, timm's, the small CNN and a user's own.

efficientnet_lite0 · resnet50 · resnet50:IMAGENET1K_V1 · timm/NAME[.TAG] · small_cnn · package.module:f
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bottleneck.backbones import efficientnet_lite, small_cnn, timm_models, torchvision_models
from bottleneck.backbones.architecture import Architecture
from bottleneck.backbones.backbone import Backbone, state_sha256
from bottleneck.backbones.calibrate import set_statistics
from bottleneck.backbones.channels import adapt_channels
from bottleneck.backbones.recipe import (
    DEFAULT,
    PUBLISHED,
    file_sha256,
    is_weights_file,
    names_code,
    split_name,
)
from bottleneck.backbones.shapes import on_meta
from bottleneck.backbones.user_code import user_network
from bottleneck.backbones.weights import classes_in, load_weights, read_weights
from bottleneck.errors import BackboneError


def load_backbone(
    name: str = DEFAULT,
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
    name: str = DEFAULT, *, in_channels: int = 3, depth: int | None = None, trust_code: bool = False
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
    *,
    weights: str | None = None,
    statistics: Mapping[str, np.ndarray] | None = None,
    trust_code: bool = False,
) -> Backbone:
    """Rebuild the network that a cache, a head or a model names, and check that it is the same.

    Parameters
    ----------
    weights : str, optional
        The weights file, where the recipe says "file".
    statistics : mapping of str to ndarray, optional
        BatchNorm's, where the recipe says "calibrated" (see `calibrate.statistics`).
    trust_code : bool
        Whether code that the recipe names may be imported: only on the user's own word.

    Raises
    ------
    BackboneError
        If it cannot be built, or its weights are others.
    """
    name, kept = recipe.get("name"), recipe.get("weights")
    if not isinstance(name, str) or not isinstance(kept, str):
        raise BackboneError(f"The recipe {recipe} names no backbone and weights.")
    if kept == "file" and weights is None:
        raise BackboneError(
            f"The weights of {name} came from a file (sha256 {recipe.get('file_sha256')}).",
            "Give it with --weights FILE.",
        )
    backbone = load_backbone(
        name,
        weights={"file": weights, "module": None}.get(kept, kept),
        seed=recipe.get("seed", 0),
        in_channels=recipe.get("in_channels", 3),
        depth=recipe.get("depth"),
        trust_code=trust_code,
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
