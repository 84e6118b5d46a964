"""Which recipe of fine-tuning gains on small sets: weight averaging, interpolation, other rates, mixup?

    python -m tests.benchmarks.recipe [--short] [FOLDER …]

Takes 6 minutes on 2 idle cores. Sets of at most 320 images to learn from: digits of scikit-learn at two
sizes, parts of its two photographs, generated textures, generated shapes whose colour says nothing, and each
FOLDER in the ImageFolder layout; the short form has two of them. The last block of EfficientNet-Lite0 is
tuned from the cached map. Each seed draws another val (a quarter) from the images to learn from, and fits the
head that training starts from on the others; test is fixed. Every recipe chooses on val, the head included.
Given: accuracy on test of each seed beside the head's; as conditions the gains over the head and over the
best epoch of the first recipe, with 95 % intervals over the test samples (each is the mean over seeds).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
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
from tests.benchmarks.images import digits, photographs, shapes, textures, write_set
from tests.benchmarks.measurement import LESS, Row, main

POOL, TEST = 320, 400  # images to learn from, and of test
SEEDS, EPOCHS, SIZE, NODE = 2, 15, 128, "blocks.5@none"
ALPHAS = np.linspace(0, 1, 11)
# The rate of the head; that of the block is a tenth of it.
RECIPES: dict[str, dict] = {
    "0.002": {"lr": 0.002},
    "0.002, mixup": {"lr": 0.002},
    "0.006": {"lr": 0.006},
    "0.006, mixup": {"lr": 0.006},
}
Tensors = dict[str, Tensor]


def rows(short: bool, folders: tuple[Path, ...] = ()) -> Iterator[Row]:
    """The accuracy of each recipe on each set, beside that of the head."""
    with tempfile.TemporaryDirectory(prefix="bottleneck-recipe-") as temporary:
        for name, write in list(sets(Path(temporary), folders).items())[: 2 if short else None]:
            found = run(write(), Path(temporary))
            head = np.mean(found["head"], axis=0)
            reference = np.mean(next(v for k, v in found.items() if k.endswith("best epoch")), axis=0)
            theirs = tuple(100 * right.mean() for right in found.pop("head"))
            for recipe, right in found.items():
                (gain, half), (over, its_half) = (difference(right, base) for base in (head, reference))
                conditions = (
                    f"{len(head)} of test; over the head {gain:+.2f} ± {half:.2f}, "
                    f"over the first recipe {over:+.2f} ± {its_half:.2f}"
                )
                ours = tuple(100 * each.mean() for each in right)
                yield Row(
                    f"{name}: {recipe}", "% of test", ours, theirs, "the head", LESS, conditions=conditions
                )


def sets(scratch: Path, folders: tuple[Path, ...]) -> dict[str, Callable[[], Path]]:
    """The sets by name; each is written when it is called for."""
    random = np.random.default_rng(0)
    drawn = {
        "digits 8 px": (digits(8, random), POOL),
        "digits 32 px, 130 in all": (digits(32, random), 130),
        "parts of photographs": (photographs(random), POOL),
        "textures": (textures(random), POOL),
        "shapes": (shapes(random), POOL),
    }
    made: dict[str, Callable[[], Path]] = {}
    for number, (name, (pictures, pool)) in enumerate(drawn.items()):
        made[name] = partial(write_set, scratch / str(number), pictures, pool, TEST)
    return made | {folder.name: partial(Path, folder) for folder in folders}


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


def run(folder: Path, scratch: Path) -> dict[str, list[np.ndarray]]:
    """Right or wrong by recipe: for each seed (test samples,)."""
    path = scratch / f"{folder.name}.h5"
    found: dict[str, list[np.ndarray]] = {}
    extract(folder, path, nodes=("bottleneck", NODE), image_size=SIZE)
    with FeatureCache(path) as cache:
        target = cache.samples.targets["label"]
        pool = np.flatnonzero(cache.samples.split == "train")
        test = np.flatnonzero(cache.samples.split != "train")
        for seed in range(SEEDS):
            drawn = np.random.default_rng([1, seed]).permutation(pool)
            train, val = np.sort(drawn[len(pool) // 4 :]), np.sort(drawn[: len(pool) // 4])
            rows = {"train": train, "val": val, "test": test}
            splits = LabelledSplits(cache.samples, target.values, rows, False)
            task = Task(cache, cache.samples, target, rows, np.full(len(train), NO_FOLD), 5, 0)
            head = head_on(task, "bottleneck", train)
            for number, (recipe, options) in enumerate(RECIPES.items()):
                backbone = backbone_of(cache)
                cut = find_cut(backbone, "bottleneck", 1)
                config = FinetuneConfig(epochs=EPOCHS, seed=seed, patience=0, **options)
                plan = finetune_plan.FinetunePlan(path, "", head, head, splits, backbone, cut)
                with inputs_of(cache, backbone, cut.node, config, scratch, SILENT) as inputs:
                    tuning = Tuning(plan, cache, inputs, config, "mixup" in recipe)
                    if number == 0:
                        found.setdefault("head", []).append(tuning.right(tuning.start))
                    tuning.train(EPOCHS)
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


if __name__ == "__main__":
    main(rows, __doc__)
