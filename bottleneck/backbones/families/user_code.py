"""A user's own network as a backbone: `package.module:function`, imported only if the user allows it."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from torch import nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.families.architecture import USUAL_PREPROCESS, Architecture
from bottleneck.errors import BackboneError


def architecture(name: str, weights: str | None, *, trust_code: bool) -> Architecture:
    """The network that `function()` returns: an `nn.Module`, or a `Backbone` to define the preprocessing too.

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
