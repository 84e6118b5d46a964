"""What backbones can be had: names, weights, published accuracy, size, feature width."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import timm
import torchvision.models as zoo

from bottleneck.backbones import efficientnet_lite, small_cnn, timm_models, torchvision_models
from bottleneck.backbones.registry import outline
from bottleneck.errors import BackboneError

# Building an architecture, which feature width and timm's parameter counts need, takes up to a second.
MOST_OPENED = 24


@dataclass(frozen=True)
class Listed:
    """A network with one set of weights.

    accuracy : published top-1 on ImageNet-1k in percent, where the library says it.
    parameters, features : None where too many are listed to open each.
    """

    name: str
    weights: str
    accuracy: float | None
    parameters: int | None
    features: int | None = None


def available(pattern: str | None = None) -> list[Listed]:
    """Backbones whose name contains `pattern` or matches it as a wildcard; without one, all but timm's.

    Raises
    ------
    BackboneError
        If nothing matches.
    """
    found = [entry for entry in _all(pattern) if _matches(entry.name, pattern)]
    if not found:
        raise BackboneError(f"No backbone matches {pattern!r}.", "Try a shorter part of the name, or timm/*.")
    names = dict.fromkeys(entry.name for entry in found)
    if len(names) > MOST_OPENED:
        return found
    opened = {name: outline(name) for name in names}
    widths = {name: backbone.num_features for name, backbone in opened.items()}
    sizes = {name: sum(p.numel() for p in backbone.module.parameters()) for name, backbone in opened.items()}
    return [
        replace(entry, features=widths[entry.name], parameters=entry.parameters or sizes[entry.name])
        for entry in found
    ]


def timm_count() -> int:
    """How many architectures timm adds."""
    return len(timm_models.names())


def _all(pattern: str | None) -> Iterator[Listed]:
    # 75.1: https://github.com/tensorflow/tpu, efficientnet/lite
    yield Listed(efficientnet_lite.NAME, "embedded", 75.1, 4_652_008)
    yield Listed(small_cnn.NAME, "none", None, None)
    for name in torchvision_models.names():
        for weights in zoo.get_model_weights(name):
            metrics = weights.meta["_metrics"].get("ImageNet-1K", {})
            yield Listed(name, weights.name, metrics.get("acc@1"), weights.meta["num_params"])
    if pattern:
        for name in timm.list_models(pretrained=True, include_tags=True):
            architecture, _, tag = name.partition(".")
            yield Listed(timm_models.PREFIX + architecture, tag or "published", None, None)


def _matches(name: str, pattern: str | None) -> bool:
    return not pattern or pattern in name or fnmatch(name, pattern)
