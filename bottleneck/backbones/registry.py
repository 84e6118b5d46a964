"""Backbones by name: build one, rebuild the one that a file recorded. `listing` lists them.

    efficientnet_lite0 · resnet50 · resnet50:IMAGENET1K_V1 · timm/NAME[.TAG] · small_cnn · package.module:f

`families` knows the networks; this module adds weights, image channels and the recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bottleneck.backbones.backbone import Backbone, in_float32, state_sha256
from bottleneck.backbones.batchnorm import set_statistics
from bottleneck.backbones.families import efficientnet_lite, small_cnn, timm_models, torchvision_models
from bottleneck.backbones.families.architecture import USUAL_PREPROCESS, Architecture, Family
from bottleneck.backbones.fit_weights import FittedWeights, load_file
from bottleneck.backbones.graph import on_meta
from bottleneck.backbones.recipe import (
    NO_OPTIONS,
    PUBLISHED,
    LoadOptions,
    file_sha256,
    is_weights_file,
    names_code,
    require_recipe,
    split_name,
)
from bottleneck.backbones.weights import adapt_channels, load_weights
from bottleneck.errors import BackboneError
from bottleneck.names import DEFAULT_BACKBONE, DEFAULT_CHANNELS

FAMILIES: tuple[Family, ...] = (efficientnet_lite, small_cnn, torchvision_models, timm_models)


def load_backbone(
    name: str = DEFAULT_BACKBONE,
    *,
    weights: str | None = None,
    seed: int = 0,
    in_channels: int = DEFAULT_CHANNELS,
    depth: int | None = None,
    image_size: int | None = None,
    trust_code: bool = False,
) -> Backbone:
    """Build a network with its weights.

    Parameters
    ----------
    name : str
        As in the docstring of this module.
    weights : str, optional
        A published id, "none" for random weights, or a .pth or .safetensors file; by default the family's
        default.
    seed : int
        Of random weights.
    in_channels : {3, 1, 4}
        Channels of the images; the first layer is adapted to them (see `weights`).
    depth : int, optional
        Number of blocks of `small_cnn`.
    image_size : int, optional
        Side in pixels that a network is built for, if not its published one: a vision transformer, whose
        position embedding is resampled to the grid of patches, or the classifier of `small_cnn`. Others
        take images of any size, and ignore it.
    trust_code : bool
        Whether `package.module:function` may be imported and run.

    Raises
    ------
    BackboneError
        Unknown name or weights, weights that cannot be obtained or do not fit, code that may not be run.
    """
    bare, tag = split_name(name)
    weights = weights or tag
    weights = None if weights in PUBLISHED else weights
    file = weights if weights is not None and is_weights_file(weights) else None
    with _seeded(seed):
        published = tag if file else weights
        published = None if published == "none" else published
        architecture = _architecture(bare, published, in_channels, depth, image_size, trust_code)
        fitted, source = _with_weights(architecture, weights, file, seed, in_channels)
    notes = (*fitted.notes, *in_float32(fitted.module))
    preprocess = adapt_channels(fitted.module, fitted.preprocess, in_channels)
    sizes = {"depth": architecture.depth, "image_size": architecture.image_size}
    recipe = {
        "name": architecture.name,
        **source,
        "weights_sha256": state_sha256(fitted.module),
        "in_channels": in_channels,
        **{name: value for name, value in sizes.items() if value is not None},
    }
    class_names = architecture.class_names if fitted.published_classes else None
    return Backbone(
        architecture.name,
        fitted.module,
        preprocess,
        recipe,
        class_names,
        untrained=fitted.untrained,
        notes=notes,
    )


def _with_weights(
    architecture: Architecture, weights: str | None, file: str | None, seed: int, in_channels: int
) -> tuple[FittedWeights, dict[str, Any]]:
    """Return the network with weights of a file, with random or published ones; and what the recipe says."""
    if file:
        fitted = load_file(architecture, file, in_channels)
        return fitted, {"weights": "file", "file_sha256": file_sha256(file)}
    if weights == "none" or architecture.published is None:
        module, is_default = architecture.build(None), weights is None
        recipe = {"weights": weights or architecture.weights, "seed": seed}
        return FittedWeights(module, architecture.preprocess, published_classes=is_default), recipe
    module = architecture.build_unfilled()
    load_weights(module, architecture.published(), architecture.weights, architecture.name)
    return FittedWeights(module, architecture.preprocess, True), {"weights": architecture.weights}


def outline(
    name: str = DEFAULT_BACKBONE,
    *,
    in_channels: int = DEFAULT_CHANNELS,
    depth: int | None = None,
    image_size: int | None = None,
    trust_code: bool = False,
) -> Backbone:
    """The architecture alone: blocks, nodes, shapes and counts, but no weights (its tensors are on `meta`).

    Parameters and errors as in `load_backbone`.
    """
    bare, tag = split_name(name)
    published = None if tag == "none" else tag
    architecture = _architecture(bare, published, in_channels, depth, image_size, trust_code)
    if in_channels == architecture.preprocess.channels:
        module = architecture.build_on_meta()
    else:
        module = architecture.build_unfilled()  # adapting the first layer needs values, not only shapes
    notes = in_float32(module)
    preprocess = adapt_channels(module, architecture.preprocess, in_channels)
    record = {"name": architecture.name, "weights": architecture.weights, "in_channels": in_channels}
    return Backbone(
        architecture.name, on_meta(module), preprocess, record, architecture.class_names, notes=notes
    )


def load_from_recipe(
    recipe: dict,
    options: LoadOptions = NO_OPTIONS,
    *,
    statistics: Mapping[str, np.ndarray] | None = None,
) -> Backbone:
    """Rebuild the network that a cache, a head or a model recorded, and check that it is the same.

    Parameters
    ----------
    options : LoadOptions
        The weights file, if the recipe's weights are "file"; the permission to import code.
    statistics : mapping of str to ndarray, optional
        BatchNorm's, if the recipe says "calibrated" (see `batchnorm.statistics`).

    Raises
    ------
    BackboneError
        It cannot be built, or the result differs from the recipe.
    """
    require_recipe(recipe)
    name, recorded = recipe["name"], recipe["weights"]
    if recorded == "file" and options.weights is None:
        raise BackboneError(
            f"The weights of {name} came from a file (sha256 {recipe.get('file_sha256')}).",
            "Give it with --weights FILE.",
        )
    backbone = load_backbone(
        name,
        weights={"file": options.weights, "module": None}.get(recorded, recorded),
        seed=recipe.get("seed", 0),
        in_channels=recipe.get("in_channels", 3),
        depth=recipe.get("depth"),
        image_size=recipe.get("image_size"),
        trust_code=options.trust_code,
    )
    if recipe.get("calibrated"):
        if statistics is None:
            raise BackboneError(f"The BatchNorm statistics of the random {name} are missing.")
        set_statistics(backbone, statistics)
    if backbone.recipe != recipe:
        differing = [k for k in {**backbone.recipe, **recipe} if backbone.recipe.get(k) != recipe.get(k)]
        raise BackboneError(
            f"{name} was rebuilt, but it is not the recorded network: {', '.join(differing)} differ.",
            "Its weights file, the library that published it or the code behind it has changed.",
        )
    return backbone


def new_classifier(name: str, inputs: int, classes: int) -> nn.Sequential:
    """The layers that are trained from random weights on the features of `name`; two classes share one logit.

    inputs : the features of all images of a sample and its covariates, M·D + P numbers
    """
    if name == small_cnn.NAME:
        return small_cnn.classifier(inputs, classes)
    return nn.Sequential(nn.Linear(inputs, 1 if classes == 2 else classes))


def _architecture(
    name: str,
    weights: str | None,
    in_channels: int,
    depth: int | None,
    image_size: int | None,
    trust_code: bool,
) -> Architecture:
    """The architecture called `name`, with its published weights `weights`."""
    if depth is not None and name != small_cnn.NAME:
        raise BackboneError(f"--depth is for {small_cnn.NAME}; {name} has the depth of its name.")
    family_of = {known: family for family in FAMILIES for known in family.names()}
    head, _, tail = name.partition(":")
    if names_code(name) and head in family_of:  # a misspelt weights id: the family lists the right ones
        name, weights = head, tail
    if names_code(name):
        return _user_code(name, weights, trust_code)
    if name in family_of:
        return family_of[name].architecture(
            name, weights, in_channels=in_channels, depth=depth, image_size=image_size
        )
    close = get_close_matches(name, family_of, n=4, cutoff=0.5)
    raise BackboneError(
        f"There is no backbone {name!r}" + (f"; close ones are {', '.join(close)}." if close else "."),
        "bottleneck backbones lists them all.",
    )


def _user_code(name: str, weights: str | None, trust_code: bool) -> Architecture:
    """The network that a user's function returns: an `nn.Module`, or a `Backbone` with its own preprocessing.

    A bare module is assumed to take 224 × 224 RGB pixels with ImageNet's normalisation.

    Raises
    ------
    BackboneError
        If `trust_code` is false (nothing is imported then), if published weights are requested, or if the
        function does not exist or fails.
    """
    if not trust_code:
        raise BackboneError(
            f"The backbone is code, {name}, which is not imported without your permission.",
            "If you trust it, add --trust-code.",
        )
    if weights is not None:
        raise BackboneError(f"{name} has no weights {weights!r}; expected what the code brings, or a file.")
    network = _call(name)
    if isinstance(network, Backbone):
        module, preprocess, class_names = network.module, network.preprocess, network.class_names
    else:
        module, preprocess, class_names = network, USUAL_PREPROCESS, None
    return Architecture(name, lambda classes: module, preprocess, "module", class_names=class_names)


def _call(name: str) -> nn.Module | Backbone:
    path, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        network = getattr(import_module(path), function)()
    except Exception as error:
        raise BackboneError(f"{name} gave no network: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.pop(0)
    if not isinstance(network, nn.Module | Backbone):
        raise BackboneError(
            f"{name} returned a {type(network).__name__}, expected an nn.Module or a Backbone."
        )
    return network


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw random weights from `seed` alone, and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
