"""Fixtures where networks are trained."""

from tests.helpers.torch_engine import torch_computes

__all__ = ["torch_computes"]
