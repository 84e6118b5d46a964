"""Small problems that train in a moment."""

import numpy as np
import torch
from torch import nn

from bottleneck.samples import ArrayRows
from bottleneck.training.batches import Batches, SampleSet
from bottleneck.training.config import OptimConfig
from bottleneck.training.loop import Training
from bottleneck.training.loss import Objective
from bottleneck.training.optim import LayerGroup, Schedule, build_optimizer


class CountedRows(ArrayRows):
    """Rows from an array; `reads` lists how many rows each call took."""

    def __init__(self, array):
        super().__init__(array)
        self.reads = []

    def take(self, indices):
        self.reads.append(len(indices))
        return super().take(indices)


class TinyNet(nn.Module):
    """Rows (B, M, D) and covariates (B, P) → logits (B, classes)."""

    def __init__(self, inputs, classes, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden, self.head = nn.Linear(inputs, 8), nn.Linear(8, classes)
        self.dropout = nn.Dropout(0.2)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def forward(self, rows, covariates):
        x = torch.cat([rows.float().flatten(1), covariates], dim=1)
        return self.head(self.dropout(torch.relu(self.hidden(x))))


def blobs(n=60, D=5, classes=3, M=1, P=0, seed=0):
    """Rows and samples of Gaussian blobs, one image per sample and position."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, D))
    labels = random.integers(classes, size=n)
    rows = centres[np.repeat(labels, M)] + 0.6 * random.normal(size=(n * M, D))
    covariates = random.normal(size=(n, P))
    samples = SampleSet(np.arange(n * M).reshape(n, M), covariates, labels)
    return CountedRows(rows.astype(np.float32)), samples


def training(epochs=4, lr=0.1, seed=0, **options):
    """A run of a tiny network on blobs."""
    rows, samples = blobs(seed=seed)
    val_rows, val_samples = blobs(n=30, seed=seed)
    module = TinyNet(5, 3, seed=seed)
    groups = [
        LayerGroup("head", 0, tuple(module.head.named_parameters())),
        LayerGroup("hidden", 1, tuple(module.hidden.named_parameters())),
    ]
    train = Batches(rows, samples, 8, seed=seed)
    return Training(
        module=module,
        objective=Objective(3),
        optimizer=build_optimizer(groups, OptimConfig(lr=lr, backbone_ratio=1.0)),
        schedule=Schedule(epochs * train.steps),
        train=train,
        val=Batches(val_rows, val_samples, 16, shuffle=False),
        epochs=epochs,
        **options,
    )
