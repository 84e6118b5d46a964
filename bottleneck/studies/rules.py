"""The four scenarios of transfer learning, and three published rules for them, side by side: they differ."""

from __future__ import annotations

from dataclasses import dataclass

SIZES = ("small", "large")
NEARNESS = ("similar", "different")
SCENARIOS = tuple(f"{size}-{near}" for size in SIZES for near in NEARNESS)
LARGE = 500  # train images per class from which data count as large: that of CIFAR-100, as text-book cases go

HEAD, EARLY, FINETUNE, SCRATCH = "head", "early head", "finetune", "scratch"


@dataclass(frozen=True)
class Rule:
    """What a text says of one scenario. strategy : the one of ours that it comes to."""

    text: str
    strategy: str


RULES: dict[str, dict[str, Rule]] = {
    "CS231n notes": {
        "small-similar": Rule("linear classifier on top features", HEAD),
        "small-different": Rule("linear classifier on earlier activations", EARLY),
        "large-similar": Rule("fine-tune with confidence", FINETUNE),
        "large-different": Rule(
            "fine-tune through the whole network, initialised from pre-trained weights", FINETUNE
        ),
    },
    "text 1 (2021, after CS231n)": {
        "small-similar": Rule("linear classifier only; fine-tuning would overfit", HEAD),
        "small-different": Rule(
            "linear classifier only; tuning just the late layers is not good; "
            "retraining from the early layers may work",
            HEAD,
        ),
        "large-similar": Rule("no problem: fine-tuning will not overfit", FINETUNE),
        "large-different": Rule("fine-tuning has no point: as good as building from nothing", SCRATCH),
    },
    "text 2 (2021)": {
        "small-similar": Rule("freeze the backbone, train the classifier", HEAD),
        "small-different": Rule("transfer not recommended", SCRATCH),
        "large-similar": Rule("freeze the backbone, train the classifier", HEAD),
        "large-different": Rule("keep the architecture alone, train backbone and classifier anew", SCRATCH),
    },
}


def scenario(samples_per_class: float, similar: bool) -> str:
    """One of `SCENARIOS`."""
    return f"{SIZES[samples_per_class >= LARGE]}-{NEARNESS[not similar]}"
