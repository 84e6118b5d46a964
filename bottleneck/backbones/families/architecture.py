"""What a family of networks (torchvision, timm, the embedded one …) tells the registry about one network."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from bottleneck.data.preprocess import Preprocess

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_names() -> tuple[str, ...]:
    """English names of the 1000 classes of ImageNet-1k, in the order that every library has them."""
    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


@dataclass(frozen=True)
class Architecture:
    """A network that can be built.

    name : as in the registry, without a weights id.
    build : number of classes (None for the published one) → module with random weights.
    preprocess : as its published weights want it.
    weights : id of the published weights; without any "none", or "module" where the code brings its own.
    published : reads them, downloading where the library does; raises BackboneError without them.
    class_names : what its outputs mean with the published weights.
    """

    name: str
    build: Callable[[int | None], nn.Module]
    preprocess: Preprocess
    weights: str = "none"
    published: Callable[[], "OrderedDict[str, Tensor]"] | None = None
    class_names: tuple[str, ...] | None = None
