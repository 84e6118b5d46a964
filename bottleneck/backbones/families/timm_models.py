"""Every network of timm as `timm/NAME`, with timm's data configuration and timm's downloads."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import timm
from timm.data.config import resolve_data_config
from timm.models import PretrainedCfg
from torch import Tensor, nn

from bottleneck.backbones.families.architecture import (
    Architecture,
    imagenet_names,
    require_whole_patches,
)
from bottleneck.backbones.listed import TIMM, Listed
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError


def names() -> list[str]:
    """`timm/NAME` of all architectures, sorted."""
    return [TIMM + name for name in timm.list_models()]


def listed() -> Iterator[Listed]:
    """A row for each network and set of weights."""
    for full in timm.list_models(pretrained=True, include_tags=True):
        bare, _, tag = full.partition(".")
        yield Listed(TIMM + bare, tag or "published")


def architecture(
    name: str,
    weights: str | None = None,
    *,
    in_channels: int = 3,
    depth: int | None = None,
    image_size: int | None = None,
) -> Architecture:
    """One of timm's networks; `weights` is a tag, such as "a1_in1k"."""
    bare = name.removeprefix(TIMM)
    full = f"{bare}.{weights}" if weights else bare
    try:
        config = timm.get_pretrained_cfg(full, allow_unregistered=False)
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{bare}.*")]
        raise BackboneError(
            f"{name} has no weights {weights!r} in timm {timm.__version__}; "
            f"expected {', '.join(tags) or 'nothing published'}, none or a file."
        ) from error
    assert config is not None, "an unregistered name raises"
    data = resolve_data_config({}, pretrained_cfg=config.to_dict())
    size = data["input_size"][-1]
    squash = data["crop_mode"] == "squash"
    preprocess = Preprocess(
        size=size,
        resize=size if squash else max(size, math.floor(size / data["crop_pct"])),
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        squash=squash,
    )
    other = image_size if config.fixed_input_size and image_size != size else None
    options: dict[str, Any] = {"img_size": other} if other else {}
    return Architecture(
        name=name,
        build=lambda classes: _build(bare, classes, options),
        preprocess=preprocess.override(other),
        weights=(config.tag or "published") if config.has_weights else "none",
        published=(lambda: _published(full, config, options)) if config.has_weights else None,
        image_size=other,
        class_names=imagenet_names() if config.num_classes == 1000 else None,
        respelt=_respelt,
    )


def _build(name: str, classes: int | None, options: dict[str, Any]) -> nn.Module:
    """The network, for images of `options["img_size"]` pixels a side if they are not the published ones."""
    try:
        module = timm.create_model(name, **(options | ({"num_classes": classes} if classes else {})))
    except (TypeError, AssertionError, ValueError) as error:
        if not options:
            raise
        raise BackboneError(
            f"timm/{name} cannot be built for images of {options['img_size']} pixels a side: {error}.",
            "Leave --image-size out.",
        ) from error
    patches: Any = getattr(module, "patch_embed", None)
    grid = getattr(patches, "grid_size", None)
    if options and grid is not None:
        require_whole_patches(f"timm/{name}", options["img_size"], patches.patch_size[0])
        tokens = getattr(module, "num_prefix_tokens", 0) + grid[0] * grid[1]
        if math.isqrt(tokens) != grid[0]:  # the square of patches would not be found (`extractor.Pool`)
            raise BackboneError(f"timm/{name} needs more than {options['img_size']} pixels a side.")
    return module


def _respelt(state: Mapping[str, Tensor], module: nn.Module) -> Mapping[str, Tensor]:
    """The entries under timm's names, translated as timm does after a download."""
    code = sys.modules[type(module).__module__]
    for name in ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained"):
        if translate := getattr(code, name, None):
            takes_module = len(inspect.signature(translate).parameters) > 1
            return translate(dict(state), module) if takes_module else translate(dict(state))
    return state


def _published(name: str, config: PretrainedCfg, options: dict[str, Any]) -> dict[str, Tensor]:
    try:
        return timm.create_model(name, pretrained=True, **options).state_dict()
    except Exception as error:
        wanted = f"{config.hf_hub_id} (model.safetensors)" if config.hf_hub_id else config.url
        raise BackboneError(
            f"The weights of timm/{name} cannot be had ({type(error).__name__}): {wanted} is wanted.",
            "Download it where there is a network and give it as --weights FILE, or fill the Hugging Face "
            "cache folder (HF_HUB_CACHE).",
        ) from error
