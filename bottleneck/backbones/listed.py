"""One row of the list of networks, which families make and `listing` keeps. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

TIMM = "timm/"  # begins the name of a network of timm
# What reading a damaged file of the user's cache folder raises: no JSON, too deep, or other values in it.
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Listed:
    """One row of `bottleneck backbones`: a network with one set of weights.

    accuracy : published top-1 on ImageNet-1k in percent, if the library states it.
    parameters, features : None if unknown without building the network.
    """

    name: str
    weights: str
    accuracy: float | None = None
    parameters: int | None = None
    features: int | None = None
