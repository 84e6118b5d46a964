"""torchvision's classification networks by their torchvision names, with the weights ids of its enums.

The transforms of the weights are the preprocessing. Auxiliary classifiers (GoogLeNet, Inception) are used in
training only and are left out.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from bottleneck.backbones.families.architecture import (
    USUAL_PREPROCESS,
    Architecture,
    require_whole_patches,
)
from bottleneck.backbones.listed import Listed
from bottleneck.backbones.weights import read_weights
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError

POSITIONS = "encoder.pos_embedding"
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# DenseNet's published files write `norm.1` for the module's `norm1`.
_DENSENET_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")


def names() -> list[str]:
    """Names of all networks, sorted."""
    return zoo.list_models(module=zoo)


def listed() -> Iterator[Listed]:
    """A row for each network and set of weights."""
    for name in names():
        for weights in zoo.get_model_weights(name):
            metrics = weights.meta["_metrics"].get("ImageNet-1K", {})
            yield Listed(name, weights.name, metrics.get("acc@1"), weights.meta["num_params"])


def architecture(
    name: str,
    weights: str | None = None,
    *,
    in_channels: int = 3,
    depth: int | None = None,
    image_size: int | None = None,
) -> Architecture:
    """One of torchvision's networks; `weights` is a member of its enum, such as "IMAGENET1K_V1"."""
    members = zoo.get_model_weights(name).__members__
    if weights is not None and weights not in members:
        choices = [member for member in members if member != "DEFAULT"]
        raise BackboneError(
            f"{name} has no weights {weights!r}; expected {', '.join(choices)}, none or a file."
        )
    entry = members.get(weights or "DEFAULT")  # None if the library publishes no weights
    preprocess = _preprocess(name, entry)
    size = preprocess.size
    if image_size and image_size != size and name.startswith("vit_"):
        size = image_size
        require_whole_patches(name, size, int(name.rpartition("_")[2]))
    return Architecture(
        name=name,
        build=lambda classes: _build(name, size, classes),
        preprocess=preprocess.override(size),
        weights=entry.name if entry else "none",
        published=(lambda: _published(name, entry, size)) if entry else None,
        class_names=tuple(entry.meta["categories"]) if entry else None,
        image_size=size if size != preprocess.size else None,
        respelt=partial(_respelt, size=size),
    )


def _build(name: str, size: int, classes: int | None) -> nn.Module:
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):  # its position embedding has the size of its images
        options["image_size"] = size
    if classes:
        options["num_classes"] = classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zoo.get_model(name, weights=None, **options)


def _preprocess(name: str, entry: zoo.WeightsEnum | None) -> Preprocess:
    if entry is None:
        return USUAL_PREPROCESS
    published = entry.transforms()
    # Inside these two networks, `transform_input` replaces ImageNet's normalisation by (x − 0.5) / 0.5. Here
    # the modules are built without it, and the pixels are normalised so from the start.
    halves = name in ("googlenet", "inception_v3")
    return Preprocess(
        size=published.crop_size[0],
        resize=published.resize_size[0],
        interpolation=published.interpolation.value,
        mean=(0.5,) * 3 if halves else tuple(published.mean),
        std=(0.5,) * 3 if halves else tuple(published.std),
    )


def _published(name: str, entry: zoo.WeightsEnum, size: int) -> OrderedDict[str, Tensor]:
    """The published weights from torch hub's folder; downloaded into it if missing, as torchvision does."""
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
    return _respelt(read_weights(file), size=size)


def _respelt(
    state: Mapping[str, Tensor], module: nn.Module | None = None, *, size: int
) -> OrderedDict[str, Tensor]:
    """The published entries under the module's names, without auxiliary classifiers.

    The position embedding of a vision transformer is resampled for images of `size` pixels a side.
    """
    names = {key: _DENSENET_LAYER.sub(r"\1\2", key) for key in state if not key.startswith(_AUXILIARY)}
    respelt = OrderedDict((name, state[key]) for key, name in names.items())
    if hasattr(state, "_metadata"):
        respelt._metadata = state._metadata  # type: ignore[attr-defined]  # torch stores module versions so
    if POSITIONS in respelt:
        patch = respelt["conv_proj.weight"].shape[-1]
        respelt = interpolate_embeddings(size, patch, respelt)
    return respelt
