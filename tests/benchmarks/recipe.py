#!/usr/bin/env python3
"""Which recipe of fine-tuning gains on small sets: weight averaging, interpolation, other rates, mixup?

    python tests/benchmarks/recipe.py [FOLDER] [--seeds 2] [--epochs 15] [--size 128] [--sets NAME …]

Takes 6 minutes on 2 idle cores. Six sets of at most 320 images to learn from: digits of scikit-learn at two
sizes, parts of its two photographs, generated textures, generated shapes whose colour says nothing, and
FOLDER in the ImageFolder layout (left out where none is given). The last block of EfficientNet-Lite0 is tuned
from the cached map. Each seed draws another val (a quarter) from the images to learn from, and fits the head
that training starts from on the others; test is fixed. Every recipe chooses on val, the head included.
Printed: gains in points of test accuracy over the head and over the best epoch of the first recipe, with 95 %
intervals over the test samples (each is the mean over seeds).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from machine import print_machine
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from bottleneck.backbones.section import find_cut
from bottleneck.extraction.extract import extract
from bottleneck.heads.solver.problem import NO_FOLD
from bottleneck.progress import SILENT
from bottleneck.store.reader import FeatureCache
from bottleneck.training import finetune_plan
from bottleneck.training.batches import Batch
from bottleneck.training.config import FinetuneConfig
from bottleneck.training.inputs import Inputs, backbone_of, inputs_of
from bottleneck.training.labelled_splits import LabelledSplits
from bottleneck.training.loss import Measured, logits_of, measure, predicted
from bottleneck.training.optim import unfreeze
from bottleneck.trials.heads import head_on
from bottleneck.trials.task import Task

POOL, TEST = 320, 400  # images to learn from, and of test
ALPHAS = np.linspace(0, 1, 11)
# The rate of the head; that of the block is a tenth of it.
RECIPES: dict[str, dict] = {
    "0.002": {"lr": 0.002},
    "0.002, mixup": {"lr": 0.002},
    "0.006": {"lr": 0.006},
    "0.006, mixup": {"lr": 0.006},
}
Tensors = dict[str, Tensor]


# ---- the sets


def digits(size: int, random: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    data = load_digits()
    for i in random.permutation(len(data.images)):
        pixels = Image.fromarray((data.images[i] * 15.9).astype(np.uint8))
        yield str(data.target[i]), pixels.resize((size, size), Image.Resampling.BICUBIC)


def photographs(random: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    """Crops of six regions: three vertical bands of each of the two photographs, turned and dimmed."""
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    while True:
        photo, band = random.integers(2), random.integers(3)
        width, height = photos[photo].size
        side = int(random.integers(40, 90))
        x = int(band * width / 3 + random.random() * (width / 3 - side))
        y = int(random.random() * (height - side))
        crop = photos[photo].crop((x, y, x + side, y + side)).rotate(float(random.uniform(-20, 20)))
        yield (
            f"{photo}-{band}",
            ImageEnhance.Brightness(crop.resize((64, 64))).enhance(random.uniform(0.5, 1.2)),
        )


def textures(random: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    """Gratings, checks, dots and filtered noise, with much noise on top."""
    grid = np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1)
    names = ("grating", "checks", "dots", "rings", "coarse", "fine")
    while True:
        name = names[random.integers(len(names))]
        angle, scale = random.uniform(0, np.pi), random.uniform(5, 9)
        turned = grid @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
        if name == "grating":
            values = np.sin(turned[..., 0] * 2)
        elif name == "checks":
            values = np.sign(np.sin(turned[..., 0] * 2) * np.sin(turned[..., 1] * 2))
        elif name == "dots":
            values = (np.hypot(*(np.modf(np.abs(turned))[0] - 0.5).transpose(2, 0, 1)) < 0.3) * 2.0 - 1
        elif name == "rings":
            values = np.sin(np.hypot(*(turned - turned.mean((0, 1))).transpose(2, 0, 1)) * 2.5)
        else:
            cells = 8 if name == "coarse" else 24
            noise = Image.fromarray(random.integers(0, 256, (cells, cells), np.uint8))
            values = np.asarray(noise.resize((64, 64), Image.Resampling.BICUBIC)) / 128.0 - 1
        colour = random.uniform(60, 190, 3)
        pixels = colour + 25 * values[..., None] + random.normal(0, 45, (64, 64, 3))
        yield name, Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def shapes(random: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    """Polygons and an ellipse of any colour, size and angle on noise."""
    names = ("triangle", "square", "pentagon", "hexagon", "ellipse")
    while True:
        number = int(random.integers(len(names)))
        noise = random.normal(random.uniform(60, 190, 3), 40, (64, 64, 3)).clip(0, 255)
        picture = Image.fromarray(noise.astype(np.uint8))
        draw, fill = ImageDraw.Draw(picture), tuple(random.integers(0, 256, 3).tolist())
        x, y, r = *random.uniform(24, 40, 2), random.uniform(10, 20)
        if names[number] == "ellipse":
            draw.ellipse((x - r, y - r * 0.8, x + r, y + r * 0.8), fill=fill)
        else:
            draw.regular_polygon((x, y, r), number + 3, float(random.uniform(0, 90)), fill=fill)
        yield names[number], picture


def write_set(folder: Path, pictures: Iterator[tuple[str, Image.Image]], pool: int, test: int = TEST) -> Path:
    """split/class/number.png"""
    for number, (name, picture) in zip(range(pool + test), pictures, strict=False):
        path = folder / ("train" if number < pool else "test") / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.convert("RGB").save(path)
    return folder


def sets(scratch: Path, folder: Path | None) -> dict[str, Callable[[], Path]]:
    """The six sets by name; each is written when it is called for."""
    random = np.random.default_rng(0)
    made: dict[str, Callable[[], Path]] = {
        "digits 8 px": lambda: write_set(scratch / "d8", digits(8, random), POOL),
        "digits 32 px, 130 in all": lambda: write_set(scratch / "d32", digits(32, random), 130),
        "parts of photographs": lambda: write_set(scratch / "photos", photographs(random), POOL),
        "textures": lambda: write_set(scratch / "textures", textures(random), POOL),
        "shapes": lambda: write_set(scratch / "shapes", shapes(random), POOL),
    }
    if folder:
        made[folder.name] = lambda: folder
    return made


# ---- the recipes


class Tuning:
    """One run from the head; `weights` after each epoch."""

    def __init__(
        self,
        plan: finetune_plan.FinetunePlan,
        cache: FeatureCache,
        inputs: Inputs,
        config: FinetuneConfig,
        mixup: bool,
    ) -> None:
        self.job = finetune_plan.build_job(plan, cache, inputs, config)
        self.training, self.mixup = self.job.training, mixup
        trained = {id(p) for group in self.training.optimizer.param_groups for p in group["params"]}
        self.parameters = {n: p for n, p in self.job.network.named_parameters() if id(p) in trained}
        self.start, self.random = self.copy(), np.random.default_rng(config.seed)
        self.weights: list[Tensors] = []

    def copy(self) -> Tensors:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, tensors: Tensors) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])

    def train(self, epochs: int) -> None:
        training, step = self.training, 0
        torch.manual_seed(self.job.config.seed)
        for epoch in range(1, epochs + 1):
            unfreeze(training.optimizer, epoch)
            for batch in training.train.epoch(epoch):
                training.schedule.apply(training.optimizer, step)
                self.update(batch)
                step += 1
            self.weights.append(self.copy())

    def update(self, batch: Batch) -> None:
        if not self.mixup:
            self.training.update(batch)
            return
        share = self.random.beta(0.4, 0.4)
        other = torch.from_numpy(self.random.permutation(len(batch)))
        rows = share * batch.rows.float() + (1 - share) * batch.rows[other].float()
        logits = self.job.network(rows, batch.covariates)
        loss = self.training.objective.loss
        mixed = share * loss(logits, batch.labels) + (1 - share) * loss(logits, batch.labels[other])
        self.training.optimizer.zero_grad()
        mixed.backward()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.training.optimizer.step()

    def measured(self, tensors: Tensors) -> Measured:
        self.load(tensors)
        logits = logits_of(self.job.network, self.training.val, self.job.device)
        return measure(*logits, self.training.objective)

    def right(self, tensors: Tensors) -> np.ndarray:
        """Which test samples are right."""
        self.load(tensors)
        logits, labels = logits_of(self.job.network, self.job.plain_batches("test"), self.job.device)
        return (predicted(logits) == labels).numpy().astype(float)

    def between(self, end: Tensors, alpha: float) -> Tensors:
        return {name: torch.lerp(first, end[name], float(alpha)) for name, first in self.start.items()}

    def candidates(self) -> dict[str, list[Tensors]]:
        """By recipe what val chooses among, beside the start."""
        half = self.weights[len(self.weights) // 2 :]
        mean = {name: torch.stack([w[name] for w in half]).mean(0) for name in self.start}
        return {
            "best epoch": self.weights,
            "SWA": [mean],
            "WiSE to last epoch": [self.between(self.weights[-1], a) for a in ALPHAS[1:]],
        }

    def best(self, tensors: list[Tensors]) -> Tensors:
        """The best on val, the start included."""
        chosen, measured = self.start, self.measured(self.start)
        for candidate in tensors:
            if (found := self.measured(candidate)).beats(measured):
                chosen, measured = candidate, found
        return chosen


def run(folder: Path, scratch: Path, args: argparse.Namespace) -> dict[str, list[np.ndarray]]:
    """Right or wrong by recipe: for each seed (test samples,)."""
    path = scratch / f"{folder.name}.h5"
    found: dict[str, list[np.ndarray]] = {}
    extract(folder, path, nodes=("bottleneck", args.node), image_size=args.size)
    with FeatureCache(path) as cache:
        target = cache.samples.targets["label"]
        pool = np.flatnonzero(cache.samples.split == "train")
        test = np.flatnonzero(cache.samples.split != "train")
        for seed in range(args.seeds):
            drawn = np.random.default_rng([1, seed]).permutation(pool)
            train, val = np.sort(drawn[len(pool) // 4 :]), np.sort(drawn[: len(pool) // 4])
            rows = {"train": train, "val": val, "test": test}
            splits = LabelledSplits(cache.samples, target.values, rows, False)
            task = Task(cache, cache.samples, target, rows, np.full(len(train), NO_FOLD), 5, 0)
            head = head_on(task, "bottleneck", train)
            for number, (recipe, options) in enumerate(RECIPES.items()):
                backbone = backbone_of(cache)
                cut = find_cut(backbone, "bottleneck", 1)
                config = FinetuneConfig(epochs=args.epochs, seed=seed, patience=0, **options)
                plan = finetune_plan.FinetunePlan(path, "", head, head, splits, backbone, cut)
                with inputs_of(cache, backbone, cut.node, config, scratch, SILENT) as inputs:
                    tuning = Tuning(plan, cache, inputs, config, "mixup" in recipe)
                    if number == 0:
                        found.setdefault("head", []).append(tuning.right(tuning.start))
                    tuning.train(args.epochs)
                    last = f"{recipe}: last epoch, not chosen"
                    found.setdefault(last, []).append(tuning.right(tuning.weights[-1]))
                    for what, tensors in tuning.candidates().items():
                        right = tuning.right(tuning.best(tensors))
                        found.setdefault(f"{recipe}: {what}", []).append(right)
    return found


def difference(right: list[np.ndarray], base: np.ndarray) -> tuple[float, float]:
    """Return the gain over `base` in points, and half of its paired 95 % interval over the test samples."""
    gain = 100 * (np.mean(right, axis=0) - base)
    return float(gain.mean()), float(1.96 * gain.std(ddof=1) / np.sqrt(len(gain)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--node", default="blocks.5@none")
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--output", type=Path, help="JSON file for the gains")
    args = parser.parse_args()
    print_machine()
    gains: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bottleneck-recipe-") as temporary:
        for name, write in sets(Path(temporary), args.folder).items():
            if args.sets and name not in args.sets:
                continue
            found = run(write(), Path(temporary), args)
            head = np.mean(found["head"], axis=0)
            print(f"\n{name}: head {head.mean():.4f}, {len(head)} test samples", flush=True)
            reference = np.mean(next(v for k, v in found.items() if k.endswith("best epoch")), axis=0)
            for recipe, right in found.items():
                (gain, half), (over, its_half) = (difference(right, base) for base in (head, reference))
                gains.setdefault(recipe, {})[name] = [gain, half, over, its_half]
                shown = f"{gain:+.2f} ± {half:.2f}  over the first {over:+.2f} ± {its_half:.2f}"
                print(f"  {recipe:40} {shown}", flush=True)
            if args.output:
                args.output.write_text(json.dumps(gains))
    print(f"\n{'mean gain over the sets; sets above 0, sure':45}")
    for recipe, by_set in gains.items():
        values = np.array(list(by_set.values()))
        above, sure = (values[:, 0] > 0).sum(), (values[:, 0] > values[:, 1]).sum()
        below = (values[:, 0] < -values[:, 1]).sum()
        print(f"{recipe:45} {values[:, 0].mean():+.2f}  {above} above, {sure} surely; {below} surely below")


if __name__ == "__main__":
    main()
