"""Stand-ins for `Backbone.extractor`: normalisation inside, several nodes, tiny."""

import numpy as np
import torch
from torch import nn


class TinyExtractor(nn.Module):
    """uint8 (B, 32, 32, 3) → a map (B, 8, 16, 16) and a vector (B, 16)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.register_buffer("mean", torch.tensor([124.0, 116.0, 104.0]))
        self.eval()

    def forward(self, pixels):
        x = self.stem(((pixels.float() - self.mean) / 58.0).permute(0, 3, 1, 2))
        return x, self.body(x).mean((2, 3))


class Unexportable(TinyExtractor):
    """Decides by its data, which no graph can express."""

    def forward(self, pixels):
        rows = super().forward(pixels)
        return rows if rows[1].sum() > 0 else rows[::-1]


class ExportsWrongly(TinyExtractor):
    """Gives other rows once it is exported, as a bug in an exporter would."""

    def forward(self, pixels):
        x, vector = super().forward(pixels)
        return x, vector * 1.01 if torch.compiler.is_compiling() else vector


class TooWideForInt8(TinyExtractor):
    """One channel of the map is a million times the others; the vector lives on the others."""

    def forward(self, pixels):
        x, _ = super().forward(pixels)
        scale = torch.ones(8).index_fill(0, torch.tensor([0]), 1e6)[:, None, None]
        wide = nn.functional.relu(nn.functional.conv2d(x, torch.eye(8)[:, :, None, None] * scale[..., None]))
        return (self.body(wide / scale).mean((2, 3)),)


class WideAtFirst(TinyExtractor):
    """As `TooWideForInt8` after its first layer; nine layers follow."""

    def forward(self, pixels):
        x, _ = super().forward(pixels)
        eye = torch.eye(8)[:, :, None, None]
        scale = torch.ones(8).index_fill(0, torch.tensor([0]), 1e6)[:, None, None, None]
        x = nn.functional.relu(nn.functional.conv2d(x, eye * scale))
        x = nn.functional.relu(nn.functional.conv2d(x, eye / scale))
        for _ in range(9):
            x = nn.functional.relu(nn.functional.conv2d(x, eye))
        return (self.body(x).mean((2, 3)),)


def refuse_to_make():
    raise AssertionError("a stored graph needs no extractor")


def photos(count, seed=0):
    """Smooth uint8 images (B, 32, 32, 3): noise that is enlarged, as photographs are smooth."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def eager(extractor, pixels):
    with torch.inference_mode():
        return tuple(rows.numpy() for rows in extractor(torch.from_numpy(pixels)))


class BatchNormalised(TinyExtractor):
    """Normalises by the statistics of its batch, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.stem[1] = nn.BatchNorm2d(8, track_running_stats=False)
        self.eval()


class Centred(TinyExtractor):
    """Subtracts the batch's mean from the vector, by a function and not a layer."""

    def forward(self, pixels):
        x, vector = super().forward(pixels)
        return x, vector - vector.mean(0)


class NeedsABatch(TinyExtractor):
    """Ends with a BatchNorm of single values, which refuses a batch of one image."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16, track_running_stats=False)

    def forward(self, pixels):
        x, vector = super().forward(pixels)
        return x, self.norm(vector)


class Random(TinyExtractor):
    """Drops values in evaluation mode too, as for Monte Carlo estimates."""

    def forward(self, pixels):
        x, vector = super().forward(pixels)
        return x, nn.functional.dropout(vector, 0.5, training=True)


class NormalisedByImage(TinyExtractor):
    """Normalises each image by itself, which needs no running statistics."""

    def __init__(self):
        super().__init__()
        self.stem[1] = nn.InstanceNorm2d(8)
        self.eval()
