#!/usr/bin/env python3
"""How much faster than the usual loop is `extract`, and what does it cost?

    python tests/benchmarks/extraction.py [FOLDER] [--peer PATH] [--images 400] [--many 10000] [--rounds 3]

Takes 10 minutes on 2 idle cores (`--images 64 --many 1000 --rounds 1`: 2). Without FOLDER, photographs of
500 × 375 pixels are made from the two that scikit-learn ships. The peer is a script that is called as
`PEER FOLDER --backbone NAME --limit N` and prints {"images_per_second": …}; by default the loop everyone
writes, restated below: DataLoader over PIL images, torchvision transforms, eager PyTorch.

Each measurement is a process of its own; contenders take turns, and the best round of each counts. Rates are
images per second after imports and model building. "Engine alone" is fed from memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import print_machine
from PIL import Image, ImageEnhance

PRECISIONS = ("fp32", "fast", "int8")  # fast is bf16 where the processor has units for it, else fp32
CASES = [(backbone, precision) for backbone in ("efficientnet_lite0", "resnet50") for precision in PRECISIONS]
SPEED_TARGETS = dict(zip(CASES, (5.0, 12.0, 14.0, 2.5, 8.0, 12.0), strict=True))  # with matrix units
PIPELINE_TARGET = 0.85  # of the engine alone in fp32, else of the slower one of decoding and engine alone
MEMORY_TARGET = 1500  # MB


@dataclass(frozen=True)
class Measured:
    """What a child process printed, its wall time in seconds and its peak memory in MB."""

    printed: dict
    seconds: float
    megabytes: float

    @property
    def rate(self) -> float:
        return self.printed["images_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--peer", type=Path, help="script beside which extraction is measured")
    parser.add_argument("--images", type=int, default=400, help="images to compare on; half for ResNet-50")
    parser.add_argument("--many", type=int, default=10_000, help="images of second run and peak memory")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as scratch:
        os.environ["BOTTLENECK_CACHE"] = f"{scratch}/user"
        folder = args.folder or write_photographs(Path(scratch, "photographs"), args.images)
        print(f"{'':58}  measured   target")
        compare(folder, args, Path(scratch))
        if args.many:
            scale(args.many, Path(scratch))


def compare(folder: Path, args: argparse.Namespace, scratch: Path) -> None:
    """Rates beside the peer, and of the pipeline beside the engine alone."""
    peer = [str(args.peer)] if args.peer else [__file__, "peer"]
    for backbone in dict.fromkeys(backbone for backbone, _ in CASES):
        precisions = [precision for other, precision in CASES if other == backbone]
        limit = args.images // 2 if backbone == "resnet50" else args.images
        common = [str(folder), "--backbone", backbone, "--limit", str(limit)]
        best: dict[str, float] = {}
        for _ in range(args.rounds):
            measured = {"peer": child(*peer, *common), "decode": child(__file__, "decode", *common)}
            for precision in precisions:
                cache = scratch / f"{backbone}-{precision}.h5"
                cache.unlink(missing_ok=True)
                flags = [*common, "--precision", precision]
                measured[precision] = child(__file__, "extract", *flags, "--cache", str(cache))
                measured[f"{precision} alone"] = child(__file__, "engine", *flags)
            best = {name: max(one.rate, best.get(name, 0.0)) for name, one in measured.items()}
        show(f"{backbone}: the usual loop, images/s", best["peer"])
        show(f"{backbone}: decoding alone, images/s", best["decode"])
        for precision in precisions:
            rate, alone = best[precision], best[f"{precision} alone"]
            show(f"{backbone} {precision}: extract, images/s", rate)
            show(f"{backbone} {precision}: engine alone, images/s", alone)
            show("   times the usual loop", rate / best["peer"], SPEED_TARGETS[backbone, precision])
            slower = alone if precision == "fp32" else min(alone, best["decode"])
            show("   of the engine or decoding alone", rate / slower, PIPELINE_TARGET)


def scale(many: int, scratch: Path) -> None:
    """The second run on many images beside the first, and peak memory over their number."""
    folder = write_photographs(scratch / "many", many)
    flags = [str(folder), "--backbone", "efficientnet_lite0", "--precision", "fp32"]
    few = child(__file__, "extract", *flags, "--limit", str(many // 10), "--cache", str(scratch / "few.h5"))
    runs = [child(__file__, "extract", *flags, "--cache", str(scratch / "many.h5")) for _ in range(2)]
    first, second = runs
    assert (first.printed["computed"], second.printed["computed"]) == (many, 0)
    show(f"first run on {many} images, seconds", first.seconds)
    show("second run, seconds", second.seconds)
    show("   of the first, in percent", 100 * second.seconds / first.seconds, 2.0, below=True)
    show("   imports torch (0: no)", second.printed["torch"], 0.0, below=True)
    show(f"peak memory at {many // 10} images, MB", few.megabytes, MEMORY_TARGET, below=True)
    show(f"peak memory at {many} images, MB", first.megabytes, MEMORY_TARGET, below=True)


def show(what: str, value: float, target: float | None = None, below: bool = False) -> None:
    sign = "≤" if below else "≥"
    aim = f"{sign} {target:g}" if target is not None else ""
    missed = target is not None and (value > target if below else value < target)
    print(f"{what:58} {value:9.2f} {aim:>8}{'   missed' if missed else ''}", flush=True)


def child(script: str, *arguments: str) -> Measured:
    """Run a script in a process of its own; its last line is JSON."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True)
    with process.stdout:
        lines = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed")
    per_megabyte = 1024 if sys.platform == "linux" else 1 << 20
    return Measured(json.loads(lines[-1]), time.perf_counter() - started, usage.ru_maxrss / per_megabyte)


def write_photographs(folder: Path, count: int) -> Path:
    """Crops of two photographs, mirrored and brightened at random: JPEGs of 500 × 375 in two classes."""
    from sklearn.datasets import load_sample_image

    generator = np.random.default_rng(0)
    for name in ("china", "flower"):
        photograph = Image.fromarray(load_sample_image(f"{name}.jpg"))
        (folder / name).mkdir(parents=True)
        for number in range(count // 2):
            width = generator.integers(300, 570)
            height = width * 3 // 4
            left, top = generator.integers(0, (photograph.width - width, photograph.height - height))
            crop = photograph.crop((left, top, left + width, top + height)).resize((500, 375))
            if generator.random() < 0.5:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            crop = ImageEnhance.Brightness(crop).enhance(generator.uniform(0.7, 1.3))
            crop.save(folder / name / f"{number:05}.jpg", quality=90)
    return folder


def peer(folder: Path, backbone: str, limit: int) -> dict:
    """The usual loop: DataLoader over PIL images, torchvision transforms, eager PyTorch, float32 to .npy."""
    import timm
    import torch
    from torchvision import models, transforms

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            return transform(Image.open(paths[index]).convert("RGB"))

    paths = sorted(folder.rglob("*.jpg"))[:limit]
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    if backbone == "resnet50":
        network = models.resnet50(weights=None)
        network.fc = torch.nn.Identity()
    else:
        network = timm.create_model(f"tf_{backbone}", num_classes=0)
    network.eval()
    loader = torch.utils.data.DataLoader(Images(), batch_size=32, num_workers=2)
    started = time.perf_counter()
    with torch.inference_mode(), tempfile.TemporaryFile() as out:
        np.save(out, np.concatenate([network(x).numpy() for x in loader]))
    return {"images_per_second": len(paths) / (time.perf_counter() - started)}


def decode(folder: Path, backbone: str, limit: int, weights: str | None = None) -> dict:
    """Images from files to pixels, as extraction loads them, without a network."""
    from bottleneck.backbones.registry import load_backbone
    from bottleneck.data.loader import load_images
    from bottleneck.data.source import read_source
    from bottleneck.threads import thread_budget

    source, preprocess = read_source(folder), load_backbone(backbone, weights=weights).preprocess
    keys, workers = source.images[:limit], thread_budget().decode
    for _ in load_images(source, keys[:8], preprocess, workers=workers):
        pass
    started = time.perf_counter()
    done = sum(image.error is None for image in load_images(source, keys, preprocess, workers=workers))
    return {"images_per_second": done / (time.perf_counter() - started)}


def extract(folder: Path, cache: Path, **options: object) -> dict:
    """What `bottleneck extract` reports, and whether torch was needed."""
    from bottleneck.extraction.extract import extract

    result = extract(folder, cache, **options)
    return {**result.to_json(), "torch": "torch" in sys.modules}


def engine(folder: Path, backbone: str, limit: int, precision: str, weights: str | None = None) -> dict:
    """The engine that extraction builds, fed with decoded images from memory."""
    from bottleneck.backbones.registry import load_backbone
    from bottleneck.data.decode import pixels_from_bytes
    from bottleneck.engines.base import build_engine

    net = load_backbone(backbone, weights=weights)
    paths = sorted(folder.rglob("*.jpg"))[:128]
    pixels = np.stack([pixels_from_bytes(path.read_bytes(), net.preprocess) for path in paths])
    run = build_engine(lambda: net.extractor(("bottleneck",)), pixels, key=backbone, precision=precision)
    run(pixels)
    started, done = time.perf_counter(), 0
    while done < limit:
        batch = pixels[done % len(pixels) :][: run.batch]
        run(batch)
        done += len(batch)
    return {"images_per_second": done / (time.perf_counter() - started)}


CHILDREN = {"peer": peer, "decode": decode, "extract": extract, "engine": engine}


def measure(arguments: list[str]) -> None:
    """One measurement, in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=list(CHILDREN))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--precision")
    parser.add_argument("--cache", type=Path)
    args = vars(parser.parse_args(arguments))
    what = args.pop("what")
    if what != "peer" and args["backbone"] == "resnet50":
        args["weights"] = "none"  # not shipped; random ones take the same time
    args = {name: value for name, value in args.items() if value is not None}
    print(json.dumps(CHILDREN[what](**args)))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CHILDREN:
        measure(sys.argv[1:])
    else:
        main()
