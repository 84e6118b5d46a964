"""BatchNorm folded into the linear layer before it.

Shapes: D inputs, H outputs of the layer.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn


def fold_batchnorm(
    coef: np.ndarray, intercept: np.ndarray, norm: nn.BatchNorm1d
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (H, D) and bias (H,) of one linear layer equal to a linear layer followed by `norm`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = double(norm.weight) / np.sqrt(double(norm.running_var) + norm.eps)
    return coef * gain[:, None], (intercept - double(norm.running_mean)) * gain + double(norm.bias)


def double(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a float64 array."""
    return tensor.detach().cpu().double().numpy()
