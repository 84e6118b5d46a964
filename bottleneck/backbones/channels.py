"""Adapt a network to images of one or four channels: its first convolution, and the mean and std.

Grey: the weights are summed over the colours, scaled so that a grey image gives the same output as its copy
in three equal channels. Each colour has its own mean and std; their differences add a constant to each output
channel, which becomes its bias. (At a zero-padded border this constant is not exact: if the colours' means
differ, the outputs there differ slightly.)

Four channels: the fourth gets the mean of the colours' weights, and all weights are scaled by 3/4.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import torch
from torch import nn

from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError


def adapt_channels(module: nn.Module, preprocess: Preprocess, in_channels: int) -> Preprocess:
    """Adapt `module` in place and return its preprocessing.

    Raises
    ------
    BackboneError
        There is no such image mode, or the network does not begin with a convolution of three channels.
    """
    if in_channels == preprocess.channels:
        return preprocess
    first = first_convolution(module)
    if in_channels not in (1, 4) or preprocess.channels != 3:
        raise BackboneError(
            f"Images of {in_channels} channels are not supported; expected 1 (grey), 3 (RGB) or 4 (RGBA)."
        )
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise BackboneError("The network does not begin with a convolution of three channels.")
    adapt = _to_grey if in_channels == 1 else _to_rgba
    return adapt(first, preprocess)


def first_convolution(module: nn.Module) -> nn.Conv2d | None:
    """The convolution that the images pass first; None if the network has none."""
    return next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)


def _to_grey(first: nn.Conv2d, preprocess: Preprocess) -> Preprocess:
    """(x − m_c) / s_c = (s / s_c) · (x − m) / s + (m − m_c) / s_c for every colour c."""
    mean, std = fmean(preprocess.mean), fmean(preprocess.std)
    weight = first.weight.detach().double()  # sums in double: the same float32 on every machine
    means, stds = (torch.tensor(v, dtype=torch.float64) for v in (preprocess.mean, preprocess.std))
    scale, shift = std / stds, (mean - means) / stds
    constant = torch.einsum("ochw,c->o", weight, shift)
    first.weight = nn.Parameter(torch.einsum("ochw,c->ohw", weight, scale).unsqueeze(1).float())
    first.in_channels = 1
    if shift.any():
        bias = 0 if first.bias is None else first.bias.detach().double()
        first.bias = nn.Parameter((bias + constant).float())
    return replace(preprocess, mode="L", mean=(mean,), std=(std,))


def _to_rgba(first: nn.Conv2d, preprocess: Preprocess) -> Preprocess:
    weight = first.weight.detach().double()
    first.weight = nn.Parameter((0.75 * torch.cat([weight, weight.mean(1, keepdim=True)], 1)).float())
    first.in_channels = 4
    return replace(
        preprocess,
        mode="RGBA",
        mean=(*preprocess.mean, fmean(preprocess.mean)),
        std=(*preprocess.std, fmean(preprocess.std)),
    )
