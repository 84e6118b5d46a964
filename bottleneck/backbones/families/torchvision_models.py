"""torchvision's classification networks by their torchvision names, weights by their enum.

The weights' own transforms are the preprocessing. Auxiliary classifiers (GoogLeNet, Inception) serve training
only and are left out.
"""

import os
import re
import sys
import warnings
from collections import OrderedDict
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision.models as zoo
from torch import Tensor, nn

from bottleneck.backbones.families.architecture import IMAGENET_MEAN, IMAGENET_STD, Architecture
from bottleneck.backbones.weights import read_weights
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# DenseNet's published files spell `norm.1` what the module calls `norm1`.
_DENSENET_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")


def names() -> list[str]:
    """All of them, sorted."""
    return zoo.list_models(module=zoo)


def torchvision_model(name: str, weights: str | None = None) -> Architecture:
    """One of torchvision's networks.

    Parameters
    ----------
    weights : str, optional
        Member of its weights enum, "IMAGENET1K_V1"; torchvision's default by default.
    """
    members = zoo.get_model_weights(name).__members__
    if weights is not None and weights not in members:
        choices = [member for member in members if member != "DEFAULT"]
        raise BackboneError(
            f"{name} has no weights {weights!r}; expected {', '.join(choices)}, none or a file."
        )
    entry = members.get(weights or "DEFAULT")  # None where the library publishes no weights
    return Architecture(
        name=name,
        build=lambda classes: _build(name, entry, classes),
        preprocess=_preprocess(name, entry),
        weights=entry.name if entry else "none",
        published=(lambda: _published(name, entry)) if entry else None,
        class_names=tuple(entry.meta["categories"]) if entry else None,
    )


def _build(name: str, entry: zoo.WeightsEnum | None, classes: int | None) -> nn.Module:
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit_") and entry:  # its position embedding has the size of its weights' images
        options["image_size"] = entry.meta["min_size"][0]
    if classes:
        options["num_classes"] = classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zoo.get_model(name, weights=None, **options)


def _preprocess(name: str, entry: zoo.WeightsEnum | None) -> Preprocess:
    if entry is None:
        return Preprocess(224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    published = entry.transforms()
    # These two undo the ImageNet normalisation inside the network (`transform_input`) in favour of their own,
    # (x − 0.5) / 0.5; here it is applied once.
    own = name in ("googlenet", "inception_v3")
    return Preprocess(
        size=published.crop_size[0],
        resize=published.resize_size[0],
        interpolation=published.interpolation.value,
        mean=(0.5,) * 3 if own else tuple(published.mean),
        std=(0.5,) * 3 if own else tuple(published.std),
    )


def _published(name: str, entry: zoo.WeightsEnum) -> "OrderedDict[str, Tensor]":
    """The published weights, from torch hub's folder or downloaded into it, as torchvision does."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(entry.url).path)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = torch.hub.HASH_REGEX.search(file.name)
        try:
            with redirect_stdout(sys.stderr):
                torch.hub.download_url_to_file(entry.url, str(file), digest and digest.group(1))
        except (OSError, RuntimeError) as error:
            raise BackboneError(
                f"The weights {entry.name} of {name} cannot be downloaded ({error}): {file.name} is wanted.",
                f"Put the file from {entry.url} at {file}, or give it as --weights FILE; "
                "efficientnet_lite0 needs no download.",
            ) from error
    state = read_weights(file)
    named = OrderedDict(
        (_DENSENET_LAYER.sub(r"\1\2", key), value)
        for key, value in state.items()
        if not key.startswith(_AUXILIARY)
    )
    if hasattr(state, "_metadata"):
        named._metadata = state._metadata
    return named
