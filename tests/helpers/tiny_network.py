"""A network for extractions whose rows hardly matter: one convolution, in onnxruntime."""

import torch
from torch import nn

NET = {
    "backbone": "tests.helpers.tiny_network:network",
    "trust_code": True,
    "engine": "onnxruntime",
    "image_size": 32,
    "batch_size": 4,
}


class TinyNet(nn.Module):
    """(B, 3, H, W) → (B, 4)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 7, 4)
        self.fc = nn.Linear(4, 2)

    def forward_features(self, x):
        return torch.relu(self.conv(x))

    def forward(self, x):
        return self.fc(self.forward_features(x).mean((2, 3)))


def network():
    """The network, for `package.module:function`."""
    return TinyNet()
