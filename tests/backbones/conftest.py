"""Small networks that every backbone test shares."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.data.preprocess import Preprocess


class Residual(nn.Module):
    """Two convolutions beside an identity, with dropout in between; in-place where networks usually are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        y = self.drop(self.relu(self.norm1(self.conv1(x))))
        y = self.conv2(y)
        y += x
        return self.relu(y)


class TinyNet(nn.Module):
    """Stem, three residual stages, classifier; `functional` puts a plain dropout before the classifier."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(3, 4, 3, 2, 1), norm=nn.BatchNorm2d(4), relu=nn.ReLU(inplace=True))
        )
        self.stage1, self.stage2, self.stage3 = Residual(4), Residual(4), Residual(4)
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        return self.head(nn.functional.dropout(x, 0.3, self.training))


PREPROCESS = Preprocess(16, 20, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.fixture
def tiny() -> Backbone:
    """`TinyNet` with seeded weights, 16 × 16 pixels."""
    torch.manual_seed(0)
    return Backbone.from_module(TinyNet(), PREPROCESS, name="tiny")


@pytest.fixture
def pixels() -> np.ndarray:
    """uint8 (3, 16, 16, 3)."""
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def images(pixels) -> torch.Tensor:
    """Float (3, 3, 16, 16), about normalised."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 128 - 1
