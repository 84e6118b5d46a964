"""A backbone's recipe: the JSON that records, in a cache, a head or a model, which network it belongs to.

    name            as in the registry: "efficientnet_lite0", "resnet50", "timm/NAME", "package.module:f"
    weights         "embedded", a published id such as "IMAGENET1K_V2", "none" (random) or "file"
    weights_sha256  of the network's state in memory, whatever file it came in
    file_sha256     of the weights file's bytes, if weights is "file"
    seed            if weights is "none"
    in_channels     1, 3 or 4
    depth           blocks of `small_cnn`
    image_size      of the images that the network was built for, if not the published one: of vision
                    transformers, and of the classifier of `small_cnn`
    calibrated      whether BatchNorm's statistics were set from the user's images

The versions of torchvision and timm are not recorded: the same weights give the same features in any version,
and the sha256 detects other weights.

This module imports no torch: a second run of `extract` only compares recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck.errors import ArtifactError, BackboneError
from bottleneck.files import sha256_of_file
from bottleneck.heads.head_format import BACKBONE
from bottleneck.records import require_known_fields

_FILE_SUFFIXES = (
    *(".pth", ".pt", ".bin", ".ckpt", ".th", ".tar", ".pkl", ".safetensors"),
    *(".npz", ".h5", ".onnx"),
)
PUBLISHED = ("DEFAULT", "published")  # weights ids that mean the family's default


@dataclass(frozen=True)
class LoadOptions:
    """What loading a recorded backbone needs from the user.

    weights : path of the weights file, for recipes whose weights are "file".
    trust_code : allow a backbone named `package.module:function` to be imported.
    """

    weights: str | None = None
    trust_code: bool = False


NO_OPTIONS = LoadOptions()  # published weights or the library's own code: nothing is needed from the user


def split_name(name: str) -> tuple[str, str | None]:
    """Split `resnet50:IMAGENET1K_V1` or `timm/resnet50.a1_in1k` into name and weights id (None without one).

    A user's `package.module:function` is not split.
    """
    if names_code(name):
        return name, None
    head, _, tail = name.partition("." if name.startswith("timm/") else ":")
    return head, tail or None


def names_code(name: str) -> bool:
    """Whether the name is a user's `package.module:function`, not a network with a weights id."""
    head, colon, tail = name.partition(":")
    published = tail.isupper() or tail in ("none", "embedded")
    return bool(colon) and not head.startswith("timm/") and not published


def require_recipe(recipe: Mapping[str, Any], what: str = "The recipe") -> None:
    """Raise BackboneError unless a recorded recipe names a network and weights, by fields of their types.

    what : says whose recipe it is, as the beginning of the message.
    """
    if not {"name", "weights"} <= recipe.keys():
        raise BackboneError(f"{what} {str(dict(recipe))[:200]} names no backbone and weights.")
    try:
        require_known_fields(recipe, BACKBONE, what)
    except ArtifactError as error:
        raise BackboneError(error.message) from None


def request_differences(
    recipe: dict,
    *,
    name: str | None = None,
    weights: str | None = None,
    seed: int | None = None,
    in_channels: int | None = None,
    depth: int | None = None,
) -> list[str]:
    """Fields in which the user's request differs from `recipe`; None requests nothing.

    A weights file is compared by the sha256 of its bytes, not by its name.

    Raises
    ------
    BackboneError
        If a weights file cannot be read.
    """
    bare, tag = split_name(name) if name is not None else (None, None)
    weights = weights if weights is not None else tag
    differing = []
    if bare is not None and bare != recipe.get("name"):
        differing.append("backbone.name")
    if weights is not None and weights not in PUBLISHED and not _same_weights(recipe, weights):
        differing.append("backbone.weights")
    if seed is not None and recipe.get("weights") == "none" and seed != recipe.get("seed"):
        differing.append("backbone.seed")
    if in_channels is not None and in_channels != recipe.get("in_channels"):
        differing.append("backbone.in_channels")
    if depth is not None and depth != recipe.get("depth"):
        differing.append("backbone.depth")
    return differing


def is_weights_file(weights: str) -> bool:
    """Whether `weights` is a file, not a published id."""
    return Path(weights).suffix in _FILE_SUFFIXES or "/" in weights or "\\" in weights


def file_sha256(path: str | Path) -> str:
    """sha256 of a weights file's bytes, in hexadecimal."""
    try:
        return sha256_of_file(Path(path))
    except OSError as error:
        raise BackboneError(f"The weights file {path} cannot be read: {error.strerror}.") from error


def _same_weights(recipe: dict, weights: str) -> bool:
    if is_weights_file(weights):
        return recipe.get("file_sha256") == file_sha256(weights)
    return recipe.get("weights") == weights
