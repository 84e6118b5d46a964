"""A network of your own as the backbone: a function that returns an `nn.Module`. A few seconds.

    python examples/own_network.py

`build` below is named as `own_network:build`, and `trust_code=True` says that this code may run. Its
weights come from a file of `torch.save(network.state_dict())`; here they are random. Expected: even the
random features of digits reach 0.95 on test on the node with positions, and 0.92 at the bottleneck.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

from bottleneck import extract, fit_heads, load_model
from bottleneck.demo import write_digits


def build() -> nn.Module:
    """Two blocks, a mean over all positions, a classifier: what a network of yours may look like."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def main(work: Path) -> None:
    source, weights = write_digits(work / "digits"), work / "mine.pth"
    torch.save(build().state_dict(), weights)
    network = {"weights": str(weights), "trust_code": True}
    cache = extract(
        source,
        work / "mine.h5",
        backbone="own_network:build",
        nodes=("1@avg3", "bottleneck"),
        image_size=32,
        test_fraction=0.2,
        limit=500,
        **network,
    ).cache
    heads = fit_heads(cache, output=work / "heads").heads
    for head in heads:
        print(f"{head['node']:12} {head['accuracy']['test']:.3f} on test")
    first = next(source.glob("3/*.png"))
    (prediction,) = load_model(heads[0]["path"], **network).predict(first)
    print(f"{first.parent.name}/{first.name} is a {prediction['label']}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        main(Path(work))
