"""A user's own network as a backbone: `package.module:function`, imported only where that is permitted."""

import sys
from importlib import import_module
from pathlib import Path

from torch import nn

from bottleneck.backbones.architecture import IMAGENET_MEAN, IMAGENET_STD, Architecture
from bottleneck.backbones.backbone import Backbone
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError


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
