"""BatchNorm's running statistics: what freezing does to them, and how a random network gets them.

*Frozen* BatchNorm normalises by its stored mean and variance and never changes them, in training too. So a
frozen network computes in training exactly the features that were cached. (`section.Section` and
`inspect.freeze` keep to this.)

*Calibrated*: the initial statistics of a random network, mean 0 and variance 1, are far from those of its
activations, which grow from block to block. One batch of the user's images sets them. They then belong to the
network as its weights do: the recipe's weights_sha256 covers them, and they are stored as safetensors beside
what was made with the network, so that it can be rebuilt.

Shapes: B images, H × W pixels, C channels.
"""

from __future__ import annotations

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
from bottleneck.heads.tensor_file import fault_of
from bottleneck.names import BOTTLENECK
from bottleneck.remote.path import path_of
from bottleneck.store.layout import statistics_path


def calibrate_batchnorm(backbone: Backbone, pixels: np.ndarray, preprocess: Preprocess | None = None) -> None:
    """Set every BatchNorm's statistics to those of one batch, and record this in the recipe.

    Parameters
    ----------
    pixels : uint8 array of shape (B, H, W, C)
        At least two images, preprocessed as for extraction.
    preprocess : Preprocess, optional
        Of the pixels; the network's own by default. Layers above the bottleneck are left as they are, since
        the classifier may need another image size.

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
    _record(backbone)


@torch.no_grad()
def calibrate_in_training_mode(module: nn.Module, inputs: Tensor) -> None:
    """Set every BatchNorm's statistics by one pass of `inputs` in training mode; the module stays in it.

    This is torch's own update, applied once. A layer normalises by the batch's biased variance but stores the
    unbiased one, so over many layers the network in evaluation mode departs from the pass that calibrated it.
    `calibrate_batchnorm` avoids that; the transfer study has shallow networks and uses torch's update.
    """
    for norm in _norms(module).values():
        norm.reset_running_stats()
        norm.momentum = None  # the average over all batches, of which there is one
    module.train()
    module(inputs)


def statistics(backbone: Backbone) -> dict[str, np.ndarray]:
    """All BatchNorm buffers by their names in the state dict; float32, and int64 for the counters."""
    return {name: value.numpy().copy() for name, value in _buffers(backbone.module).items()}


def set_statistics(backbone: Backbone, values: Mapping[str, np.ndarray]) -> None:
    """Restore what `statistics` returned, and record this in the recipe.

    Raises
    ------
    BackboneError
        If names or shapes are not those of this network.
    """
    buffers = _buffers(backbone.module)
    if buffers.keys() != values.keys() or any(buffers[k].shape != values[k].shape for k in buffers):
        raise BackboneError("The BatchNorm statistics given are not of this network.")
    for name, buffer in buffers.items():
        buffer.copy_(torch.as_tensor(values[name]))
    _record(backbone)


def read_statistics(cache: str | Path) -> dict[str, np.ndarray]:
    """The content of `layout.statistics_path`, for `set_statistics`, which checks it.

    Raises
    ------
    BackboneError
        If the file is missing or damaged.
    """
    path = statistics_path(path_of(cache))
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise BackboneError(
            f"The BatchNorm statistics of the random network cannot be read: {path} {fault_of(path, error)}.",
            "Put the file back beside its cache, or extract into another cache.",
        ) from None


def _take_statistics(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
    """Set a layer's statistics before it runs, so that the next layers get what it will give from now on."""
    axes = [0, *range(2, inputs[0].dim())]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(inputs[0].mean(axes))
    norm.running_var.copy_(inputs[0].var(axes, correction=0))


def _record(backbone: Backbone) -> None:
    backbone.recipe |= {"calibrated": True, "weights_sha256": state_sha256(backbone.module)}


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value for name, norm in _norms(module).items() for key, value in norm.named_buffers()
    }


def _norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm layers that keep statistics."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats
    }
