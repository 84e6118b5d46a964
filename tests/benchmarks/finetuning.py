"""How much faster than the usual fine-tuning of the last stage is `finetune`, and from which epoch on?

    python -m tests.benchmarks.finetuning [--short]

The peer decodes and runs the whole network in every step of every epoch, and trains its last stage. Each
contender is a process of its own, and they take turns. ResNet-50 has random weights; the short form
leaves it out. What is done once is no part of a rate: extraction of the map, which is shown with the epochs
after which it has paid for itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.images import write_photographs
from tests.benchmarks.machine import processor_seconds
from tests.benchmarks.measurement import Row, main, speed
from tests.benchmarks.peers import RESNET
from tests.benchmarks.process import run_child, take_turns

LITE = "efficientnet_lite0"
WANTED = {LITE: 10.0, RESNET: 6.0}
BATCH, EPOCHS = 32, 4
PRECISIONS = ("fp32", "bf16")


def rows(short: bool) -> Iterator[Row]:
    """Rates of each network and precision beside the peer, and what the map costs."""
    with tempfile.TemporaryDirectory(prefix="bottleneck-finetuning-") as scratch:
        folder = write_photographs(Path(scratch, "photographs"), 120 if short else 400)
        for backbone in (LITE,) if short else (LITE, RESNET):
            yield from compare(folder, backbone, Path(scratch))


def compare(folder: Path, backbone: str, scratch: Path) -> Iterator[Row]:
    """One network."""
    from bottleneck.engines.device import trains_in_bf16

    common = {"folder": folder, "backbone": backbone}
    precisions = PRECISIONS if trains_in_bf16("cpu") else PRECISIONS[:1]
    run_child("finetuning", "prepare", **common, work=scratch / backbone)
    contenders = {"usual": ("peers", "usual_finetune", {**common, "epochs": 1})}
    for precision in precisions:
        flags = {"precision": precision, "work": scratch / backbone}
        contenders[precision] = ("finetuning", "ours", flags)
    found = take_turns(contenders, numbered="seed")
    for precision in precisions:
        ours, images = found[precision], found[precision][0]["all_images"]
        yield from speed(
            f"{backbone}, {precision}: an epoch of the last stage",
            ours,
            found["usual"],
            "the usual fine-tuning",
            at_least=WANTED[backbone],
            conditions=f"{images} photographs, batches of {BATCH}",
        )
    per_epoch = [
        images * (usual["seconds"] / usual["images"] - own["seconds"] / own["images"])
        for usual, own in zip(found["usual"], found["fp32"], strict=True)
    ]
    seconds = found["fp32"][0]["map_seconds"]
    yield Row(
        f"{backbone}, fp32: epochs after which the map has paid for itself",
        "epochs",
        tuple(seconds / saved for saved in per_epoch),
        conditions=f"the map of {images} photographs took {seconds:.1f} s, once",
    )


# ---- each in a process of its own


def prepare(folder: str, backbone: str, work: str) -> dict:
    """The features that the head takes, and the head: what is there before fine-tuning is thought of."""
    from bottleneck.extraction.extract import extract
    from bottleneck.fitting.fit_heads import fit_heads

    weights = {"weights": "none"} if backbone == RESNET else {}
    extracted = extract(folder, Path(work, "c.h5"), backbone=backbone, **weights)
    fit_heads(extracted.cache, C=1e-3, output=Path(work, "heads"))
    return {}


def ours(work: str, precision: str, seed: int) -> dict:
    """What `finetune` reports of its last block, and the time of cores of an epoch after the first."""
    from bottleneck.progress import Reporter
    from bottleneck.training.finetune import finetune

    class Stopwatch(Reporter):
        def epoch(self, record: object) -> None:
            ends.append(processor_seconds())

    ends: list[float] = []
    (head,) = Path(work, "heads").glob("*.safetensors")
    model = Path(work, f"{precision}-{seed}", "m.safetensors")
    # At the default rate ResNet-50 of random weights may diverge, which ends the run; a rate takes no time.
    options = {"epochs": EPOCHS, "patience": 0, "batch_size": BATCH, "val_fraction": 0.1, "lr": 1e-4}
    result = finetune(
        Path(work, "c.h5"), head, model, precision=precision, seed=seed, reporter=Stopwatch(), **options
    )
    images = result.n["train"]
    return {
        "images": images,
        "seconds": images / result.images_per_second,
        "processor_seconds": (ends[-1] - ends[0]) / (len(ends) - 1),
        "map_seconds": result.map_seconds,
        "all_images": sum(result.n.values()),
    }


if __name__ == "__main__":
    main(rows, __doc__)
