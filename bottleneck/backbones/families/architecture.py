"""What a family of networks (torchvision, timm, the embedded one …) offers to the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import ResNet18_Weights

from bottleneck.backbones.listed import Listed
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# For networks that publish no preprocessing of their own.
USUAL_PREPROCESS = Preprocess(224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD)


def imagenet_names() -> tuple[str, ...]:
    """English names of the 1000 classes of ImageNet-1k, in the order that every library uses."""
    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


@dataclass(frozen=True)
class Architecture:
    """A network that can be built.

    name : as in the registry, without a weights id.
    build : number of classes (None for the published number) → module with random weights.
    preprocess : as its published weights need it.
    weights : id of the published weights; if there are none "none", or "module" if the code brings its own.
    published : returns the published state dict, downloaded if necessary; raises BackboneError on failure.
    class_names : names of the outputs with the published weights.
    depth : number of blocks, for a family in which it can be chosen.
    image_size : side in pixels that the network was built for, where it is another than the published one.
    respelt : a state dict in the spelling of published files → in that of the module.
    """

    name: str
    build: Callable[[int | None], nn.Module]
    preprocess: Preprocess
    weights: str = "none"
    published: Callable[[], Mapping[str, Tensor]] | None = None
    class_names: tuple[str, ...] | None = None
    depth: int | None = None
    image_size: int | None = None
    respelt: Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]] | None = None

    def build_unfilled(self, classes: int | None = None) -> nn.Module:
        """The module without random weights: drawing them takes longest, and others will replace them."""
        with _SkipRandom():
            return self.build(classes)

    def build_on_meta(self) -> nn.Module:
        """The module with shapes but no storage, if the family's code allows it; else `build_unfilled`."""
        try:
            with torch.device("meta"):
                return self.build(None)
        except (NotImplementedError, RuntimeError):  # the code reads values of tensors while it builds
            return self.build_unfilled()


def require_whole_patches(name: str, size: int, patch: int) -> None:
    """Raise BackboneError unless images of `size` pixels a side consist of whole patches."""
    if size % patch:
        below = size // patch * patch
        raise BackboneError(
            f"{name} cuts images into patches of {patch} × {patch} pixels; {size} is no multiple of {patch}.",
            f"Use --image-size {below + patch}{f' or {below}' if below else ''}.",
        )


class Family(Protocol):
    """The functions that every module of `families` defines."""

    def names(self) -> list[str]:
        """Names of all its networks, as the registry takes them."""

    def listed(self) -> Iterable[Listed]:
        """A row for each network and set of weights."""

    def architecture(
        self,
        name: str,
        weights: str | None = None,
        *,
        in_channels: int = 3,
        depth: int | None = None,
        image_size: int | None = None,
    ) -> Architecture:
        """One of its networks.

        Parameters
        ----------
        weights : id of published weights; None for the default ones
        in_channels : channels of the images, for networks built for them; the registry adapts other networks
        depth : number of blocks, if it can be chosen
        image_size : side in pixels, for networks that are built for one; others ignore it

        Raises
        ------
        BackboneError
            There are no such weights; the message lists the choices.
        """


class _SkipRandom(TorchFunctionMode):
    """Within this context, tensors are not filled with random numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "erfinv_"):
            return args[0] if args else kwargs["tensor"]  # a method of Tensor, or a function of torch.nn.init
        return func(*args, **(kwargs or {}))
