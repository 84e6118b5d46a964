"""Every network of timm as `timm/NAME`, with timm's data configuration and timm's downloads."""

import math
from collections import OrderedDict

import timm
from timm.data import resolve_data_config
from torch import Tensor, nn

from bottleneck.backbones.families.architecture import Architecture, imagenet_names
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError

PREFIX = "timm/"


def names() -> list[str]:
    """`timm/NAME` of all architectures, sorted."""
    return [PREFIX + name for name in timm.list_models()]


def timm_model(name: str, tag: str | None = None) -> Architecture:
    """One of timm's networks.

    Parameters
    ----------
    name : str
        With the prefix `timm/`, without a tag.
    tag : str, optional
        Which of its published weights, "a1_in1k"; timm's default by default.
    """
    bare = name.removeprefix(PREFIX)
    full = f"{bare}.{tag}" if tag else bare
    try:
        config = timm.get_pretrained_cfg(full, allow_unregistered=False)
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{bare}.*")]
        raise BackboneError(
            f"{name} has no weights {tag!r} in timm {timm.__version__}; "
            f"expected {', '.join(tags) or 'nothing published'}, none or a file."
        ) from error
    data = resolve_data_config({}, pretrained_cfg=config.to_dict())
    size = data["input_size"][-1]
    squash = data["crop_mode"] == "squash"
    return Architecture(
        name=name,
        build=lambda classes: _build(bare, classes),
        preprocess=Preprocess(
            size=size,
            resize=size if squash else max(size, math.floor(size / data["crop_pct"])),
            interpolation=data["interpolation"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            squash=squash,
        ),
        weights=(config.tag or "published") if config.has_weights else "none",
        published=(lambda: _published(full, config)) if config.has_weights else None,
        class_names=imagenet_names() if config.num_classes == 1000 else None,
    )


def _build(name: str, classes: int | None) -> nn.Module:
    return timm.create_model(name, **({"num_classes": classes} if classes else {}))


def _published(name: str, config) -> "OrderedDict[str, Tensor]":
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        wanted = f"{config.hf_hub_id} (model.safetensors)" if config.hf_hub_id else config.url
        raise BackboneError(
            f"The weights of timm/{name} cannot be had ({type(error).__name__}): {wanted} is wanted.",
            "Download it where there is a network and give it as --weights FILE, or fill the Hugging Face "
            "cache folder (HF_HUB_CACHE).",
        ) from error
