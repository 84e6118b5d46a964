"""BatchNorm statistics for a network with random weights.

Untouched they say mean 0 and variance 1, which the activations of a deep random network are far from: they
grow from block to block (a random ResNet-152 reaches 3e8). One batch of the user's own images sets them.

The statistics belong to the network as its weights do: the recipe's weights_sha256 covers them, and whoever
rebuilds the network needs them (`statistics`, kept as safetensors beside what was made with it).

Shapes: B images, H × W pixels, C channels.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bottleneck.backbones.backbone import Backbone, state_sha256
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError
from bottleneck.names import BOTTLENECK


def calibrate_batchnorm(backbone: Backbone, pixels: np.ndarray, preprocess: Preprocess | None = None) -> None:
    """Set every BatchNorm's statistics to those of one batch; the recipe then says so.

    Parameters
    ----------
    pixels : uint8 array of shape (B, H, W, C)
        At least two images, preprocessed as for extraction.
    preprocess : Preprocess, optional
        Theirs, the network's own by default. Layers above the bottleneck, whose classifier may be made for
        another image size, are left as they are.

    Raises
    ------
    BackboneError
        If there are fewer than two images.
    """
    norms = _norms(backbone.module)
    if not norms:
        return
    if len(pixels) < 2:
        raise BackboneError(
            f"BatchNorm statistics need at least two images, got {len(pixels)}.",
            "Use published weights instead.",
        )
    hooks = [norm.register_forward_pre_hook(_take_statistics) for norm in norms.values()]
    with torch.no_grad():
        backbone.extractor([BOTTLENECK], preprocess)(torch.from_numpy(pixels))
    for hook in hooks:
        hook.remove()
    backbone.recipe |= {"calibrated": True, "weights_sha256": state_sha256(backbone.module)}


def statistics(backbone: Backbone) -> dict[str, np.ndarray]:
    """All BatchNorm buffers by their names in the state dict; float32 and, for the counters, int64."""
    return {
        f"{name}.{key}": value.numpy().copy()
        for name, norm in _norms(backbone.module).items()
        for key, value in norm.named_buffers()
    }


def set_statistics(module: nn.Module, values: Mapping[str, np.ndarray]) -> None:
    """Put back what `statistics` gave.

    Raises
    ------
    BackboneError
        If names or shapes are not those of this network.
    """
    buffers = {
        f"{n}.{key}": value for n, norm in _norms(module).items() for key, value in norm.named_buffers()
    }
    if buffers.keys() != values.keys() or any(buffers[k].shape != values[k].shape for k in buffers):
        raise BackboneError("The BatchNorm statistics given are not of this network.")
    for name, buffer in buffers.items():
        buffer.copy_(torch.as_tensor(values[name]))


def statistics_file(cache: str | Path) -> Path:
    """Where the statistics of a cache's random network are kept, beside the cache."""
    cache = Path(cache)
    return cache.with_name(f"{cache.stem}--batchnorm.safetensors")


def read_statistics(cache: str | Path) -> dict[str, np.ndarray]:
    """What `statistics_file` holds, for `set_statistics`, which checks it.

    Raises
    ------
    BackboneError
        If the file is missing or damaged.
    """
    path = statistics_file(cache)
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise BackboneError(
            f"The BatchNorm statistics of the random network cannot be read from {path}: {error}.",
            "Put the file back beside its cache, or extract into another cache.",
        ) from None


def _take_statistics(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
    """Before the layer runs, in evaluation mode: what follows is computed with the statistics it will keep.

    (In training mode it would normalise by the batch's variance and keep the unbiased one; over many layers
    the two drift apart.)
    """
    axes = [0, *range(2, inputs[0].dim())]
    norm.running_mean.copy_(inputs[0].mean(axes))
    norm.running_var.copy_(inputs[0].var(axes, correction=0))


def _norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm layers that keep statistics."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats
    }
