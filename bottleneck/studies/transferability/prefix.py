"""What the first, frozen layers of a network say of images: worked out once, kept in a file without a name.

Shapes: N images of the study, S pixels a side, C channels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bottleneck.studies.transferability.images import temporary_array

PASS = 256  # images that pass the layers at once
CALIBRATION = 512  # images that set the BatchNorm statistics of random layers


class ArrayRows:
    """Rows of an array, in memory or mapped from a file, one per image (`training.rows.Rows`)."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def take(self, images: np.ndarray) -> np.ndarray:
        """Rows of `images`, in that order."""
        return self.values[images]


@torch.inference_mode()
def activations(prefix: nn.Module, pixels: np.ndarray, images: np.ndarray, folder: Path) -> ArrayRows:
    """Run `prefix`, in evaluation mode, once over the `images` of `pixels` (N, S, S, C).

    The rows, of which only those of `images` are filled, lie in a temporary file in `folder`.
    """
    prefix.eval()
    shape = prefix(_tensor(pixels, images[:1])).shape[1:]
    values = temporary_array(folder, (len(pixels), *shape), np.float32, filled=len(images))
    for start in range(0, len(images), PASS):
        chosen = images[start : start + PASS]
        values[chosen] = prefix(_tensor(pixels, chosen)).numpy()
    return ArrayRows(values)


@torch.no_grad()
def calibrate(prefix: nn.Module, pixels: np.ndarray, images: np.ndarray) -> None:
    """Set the BatchNorm statistics of random layers to those of some images; as drawn they say nothing."""
    norms = [module for module in prefix.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average over batches seen, here of one
    prefix.train()
    prefix(_tensor(pixels, images[:: max(1, len(images) // CALIBRATION)]))


def _tensor(pixels: np.ndarray, images: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels[images])
