#!/usr/bin/env python3
"""How much faster than the usual fine-tuning of the last stage is `finetune`, and from which epoch on?

    python tests/benchmarks/finetuning.py [FOLDER] [--peer PATH] [--images 400] [--epochs 3] [--rounds 2]

Takes 6 minutes on 2 idle cores. Without FOLDER, photographs of 500 × 375 pixels are made from the two that
scikit-learn ships. The peer is a script that is called as `PEER FOLDER --backbone NAME --epochs E` and prints
{"images_per_second": …}; by default what everyone writes, restated below: decode, the whole network forward,
its last stage trained, every step of every epoch.

Each measurement is a process of its own; contenders take turns, and the best round of each counts. Rates are
images per second of training, reading them included; ResNet-50 has random weights. What is done once is not
part of a rate: extraction of the map, which is printed with the epochs after which it has paid for itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from extraction import child, show, write_photographs
from machine import print_machine

TARGETS = {"efficientnet_lite0": 10.0, "resnet50": 4.0}
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--peer", type=Path, help="script beside which fine-tuning is measured")
    parser.add_argument("--images", type=int, default=400, help="photographs that are made")
    parser.add_argument("--epochs", type=int, default=3, help="of both; the peer's ResNet-50 does one")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--backbone", action="append", choices=list(TARGETS))
    args = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as scratch:
        folder = args.folder or write_photographs(Path(scratch, "photographs"), args.images)
        print(f"{'':58}  measured   target")
        for backbone in args.backbone or TARGETS:
            compare(folder, backbone, args, Path(scratch))


def compare(folder: Path, backbone: str, args: argparse.Namespace, scratch: Path) -> None:
    """Rates beside the peer, and what the map costs."""
    peer = [str(args.peer)] if args.peer else [__file__, "peer"]
    work = scratch / backbone
    common = [str(folder), "--backbone", backbone]
    child(__file__, "prepare", *common, "--work", str(work))
    theirs, ours, map_seconds = 0.0, 0.0, 0.0
    for _ in range(args.rounds):
        epochs = 1 if backbone == "resnet50" else args.epochs
        theirs = max(theirs, child(*peer, *common, "--epochs", str(epochs)).rate)
        found = child(__file__, "finetune", *common, "--work", str(work), "--epochs", str(args.epochs))
        ours, map_seconds = max(ours, found.rate), map_seconds or found.printed["map_seconds"]
    images = found.printed["images"]
    show(f"{backbone}: the usual fine-tuning, images/s", theirs)
    show(f"{backbone}: finetune, images/s", ours)
    show("   times the usual one", ours / theirs, TARGETS[backbone])
    show(f"   the map of {images} images, done once, seconds", map_seconds)
    show("   paid for after epochs", map_seconds / (images / theirs - images / ours))


def prepare(folder: Path, backbone: str, work: Path) -> dict:
    """The features that the head takes, and the head: what is there before fine-tuning is thought of."""
    from bottleneck.extraction.extract import extract
    from bottleneck.fitting.fit_heads import fit_heads

    weights = {"weights": "none"} if backbone == "resnet50" else {}  # not shipped; random ones cost the same
    extracted = extract(folder, work / "c.h5", backbone=backbone, **weights)
    fit_heads(extracted.cache, C=1e-3, output=work / "heads")
    return {"images_per_second": extracted.images_per_second}


def finetune(folder: Path, backbone: str, work: Path, epochs: int) -> dict:
    """What `bottleneck finetune` reports of its last block."""
    from bottleneck.training.finetune import finetune

    (head,) = (work / "heads").glob("*.safetensors")
    model = work / "models" / "m.safetensors"
    result = finetune(
        work / "c.h5", head, model, epochs=epochs, patience=0, batch_size=BATCH, val_fraction=0.1
    )
    images = sum(result.n.values())
    rate, seconds = result.images_per_second, result.map_seconds
    return {"images_per_second": rate, "map_seconds": seconds, "images": images, "seconds": result.seconds}


def peer(folder: Path, backbone: str, epochs: int) -> dict:
    """The usual fine-tuning of the last stage: full forward each step, the frozen trunk without gradient."""
    import timm
    import torch
    from torchvision import datasets, models, transforms

    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = datasets.ImageFolder(folder, transform)
    if backbone == "resnet50":
        net = models.resnet50(weights=None)
        net.fc = torch.nn.Linear(net.fc.in_features, len(images.classes))
        lower = [net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3]
        upper = [net.layer4, net.avgpool, torch.nn.Flatten(), net.fc]
    else:
        net = timm.create_model(f"tf_{backbone}", num_classes=len(images.classes))
        lower = [net.conv_stem, net.bn1, *net.blocks[:-1]]
        upper = [net.blocks[-1], net.conv_head, net.bn2, net.global_pool, net.classifier]
    trunk, top = torch.nn.Sequential(*lower).eval(), torch.nn.Sequential(*upper)
    optimizer = torch.optim.SGD(top.parameters(), 1e-3, momentum=0.9)
    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, shuffle=True, num_workers=2)
    started = time.perf_counter()
    for _ in range(epochs):
        for pixels, labels in loader:
            with torch.no_grad():
                maps = trunk(pixels)
            loss = torch.nn.functional.cross_entropy(top(maps), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {"images_per_second": epochs * len(images) / (time.perf_counter() - started)}


def measure(arguments: list[str]) -> None:
    """One measurement, in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=list(CHILDREN))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--epochs", type=int)
    args = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    print(json.dumps(CHILDREN[args.pop("what")](**args)))


CHILDREN = {"prepare": prepare, "finetune": finetune, "peer": peer}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CHILDREN:
        measure(sys.argv[1:])
    else:
        main()
